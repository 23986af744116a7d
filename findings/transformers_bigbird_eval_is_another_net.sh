#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0: BigBird (and BigBird-Pegasus) with attention_type="block_sparse".
#
# Expected: the attention of the paper: each block of queries sees two global blocks, three around itself and three random
# ones. They are drawn once or anew, from a generator of the model, and are the same in training and evaluation.
# Seen: (1) in evaluation mode the three random blocks are block 0, which is a global one already, and it enters the
# softmax four times: with equal scores half of the attention goes to the first block and an eighth to each other, where
# in training each of the eight has an eighth. So the net that is evaluated is not the one that was trained, and without
# dropout, too, train() and eval() give other outputs.
# (2) In training each layer calls np.random.seed with its own fixed number. The blocks are the same at each step, and
# NumPy's global generator starts over at each step: augmentation, masking and sampling by np.random repeat, whatever
# seed the user has set. In evaluation mode it is left alone.
# Nothing warns. Attention modules alone in training mode (they have no dropout) evaluate what was trained, and reseed NumPy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
import transformers
from transformers import BigBirdConfig, BigBirdModel

torch.manual_seed(0)
BLOCK, BLOCKS, QUERY = 16, 32, 10
CONFIG = BigBirdConfig(
    vocab_size=100, hidden_size=BLOCKS, num_hidden_layers=2, num_attention_heads=1, intermediate_size=64, block_size=BLOCK,
    max_position_embeddings=BLOCK * BLOCKS, num_random_blocks=3, attention_type="block_sparse",
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
TOKENS = torch.randint(3, 100, (1, BLOCK * BLOCKS))
print("transformers", transformers.__version__, "torch", torch.__version__)


def shares(training):
    """How much of the attention of a block of queries each block gets, where all scores are equal."""
    model = BigBirdModel(CONFIG).train(training)
    attention = model.encoder.layer[0].attention.self
    for linear in (attention.query, attention.key, attention.value):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    torch.nn.init.eye_(attention.value.weight)  # and each token's input says which block it is in
    inputs, found = torch.eye(BLOCKS).repeat_interleave(BLOCK, 0)[None], []
    model.embeddings.register_forward_hook(lambda *_: inputs)
    attention.register_forward_hook(lambda module, args, output: found.append(output[0]))
    with torch.no_grad():
        model(TOKENS)
    row = found[0].reshape(BLOCKS, BLOCK, BLOCKS)[QUERY, 0]
    return {block: round(share, 3) for block, share in enumerate(row.tolist()) if share > 1e-6}


training, evaluation = shares(True), shares(False)
print(f"attention of block {QUERY} in training  ", training)
print(f"attention of block {QUERY} in evaluation", evaluation)
fixed = {0, QUERY - 1, QUERY, QUERY + 1, BLOCKS - 1}
assert len(training) == 8 and fixed < training.keys() and set(training.values()) == {0.125}
assert evaluation == {block: 0.5 if block == 0 else 0.125 for block in fixed}, "the behavior has changed: evaluation"

model = BigBirdModel(CONFIG)


def run(training):
    model.train(training)
    with torch.no_grad():
        return model(TOKENS).last_hidden_state


difference = (run(True) - run(False)).abs().max().item()
repeated = max((run(mode) - run(mode)).abs().max().item() for mode in (True, False))
print(f"no dropout: train() and eval() differ by {difference:.1e}, two runs of one mode by {repeated:.1e}")
assert repeated == 0 and difference > 1e-3, "the behavior has changed: outputs"
model.train(False)
for layer in model.encoder.layer:
    layer.attention.self.train()
with torch.no_grad():
    assert torch.equal(model(TOKENS).last_hidden_state, run(True))

for training in (False, True):
    drawn = []
    for seed in (0, 1):
        np.random.seed(seed)
        for _ in range(4):
            drawn.append(np.random.randint(1000))
            run(training)
    print(f"np.random before 4 steps, seeds 0 and 1, {'training' if training else 'evaluation'}:", drawn)
    if training:
        assert drawn[0] != drawn[4] and len({*drawn[1:4], *drawn[5:]}) == 1, "the behavior has changed: np.random"
    else:
        assert len(set(drawn)) > 6
PYTHON
