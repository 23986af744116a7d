#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export (dynamo=True, the default) of average pooling with
# divisor_override, of quantization to fewer than 8 bits, of antialiased F.interpolate, and of label smoothing.
#
# Expected: the exported graph computes what the module does, or the export raises, as it does for torch.cdist with p=1.
# Seen: no error; the arguments are accepted and not looked at. (1) nn.AvgPool2d and AvgPool3d with divisor_override
# average: divisor_override=1, the usual way to sum over windows, gives the mean. dynamo=False does the same. (2)
# quantize_per_tensor of quantized_decomposed, the operators in which PT2E quantization writes a model, clamps to the
# whole of int8 and not to quant_min and quant_max: activations of 4 bits end at 7 in torch, and at 127 behind the
# export. quantize_per_channel clamps. (3) Antialiased bilinear and bicubic F.interpolate take the quotient of the sizes
# for scale_factor, so an odd size at 0.5 gives another picture; without antialias it is right. (4) label_smoothing of
# F.cross_entropy is gone.
# In (1), (2) and (4) onnxruntime and onnx's reference agree, so it looks like torch's fault. In (2) numbers inside of
# the range are right, so the calibration data may pass.
# Not documented. onnxscript's pull request 3052 (open when this was written) is about (2), and its tests expect (3) to
# fail; for divisor_override torch had an error once (issue 105349). export(..., verify=True) compares the outputs and
# logs a warning.
# Multiplying the mean by the size of the window over divisor_override, torch.clamp before quantizing, and size= in
# place of scale_factor are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" - <<'PYTHON'
import io
import logging
import warnings
from importlib.metadata import version

import onnx
import onnxruntime
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
print(*(f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnx", "onnxruntime")))
torch.manual_seed(0)


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exported(function, x, reference=True, **options):
    """The outputs of the exported function by onnxruntime, after a check that the reference has the same."""
    file = io.BytesIO()
    torch.onnx.export(Module(function).eval(), (x,), file, input_names=["x"], verbose=False, **options)
    feed = {"x": x.numpy()}
    outputs = onnxruntime.InferenceSession(file.getvalue()).run(None, feed)[0]
    if reference:
        other = ReferenceEvaluator(onnx.load_from_string(file.getvalue())).run(None, feed)[0]
        assert torch.allclose(torch.tensor(outputs), torch.tensor(other), atol=1e-5)
    return torch.from_numpy(outputs)


def same(one, two):
    return torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def compare(name, function, x, becomes, reference=True):
    """The export is another function, and which one."""
    expected, seen = function(x), exported(function, x, reference)
    rounded = [[round(n, 2) for n in t.flatten()[:5].tolist()] for t in (expected, seen)]
    print(f"{name}: {rounded[0]} becomes {rounded[1]}")
    assert not same(seen, expected), f"the behavior has changed: {name}"
    assert same(seen, becomes), f"the behavior has changed: {name} becomes something else"


# (1)
image, volume = torch.randn(1, 2, 6, 6), torch.randn(1, 2, 4, 4, 4)
for divisor in (1, 3):
    compare(f"(1) avg_pool2d(divisor_override={divisor})", nn.AvgPool2d(2, divisor_override=divisor), image,
            F.avg_pool2d(image, 2))
    assert same(exported(nn.AvgPool2d(2, divisor_override=divisor), image, dynamo=False), F.avg_pool2d(image, 2)), \
        "the behavior has changed: dynamo=False"
compare("    avg_pool3d(divisor_override=1)", nn.AvgPool3d(2, divisor_override=1), volume, F.avg_pool3d(volume, 2))
assert same(exported(lambda x: F.avg_pool2d(x, 2) * 4, image), F.avg_pool2d(image, 2, divisor_override=1))

# (2)
decomposed = torch.ops.quantized_decomposed
x = torch.linspace(-20, 20, 9)
whole = x.clamp(-12.8, 12.7)


def quantized(x, low, high):
    return decomposed.dequantize_per_tensor(
        decomposed.quantize_per_tensor(x, 0.1, 0, low, high, torch.int8), 0.1, 0, low, high, torch.int8
    )


def by_channel(x):
    scale, zero = torch.full((1,), 0.1), torch.zeros(1, dtype=torch.int64)
    return decomposed.dequantize_per_channel(
        decomposed.quantize_per_channel(x, scale, zero, 0, -8, 7, torch.int8), scale, zero, 0, -8, 7, torch.int8
    )


assert quantized(x, -8, 7).max() == 0.7 and quantized(x, -8, 7).min() == -0.8
compare("(2) 4 bits, -8 to 7", lambda x: quantized(x, -8, 7), x, whole)
compare("    unsigned 4 bits, 0 to 15", lambda x: quantized(x, 0, 15), x, whole)
assert same(exported(lambda x: quantized(x, -128, 127), x), quantized(x, -128, 127))
assert same(exported(lambda x: quantized(x.clamp(-0.8, 0.7), -8, 7), x), quantized(x, -8, 7))
assert same(exported(by_channel, x[None], False), quantized(x, -8, 7)[None])

# (3)
odd = torch.randn(1, 1, 11, 13)
plain = {mode: F.interpolate(odd, size=(5, 6), mode=mode, antialias=True) for mode in ("bilinear", "bicubic")}
for mode, becomes in plain.items():
    compare(f"(3) antialias, {mode}, scale_factor=0.5 of odd sizes",
            lambda x: F.interpolate(x, scale_factor=0.5, mode=mode, antialias=True), odd, becomes, reference=False)
for options in ({"size": (5, 6), "antialias": True}, {"scale_factor": 0.5}):
    right = F.interpolate(odd, mode="bilinear", **options)
    assert same(exported(lambda x: F.interpolate(x, mode="bilinear", **options), odd, False), right)

# (4)
logits, classes = torch.randn(4, 5), torch.arange(4)
compare("(4) cross_entropy(label_smoothing=0.5)", lambda x: F.cross_entropy(x, classes, label_smoothing=0.5), logits,
        F.cross_entropy(logits, classes))


try:
    exported(lambda x: torch.cdist(x, x, 1), x[:, None])
    raise AssertionError("the behavior has changed: cdist with p=1 is exported")
except torch.onnx.OnnxExporterError:
    pass


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


logging.disable(logging.NOTSET)
for verify in (False, True):
    kept = Kept()
    logger = logging.getLogger("torch.onnx")
    logger.addHandler(kept)
    torch.onnx.export(Module(nn.AvgPool2d(2, divisor_override=1)).eval(), (image,), io.BytesIO(), verbose=False,
                      verify=verify)
    logger.removeHandler(kept)
    found = [line for line in kept.lines if "absolute difference" in line]
    print(f"verify={verify}:", *found or ["no word"])
    assert bool(found) == verify
PYTHON
