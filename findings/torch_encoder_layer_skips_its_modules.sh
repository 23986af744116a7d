#!/usr/bin/env bash
# torch 2.13.0: nn.TransformerEncoderLayer with batch_first=True, in which a module has been replaced (LoRA by peft
# 0.21.0, a masked or quantized linear layer, another activation, an attention of one's own), or _ff_block overridden.
#
# Expected: the layer calls its modules, in evaluation as in training; a fused implementation is taken only where it
# computes the same.
# Seen: in evaluation mode under no_grad or inference_mode the layer reads linear1.weight, linear1.bias and so on, and
# calls none of its modules. What is replaced or overridden is left out, and the outputs are those of the plain layer,
# without a word. LoRA trains from a loss of 1.12 to 0.10, and evaluates to 1.12: it shows the frozen weight as weight.
# Where all that the layer reads is frozen, evaluation mode alone is enough, with gradients on.
# Accuracies are those of a net that nobody trained: adapters "do not learn", and pruning or quantizing costs nothing.
# The documentation lists when the fused path is taken, and does not ask whose the modules are; of the activation, which
# must be relu or gelu, only the one given to the constructor counts. PyTorch's issue 128413 (closed) had it for hooks:
# a hook now switches the path off. A parametrization is seen, and with batch_first=False everything is.
# torch.backends.mha.set_fastpath_enabled(False) is right everywhere; so is merging LoRA before evaluation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.0 torch==2.13.0 numpy
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import warnings
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

warnings.filterwarnings("ignore")
torch.set_num_threads(2)
torch.manual_seed(0)
PLAIN = nn.TransformerEncoderLayer(16, 4, 32, dropout=0, batch_first=True)
X = torch.randn(8, 5, 16)


class Masked(nn.Linear):
    """Every second input is pruned."""

    def forward(self, x):
        return F.linear(x, self.weight * (torch.arange(self.in_features) % 2), self.bias)


class Quantized(nn.Linear):
    """Weights of two bits and a sign."""

    def forward(self, x):
        scale = self.weight.abs().max() / 3
        return F.linear(x, (self.weight / scale).round() * scale, self.bias)


class Windowed(nn.MultiheadAttention):
    """Each position sees itself and its neighbors."""

    def forward(self, query, key, value, **kwargs):
        place = torch.arange(query.shape[1])
        kwargs["attn_mask"] = (place[:, None] - place).abs() > 1
        return super().forward(query, key, value, **kwargs)


class Gate(nn.Module):
    def forward(self, x):
        return 0.1 * x


class Gated(nn.TransformerEncoderLayer):
    def _ff_block(self, x):
        return 0.1 * super()._ff_block(x)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def with_weights(module, like):
    module.load_state_dict(like.state_dict())
    return module


def replaced(**modules):
    layer = copy.deepcopy(PLAIN)
    for name, module in modules.items():
        setattr(layer, name, module)
    return layer


def hooked():
    layer = copy.deepcopy(PLAIN)
    layer.linear1.register_forward_hook(lambda module, inputs, output: output / 2)
    return layer


def parametrized():
    layer = copy.deepcopy(PLAIN)
    parametrize.register_parametrization(layer.linear1, "weight", Halved())
    return layer


def sequence_first():
    layer = with_weights(nn.TransformerEncoderLayer(16, 4, 32, dropout=0), PLAIN)
    layer.linear1 = with_weights(Masked(16, 32), layer.linear1)
    return layer


SKIPPED = {
    "linear1 masked": replaced(linear1=with_weights(Masked(16, 32), PLAIN.linear1)),
    "linear2 quantized": replaced(linear2=with_weights(Quantized(32, 16), PLAIN.linear2)),
    "activation SiLU": replaced(activation=nn.SiLU()),
    "attention in windows": replaced(self_attn=with_weights(Windowed(16, 4, batch_first=True), PLAIN.self_attn)),
    "a gate for dropout2": replaced(dropout2=Gate()),
    "_ff_block overridden": with_weights(Gated(16, 4, 32, dropout=0, batch_first=True), PLAIN),
}
SEEN = {
    "a hook of linear1": hooked(),
    "linear1.weight parametrized": parametrized(),
    "masked, batch_first=False": sequence_first(),
    "SiLU to the constructor": with_weights(
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0, batch_first=True, activation=nn.SiLU()), PLAIN
    ),
}


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


print(*(f"{name} {version(name)}" for name in ("torch", "peft")))
with torch.no_grad():
    plain = PLAIN.train()(X)
    assert difference(PLAIN.eval()(X), plain) < 1e-5
    for name, layer in (SKIPPED | SEEN).items():
        x = X if layer.self_attn.batch_first else X.transpose(0, 1)
        own = plain if layer.self_attn.batch_first else PLAIN(X).transpose(0, 1)
        trained, evaluated = layer.train()(x), layer.eval()(x)
        with torch.enable_grad():
            with_gradients = layer(x).detach()
        with torch.inference_mode():
            inferred = layer(x)
        torch.backends.mha.set_fastpath_enabled(False)
        switched_off = layer(x)
        torch.backends.mha.set_fastpath_enabled(True)
        frozen = copy.deepcopy(layer).requires_grad_(False)
        with torch.enable_grad():
            with_frozen = frozen(x)
        print(f"{name:27}: differs from the plain layer by {difference(trained, own):.1%} in training mode, "
              f"{difference(with_gradients, own):.1%} in evaluation mode with gradients, "
              f"{difference(evaluated, own):.1%} without")
        assert difference(trained, own) > 0.01
        assert difference(with_gradients, trained) < 1e-5 and difference(switched_off, trained) < 1e-5
        for outputs in (evaluated, inferred, with_frozen):
            if name in SKIPPED:
                assert difference(outputs, own) < 1e-5, f"the behavior has changed: evaluation sees {name}"
            else:
                assert difference(outputs, trained) < 1e-5, name

# LoRA
torch.manual_seed(0)
base = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0, batch_first=True), 2),
                     nn.Linear(16, 3))
X = torch.randn(64, 5, 16)
Y = X.mean(1).argmax(1) % 3
net = get_peft_model(base, LoraConfig(target_modules=["linear1", "linear2"], r=4))


def loss_of(module):
    return F.cross_entropy(module(X).mean(1), Y)


optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.02)
losses = []
for _ in range(100):
    optimizer.zero_grad()
    loss = loss_of(net)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
net.eval()
assert not loss_of(net).requires_grad, "the behavior has changed: LoRA is seen in evaluation mode"
with torch.no_grad():
    evaluated = loss_of(net).item()
    with net.disable_adapter():
        without = loss_of(net).item()
    torch.backends.mha.set_fastpath_enabled(False)
    switched_off = loss_of(net).item()
    torch.backends.mha.set_fastpath_enabled(True)
    trained = loss_of(net.train()).item()
    merged = loss_of(copy.deepcopy(net).merge_and_unload().eval()).item()
print(f"LoRA: trained from {losses[0]:.3f} to {trained:.3f}; evaluated {evaluated:.3f}, without the adapters "
      f"{without:.3f}; with the fused path switched off {switched_off:.3f}, merged {merged:.3f}")
assert losses[0] > 1 and trained < losses[0] / 4
assert abs(evaluated - without) < 1e-5 and abs(evaluated - losses[0]) < 1e-4, "the behavior has changed: LoRA is seen"
assert abs(switched_off - trained) < 1e-4 and abs(merged - trained) < 1e-4
PYTHON
