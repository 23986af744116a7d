#!/usr/bin/env bash
# onnx 1.23.2, onnx-ir 1.1.0 and onnxruntime 1.32.0: weights in a graph's sparse_initializer (a SparseTensorProto).
#
# Expected: the runtime refuses them, as sparse things are rarely implemented; the packages of the standard itself, which
# has them as "initializers stored in sparse format", read them, and run and copy the graph.
# Seen: the other way round. onnxruntime runs MatMul, Gemm and Conv with them. onnx.checker passes the model, but with
# full_check=True sees a type that no operator takes; ReferenceEvaluator raises ValueError about a field of another message,
# the version converter calls the input undefined, and the printer leaves the weights out of the text, without a word.
# onnx_ir, on which onnxscript's optimizer stands, drops them as it reads: it logs a line that blames the model, and what
# it writes has no weights.
# A file of block-sparse weights is smaller that way, and best not touched again: optimize, convert and check it first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def make(operator, w):
    """A model of one node whose weights are sparse, by places in the flat array."""
    places = np.flatnonzero(w)
    values, indices = numpy_helper.from_array(w.flat[places], "w"), numpy_helper.from_array(places, "places")
    sparse = helper.make_sparse_tensor(values, indices, w.shape)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * w.ndim) for name in "xy"]
    node = helper.make_node(operator, ["x", "w"], ["y"])
    graph = helper.make_graph([node], "sparse", ends[:1], ends[1:], sparse_initializer=[sparse])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


w = np.kron(np.eye(2), np.arange(1.0, 17).reshape(4, 4)).astype(np.float32)
x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
image, kernel = x.reshape(1, 2, 3, 4), np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
for operator, given, weights, right in (("MatMul", x, w, x @ w), ("Gemm", x, w, x @ w), ("Conv", image, kernel, image)):
    model = make(operator, weights)
    onnx.checker.check_model(model)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": given})
    assert np.allclose(y, right, atol=1e-4)
    print(operator, "is right in onnxruntime")
    converter = onnx.version_converter.convert_version
    for call, more in ((onnx.checker.check_model, [True]), (ReferenceEvaluator, []), (converter, [21])):
        try:
            call(model, *more)
        except Exception as error:
            print(f"  {call.__name__}: {type(error).__name__}: {str(error)[:90]}")
        else:
            raise AssertionError(f"the behavior has changed: {call.__name__} takes it")
    for copy in (onnx.parser.parse_model(onnx.printer.to_text(model)), onnx_ir.to_proto(onnx_ir.from_proto(model))):
        kept = len(copy.graph.sparse_initializer) + len(copy.graph.initializer)
        print(f"  {kept} of 1 weights in the copy")
        assert kept == 0, "the behavior has changed: the weights are kept"
PYTHON
