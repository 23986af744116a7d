"""A layer in another runtime, dense and as blocks: the tables of docs/howto/deploy.md.

``python -m experiments.deploy`` exports a layer with 10% of its blocks stored by :func:`efcn_sparse.densify` and by
:func:`efcn_sparse.exportable`, compares what both compute there with the layer, and times them in turn.
Needs ``pip install onnx onnxscript onnxruntime``, or ``openvino``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.measure.timing import OURS, in_turn

SIDES, BLOCKS, BATCHES = (1024, 4096), (16, 32, 64, 128), (1, 32, 256)


def in_onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file, batch = Path(folder) / "model.onnx", torch.export.Dim("batch")
        torch.onnx.export(model, (x,), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {session.get_inputs()[0].name: inputs})[0]


def in_openvino(model: nn.Module, x: Tensor, threads: int) -> Callable[[Any], Any]:
    import openvino

    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", settings)
    return lambda inputs: compiled([inputs])[0]


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    version = importlib.metadata.version(arguments.runtime)
    print(f"{arguments.runtime} {version}, torch {torch.__version__}, {arguments.threads} threads, fp32, 10% stored")
    print("\n| layer | blocks | batch | dense | blocks alone | |\n|---|---|---|---|---|---|")
    for side in SIDES:
        for block in BLOCKS:
            layer = es.SparseLinear(side, side, density=0.1, block_shape=(block, block)).eval()
            there = {
                name: RUNTIMES[arguments.runtime](model, torch.randn(2, side), arguments.threads)
                for name, model in {"dense": es.densify(layer), OURS: es.exportable(layer)}.items()
            }
            for count in BATCHES:
                x = torch.randn(count, side)
                for call in there.values():
                    torch.testing.assert_close(torch.from_numpy(call(x.numpy())), layer(x), rtol=1e-4, atol=1e-4)
                calls = {name: functools.partial(call, x.numpy()) for name, call in there.items()}
                seconds = in_turn(calls, arguments.rounds)
                dense, blocks = (statistics.median(seconds[name]) * 1e3 for name in calls)
                print(
                    f"| {side}×{side} | {block}×{block} | {count} | {dense:.2f} ms | {blocks:.2f} ms "
                    f"| {dense / blocks:.1f}× |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
