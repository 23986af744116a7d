#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0: from_pretrained of a class of one's own, with a buffer of persistent=False.
#
# Expected: as in torch, where such a buffer is in no file because __init__ makes it: the loaded model has what __init__
# made, a mask or a table of positions.
# Seen: memory that nobody has written. The model is made on the meta device, and what the file lacks becomes
# torch.empty_like. missing_keys doesn't name the buffer, and no line is printed. __init__ alone, and a round trip by
# state_dict, are right. Only what _init_weights writes is set, so a class must make its buffers there a second time.
# A saved and loaded model gives other outputs, often NaN, sometimes right: empty memory tends to be zeros in tests.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 numpy
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import sys

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN in place of what lies there


class Config(PretrainedConfig):
    model_type = "windowed"


class Windowed(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("window", torch.hann_window(4), persistent=False)
        self.post_init()

    def forward(self, x):
        return self.linear(x * self.window)


model = Windowed(Config())
twin = Windowed(Config())
twin.load_state_dict(model.state_dict())
assert torch.equal(twin.window, model.window)
model.save_pretrained(sys.argv[1])
loaded, told = Windowed.from_pretrained(sys.argv[1], output_loading_info=True)
print("made by __init__:", model.window.tolist(), "after from_pretrained:", loaded.window.tolist(), "told:", told)
assert torch.equal(loaded.linear.weight, model.linear.weight)
assert not any(told.values()), "the behavior has changed: it is told"
assert loaded.window.isnan().all(), "the behavior has changed: the buffer is set"
print("transformers", transformers.__version__, "torch", torch.__version__)
PYTHON
