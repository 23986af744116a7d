#!/usr/bin/env bash
# onnx 1.23.2 beside onnxruntime 1.32.0: onnx.reference.ReferenceEvaluator, AveragePool and MaxPool with ceil_mode=1.
#
# Expected: the reference implementation of the standard is the oracle; where a runtime differs, the runtime is wrong.
# Seen: the oracle is. AveragePool of 1 to 7 with kernel 3 and stride 3 is 1.5, 4, 6: its first window averages 1 and 2,
# as if the image were padded in front. MaxPool of a 7×7 image with kernel 3, stride 1 and pads 1, where rounding up
# changes nothing, is 9×9, with zeros between the rows; the shape inference of the same package says 7×7. onnxruntime
# (and torch) have 2, 5, 7 and 7×7. Without ceil_mode all agree.
# Who checks an export or a runtime against the reference looks for the fault on the wrong side. The MaxPool is that of
# each Inception block in torchvision's GoogLeNet.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def by_both(operator, x, ceil_mode, **attributes):
    """What the reference and onnxruntime give, and the shape that onnx infers."""
    node = helper.make_node(operator, ["x"], ["y"], ceil_mode=ceil_mode, **attributes)
    shapes = {"x": x.shape, "y": [None] * x.ndim}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "pool", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return (ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0],
            tuple(dim.dim_value for dim in inferred))  # fmt: skip


line = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7)
image = np.tile(line[:, :, None], (1, 1, 7, 1))
average, pads = dict(kernel_shape=[3], strides=[3]), dict(kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
for operator, x, attributes in (("AveragePool", line, average), ("MaxPool", image, pads)):
    reference, runtime, inferred = by_both(operator, x, 0, **attributes)
    assert np.allclose(reference, runtime) and reference.shape == inferred
reference, runtime, _ = by_both("AveragePool", line, 1, **average)
print("AveragePool of 1 to 7: reference", reference.ravel(), "onnxruntime", runtime.ravel())
assert runtime.ravel().tolist() == [2, 5, 7]
assert reference.ravel().tolist() == [1.5, 4, 6], "the behavior has changed"
reference, runtime, inferred = by_both("MaxPool", image, 1, **pads)
print("MaxPool of 7×7: reference", reference.shape, "onnxruntime", runtime.shape, "shape inference", inferred)
assert runtime.shape == inferred == (1, 1, 7, 7)
assert reference.shape == (1, 1, 9, 9), "the behavior has changed"
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
PYTHON
