"""What each warp of a compiled product executes: instructions before its loop, in a round of it, and after it.

    python -m benchmarks.gpu.sass spmm --block 128 --tile 256x128x64 --warps 8 --stages 4 [--members N] [--descriptors]

Kernels are compiled as a launch would, for a GPU that need not be here, and disassembled with the tools Triton carries.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.compile_ahead import constants_of, signature_of
from efcn_sparse.ops.backends.triton.tuning import OPERATIONS, Config

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);")
_LABEL = re.compile(r"^(\.L\w+):")
_BACK = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True)
class Instructions:
    """Instructions of a warp: ``before``, in each round of the loop over K tiles, ``after``; and what it occupies."""

    before: int
    loop: int
    after: int
    registers: int
    shared: int


@functools.lru_cache(maxsize=512)
def instructions(operation: str, height: int, width: int, config: Config, split: bool, arch: int = 90) -> Instructions:
    """Of a bf16 product with that tile; ``config.members`` must be settled."""
    kernel, constants = constants_of(operation, 16, height, width, config)
    constants |= {"SPLIT": split} | ({"HAS_BIAS": False} if operation != "sddmm" else {})
    source = ASTSource(kernel, *signature_of(kernel, constants, "bf16"))
    options = {"num_warps": config.warps, "num_stages": config.stages}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        text, usage = (
            subprocess.run([folder / tool[0], *tool[1:], file.name], capture_output=True, text=True, check=True).stdout
            for tool in (("nvdisasm",), ("cuobjdump", "-res-usage"))
        )
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, usage
    return Instructions(*counted(text), registers=int(found[1]), shared=built.metadata.shared)


def counted(text: str) -> tuple[int, int, int]:
    """Before, in and after the loop with the matrix instructions; what the branches skip is counted, padding is not.

    Raises:
        ValueError: there is no such loop.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(names)
        elif instruction := _INSTRUCTION.match(line):
            names.append(instruction[1])
            target = _BACK.search(instruction[2]) if instruction[1].startswith("BRA") else None
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(names)))
    with_products = [(a, b) for a, b in loops if any("MMA" in name for name in names[a:b])]
    if not with_products:
        raise ValueError("no loop with matrix instructions")
    begin, end = max(with_products, key=lambda loop: sum("MMA" in name for name in names[slice(*loop)]))
    last = max((i for i, name in enumerate(names) if name == "EXIT"), default=len(names))
    return begin, end - begin, max(0, last - end)


def main(arguments: list[str] | None = None) -> int:
    """Print the counts of one kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--block", type=int, required=True, help="side of a block")
    parser.add_argument("--tile", required=True, metavar="MxNxK")
    parser.add_argument("--warps", type=int, default=4)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--descriptors", action="store_true")
    parser.add_argument("--arch", type=int, default=90, help="80, 90 or 100 (default: 90)")
    options = parser.parse_args(arguments)
    sides = (int(side) for side in options.tile.split("x"))
    config = Config(
        *sides, members=options.members, warps=options.warps, stages=options.stages, descriptors=options.descriptors
    )
    print(instructions(options.operation, options.block, options.block, config, False, options.arch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
