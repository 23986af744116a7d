#!/usr/bin/env bash
# onnx2torch 1.5.15 (the newest on PyPI) with onnx 1.23.2, onnxruntime 1.32.0 and torch 2.13.0.
#
# Expected: the converted module computes what the ONNX graph does, or the conversion raises NotImplementedError, as it
# does for RoiAlign with mode="max" and for asymmetric padding of AveragePool.
# Seen: no error, no warning, and another function. (1) CumSum without the attribute reverse, which is 0 then, sums from
# the end; torch.onnx.export(dynamo=False) writes cumsum so. (2) ReduceMax, ReduceMin and ReduceProd over several
# negative axes without keepdims reduce other axes, so amax((-2, -1)) does. (3) NonZero comes transposed, and torch's
# export of nonzero has a Transpose behind it. (4) The outputs of the graph are not looked at, just the nodes they come
# from: where only the indices of TopK are an output (argsort, topk), one gets values and indices, and where they come
# first, they come second. (5) A slope of PRelu that belongs to the last axis is taken for one of the channels if there
# are as many. (6) IsInf ignores detect_negative and detect_positive; ConvTranspose ignores output_shape, and its output
# is smaller; Resize-10 with "linear" has other coordinates. (7) The module is in training mode: BatchNormalization, of
# which the graph has the one for inference, uses and updates the statistics of the batch until .eval() is called.
# onnxruntime computes all of them as the standard says. The repository's list of operators has CumSum, the reductions,
# TopK, PRelu and BatchNormalization as supported, without such restrictions, and IsInf and NonZero as not supported,
# though they are converted. We found no issue. Right are reverse=0 where it is written, axes counted from the front,
# and keepdims.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx2torch==1.5.15 onnx==1.23.2 onnxruntime==1.32.0 \
    torch==2.13.0 torchvision==0.28.0 numpy
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io
import warnings
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

try:
    import torchvision
except RuntimeError:  # beside a torch for CPUs, a torchvision for GPUs lacks its operators, which nothing here calls
    for name in ("register_fake", "register_autograd"):
        setattr(torch.library, name, lambda *_, **__: lambda function: function)
    import torchvision

from onnx2torch import convert

print(*(f"{name} {version(name)}" for name in ("onnx2torch", "onnx", "onnxruntime", "torch")))
torch.manual_seed(0)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def as_list(outputs):
    return [output.detach().numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]


def same(ones, others):
    return len(ones) == len(others) and all(
        one.shape == other.shape and np.allclose(one, other, atol=1e-4) for one, other in zip(ones, others)
    )


def of_torch(function, x):
    """The ONNX graph that torch writes."""
    module = function if isinstance(function, nn.Module) else Function(function)
    file = io.BytesIO()
    torch.onnx.export(module.eval(), (x,), file, dynamo=False, opset_version=13)
    return onnx.load_from_string(file.getvalue())


def of_node(operation, x, *constants, opset=13, outputs=("y",), picked=None, **attributes):
    names = [f"constant_{i}" if c is not None else "" for i, c in enumerate(constants)]
    held = [numpy_helper.from_array(np.asarray(c), n) for n, c in zip(names, constants) if n]
    node = helper.make_node(operation, ["x", *names], list(outputs), **attributes)
    graph = helper.make_graph(
        [node], "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_empty_tensor_value_info(name) for name in picked or outputs], held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model


def look(name, model, x, right, expected=None):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    by_runtime = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        module = convert(model)
    found = as_list(module(x))
    print(f"{name:46}: {'right' if same(found, by_runtime) else 'WRONG'}, {[o.shape for o in found]} by onnx2torch, "
          f"{[o.shape for o in by_runtime]} by onnxruntime")
    assert expected is None or same(expected, by_runtime)
    assert same(found, by_runtime) == right, f"the behavior has changed: {name}"
    return found, by_runtime


def both(name, function, x, right=False):
    return look(name, of_torch(function, x), x, right, as_list(function(x)))


x = torch.randn(2, 3, 4, 3)

# (1)
found, _ = both("cumsum(1)", lambda x: x.cumsum(1), x)
assert same(found, as_list(x.flip(1).cumsum(1).flip(1))), "the behavior has changed: not from the end"
axis = np.array(1)
look("CumSum, reverse=0 written", of_node("CumSum", x, axis, reverse=0), x, True, as_list(x.cumsum(1)))
look("CumSum, reverse=1 written", of_node("CumSum", x, axis, reverse=1), x, True, found)

# (2)
for name in ("ReduceMax", "ReduceMin", "ReduceProd"):
    look(f"{name}, axes -2 and -1", of_node(name, x, axes=[-2, -1], keepdims=0), x, False)
    look(f"{name}, axes 2 and 3", of_node(name, x, axes=[2, 3], keepdims=0), x, True)
    look(f"{name}, axes -2 and -1, keepdims", of_node(name, x, axes=[-2, -1], keepdims=1), x, True)
found, _ = both("amax((-2, -1))", lambda x: x.amax((-2, -1)), x)
assert same(found, as_list(x.amax((1, 2)))), "the behavior has changed: the other axes"
look("ReduceMean, axes -2 and -1", of_node("ReduceMean", x, axes=[-2, -1], keepdims=0), x, True)

# (3)
found, _ = both("nonzero()", lambda x: x.relu().nonzero(), x)
assert same(found, as_list(x.relu().nonzero().T)), "the behavior has changed: not transposed"

# (4)
both("topk(2).indices", lambda x: x.topk(2).indices, x)
both("sort().indices", lambda x: x.sort().indices, x)
found, other = both("indices and values of topk(2)", lambda x: tuple(x.topk(2))[::-1], x)
assert same(found, other[::-1]), "the behavior has changed: the order"
both("values and indices of topk(2)", lambda x: tuple(x.topk(2)), x, True)
parts = {"axis": 1, "outputs": ("a", "b", "c")}
look("Split, its outputs in another order", of_node("Split", x, picked=("c", "a"), **parts), x, False)
look("Split, all its outputs", of_node("Split", x, **parts), x, True)

# (5)
slope = np.float32([0.1, 0.2, 0.3])
found, _ = look("PRelu, slope [3] of the last axis", of_node("PRelu", x, slope), x, False)
assert same(found, as_list(nn.functional.prelu(x, torch.from_numpy(slope)))), "the behavior has changed: channels"
look("PRelu, slope [3, 1, 1] of the channels", of_node("PRelu", x, slope[:, None, None]), x, True)

# (6)
infinite = torch.tensor([float("inf"), -float("inf"), 1.0])
look("IsInf, detect_negative=0", of_node("IsInf", infinite, opset=10, detect_negative=0), infinite, False)
look("IsInf, detect_positive=0", of_node("IsInf", infinite, opset=10, detect_positive=0), infinite, False)
look("IsInf", of_node("IsInf", infinite, opset=10), infinite, True)
kernel = torch.randn(3, 2, 3, 3).numpy()
sized = of_node("ConvTranspose", x, kernel, strides=[2, 2], output_shape=[10, 8])
look("ConvTranspose, output_shape 10×8", sized, x, False)
look("ConvTranspose", of_node("ConvTranspose", x, kernel, strides=[2, 2]), x, True)
twice = np.float32([1, 1, 2, 2])
look("Resize-10, linear", of_node("Resize", x, twice, opset=10, mode="linear"), x, False)
look("Resize-13, linear", of_node("Resize", x, None, twice, mode="linear"), x, True)

# (7)
net = nn.BatchNorm2d(3)
net.running_mean.fill_(1)
net.running_var.fill_(4)
model = of_node("BatchNormalization", x, *(t.detach().numpy() for t in (
    net.weight, net.bias, net.running_mean, net.running_var)), opset=15)
look("BatchNormalization", model, x, False, as_list(net.eval()(x)))
module = convert(model)
print("training mode after the conversion:", module.training)
assert module.training, "the behavior has changed: evaluation mode"
assert same(as_list(module.eval()(x)), as_list(net(x)))

# What raises
uneven = of_node("AveragePool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
boxes = np.float32([[0, 0, 2, 2]]), np.int64([0])
for model in (uneven, of_node("RoiAlign", x, *boxes, opset=16, mode="max")):
    try:
        convert(model)
        raise AssertionError("the behavior has changed: it is converted")
    except NotImplementedError as error:
        print("raised:", error)
PYTHON
