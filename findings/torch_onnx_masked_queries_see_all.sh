#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export (dynamo=True, the default) of scaled_dot_product_attention with
# a mask that leaves a query no key. Run by onnxruntime 1.32.0 and by onnx 1.23.2's reference.
#
# Expected: 0 for that query, as in torch, whatever the kind of mask; the exported graph even has IsNaN and Where behind
# its Softmax to that end. Or NaN, as the softmax of nothing but -inf has it.
# Seen: with a boolean mask, the mean of all values: the query that may see nothing sees everything, evenly. The graph
# has the lowest finite number where the mask is False, so the softmax is even, and its IsNaN never finds anything. With
# the same mask as numbers, 0 and -inf, there is no such guard, and the result is NaN. Both at the default opset.
# Such queries are common: padding in a batch, blocks that are all masked, the first row of a strict causal mask. With
# blocks of keys dropped by a learned mask, a query whose blocks are all dropped adds nothing to the residual in
# training, and the average of all tokens behind the export. The other queries are right, so a test without such a row
# passes; verify=True looks at the example inputs alone.
# Not documented. onnxscript's pull request 2479 of 2025 put the guard in, against NaN; 2654 of the same year put the
# lowest number in the place of -inf, and with that the guard out of work.
# opset_version=23, with the operator Attention, is right. For boolean masks so is dynamo=False, and so is multiplying
# the outputs by mask.any(-1, keepdim=True).
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
import onnx.numpy_helper
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
print(*(f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnx", "onnxruntime")))
torch.manual_seed(0)
KEYS, BLOCK = 16, 4
Q, K, V = torch.randn(3, 1, 2, KEYS, 8)
BLOCKS = torch.rand(4, 4) < 0.5
BLOCKS[2] = False  # the queries of this block see no key
BLOCKS[0, 0] = BLOCKS[1, 1] = BLOCKS[3, 3] = True
BOOLEAN = BLOCKS.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
NUMBERS = torch.zeros(KEYS, KEYS).masked_fill(~BOOLEAN, -torch.inf)
ALONE, OTHERS = slice(8, 12), [i for i in range(KEYS) if not 8 <= i < 12]


class Attention(nn.Module):
    def __init__(self, mask=None, mend=False):
        super().__init__()
        self.mask, self.mend = mask, mend

    def forward(self, q, k, v, mask=None):
        mask = self.mask if mask is None else mask
        outputs = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return outputs * mask.any(-1, keepdim=True) if self.mend else outputs


def export(net, inputs, **options):
    file = io.BytesIO()
    torch.onnx.export(net, inputs, file, verbose=False, **options)
    return onnx.load_from_string(file.getvalue())


def run(model, inputs):
    """Outputs of onnxruntime and of the reference."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)}
    return [torch.from_numpy(r.run(None, feed)[0]) for r in (session, ReferenceEvaluator(model))]


def kind(outputs):
    rows = outputs[:, :, ALONE]
    if rows.isnan().all():
        return "NaN"
    mean = V.mean(2, keepdim=True).expand_as(rows)
    return "0" if not rows.any() else "mean" if torch.allclose(rows, mean, atol=1e-5) else "other"


for name, mask, seen in (("boolean", BOOLEAN, "mean"), ("0 and -inf", NUMBERS, "NaN")):
    expected = Attention(mask)(Q, K, V)
    assert kind(expected) == "0"
    for given, net, inputs in (
        ("constant", Attention(mask), (Q, K, V)),
        ("input", Attention(), (Q, K, V, mask)),
    ):
        found = {}
        for options in ({}, {"opset_version": 23}, {"dynamo": False, "opset_version": 17}):
            model = export(net.eval(), inputs, **options)
            opset = next(o.version for o in model.opset_import if not o.domain)
            exporter = "dynamo=False" if "dynamo" in options else "default" if not options else "asked for"
            both = run(model, inputs)
            found[exporter] = [kind(outputs) for outputs in both]
            for outputs in both:
                assert torch.allclose(outputs[:, :, OTHERS], expected[:, :, OTHERS], atol=1e-5)
            operators = [node.op_type for node in model.graph.node]
            print(f"mask {name:10} as {given:8}, opset {opset} ({exporter}): queries without a key give "
                  f"{' and '.join(found[exporter])}; torch 0; graph ends in {' '.join(operators[-4:])}")
            if not options:
                constants = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
                lowest = any((c == torch.finfo(torch.float32).min).any() for c in constants)
                assert lowest == (name == "boolean"), "the behavior has changed: the lowest number"
                assert ("IsNaN" in operators) == (name == "boolean"), "the behavior has changed: the guard"
        assert found["default"] == [seen, seen], "the behavior has changed: the default"
        assert found["asked for"] == ["0", "0"]
        if name == "boolean":
            assert found["dynamo=False"] == ["0", "0"]

mended = run(export(Attention(BOOLEAN, True).eval(), (Q, K, V)), (Q, K, V))
assert all(torch.allclose(outputs, Attention(BOOLEAN)(Q, K, V), atol=1e-5) for outputs in mended)
# A mask without such rows in the example, and with them at run time
model = export(Attention().eval(), (Q, K, V, torch.ones_like(BOOLEAN)))
full, masked = (run(model, (Q, K, V, mask))[0] for mask in (torch.ones_like(BOOLEAN), BOOLEAN))
assert torch.allclose(full, scaled_dot_product_attention(Q, K, V), atol=1e-5)
assert kind(masked) == "mean", "the behavior has changed: masks at run time"
PYTHON
