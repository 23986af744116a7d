"""What a schedule moves through memory: its programs in launch order, an L2 that forgets what was used longest ago.

Programs that run at one time advance step by step together; a tile of x, or the blocks of an entry, is one thing to
remember. With few blocks stored it can be less than the least of the work model, which counts all of x as read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from efcn_sparse.ops.backends.triton import plan
from efcn_sparse.ops.backends.triton.tuning import Config

L2_BYTES = 50 << 20
Touch = tuple[tuple[int, int, int], int]  # (kind, which, which), bytes


def hbm_bytes(problem: plan.Problem, config: Config, capacity: int = L2_BYTES) -> int:
    """Bytes read from memory, and results written."""
    sizes, item = problem.sizes(), problem.dtype.itemsize
    if problem.operation == "sddmm":
        programs, stored = _sddmm_programs(problem, config), sizes.blocks * sizes.height * sizes.width
    else:
        programs, stored = _spmm_programs(problem, config), sizes.batch * sizes.outputs
    resident = max(1, problem.device.shared_memory // plan.shared_memory(config, item)) * problem.device.processors
    read, held = 0, 0
    cache: OrderedDict[tuple[int, int, int], int] = OrderedDict()
    wave: list[Iterator[list[Touch]]] = []
    while True:
        while len(wave) < resident and (program := next(programs, None)) is not None:
            wave.append(program)  # a program that has ended makes room for the next
        if not wave:
            return read + stored * item
        running = []
        for program in wave:
            touches = next(program, None)
            if touches is None:
                continue
            running.append(program)
            for key, size in touches:
                if key in cache:
                    cache.move_to_end(key)
                    continue
                read += size
                held += size
                cache[key] = size
                while held > capacity:
                    held -= cache.popitem(last=False)[1]
        wave = running


def _spmm_programs(problem: plan.Problem, config: Config) -> Iterator[Iterator[list[Touch]]]:
    """In the order of ``spmm_kernel``: bands of ``swizzle`` columns, all tiles of the batch in each."""
    rows, todo = plan.super_rows(problem, config.members), plan.spmm_tasks(problem, config)
    item, tile_m = problem.dtype.itemsize, min(config.block_m, problem.batch)
    tiles_m = -(-problem.batch // config.block_m)
    tiles_n = -(-config.members * problem.height // config.block_n)
    cols, blocks = rows.cols.tolist(), (rows.blocks >= 0).sum(1).tolist()
    x_bytes = tile_m * problem.width * item
    block_bytes = problem.height * problem.width * item // tiles_n
    tasks = todo.tasks.tolist()
    columns = len(tasks) * tiles_n

    def program(column: int, tile: int) -> Iterator[list[Touch]]:
        _, first, entries, _ = tasks[column // tiles_n]
        for entry in range(first, first + entries):
            yield [((0, tile, cols[entry]), x_bytes),
                   ((1, entry, column % tiles_n), blocks[entry] * block_bytes)]  # fmt: skip

    for start in range(0, columns, config.swizzle):
        width = min(config.swizzle, columns - start)
        for within in range(width * tiles_m):
            yield program(start + within % width, within // width)


def _sddmm_programs(problem: plan.Problem, config: Config) -> Iterator[Iterator[list[Touch]]]:
    """In the order of ``sddmm_kernel``: stretch after stretch of the batch, all tiles in each."""
    rows, tasks = plan.super_rows(problem, config.members), plan.sddmm_tasks(problem, config).tolist()
    item, width = problem.dtype.itemsize, problem.width
    tiles_n = -(-config.members * problem.height // config.block_n)
    count, stretch = plan.stretches(problem, config, len(tasks) * tiles_n)
    cols = rows.cols.tolist()
    a_bytes = min(config.block_n, config.members * problem.height) * config.block_k * item
    b_bytes = width * config.block_k * item

    def program(task: int, tile_n: int, piece: int) -> Iterator[list[Touch]]:
        group, first, entries, tile_m = tasks[task]
        begin = first + tile_m * config.block_m // width
        end = min(first + entries, first + -(-(tile_m + 1) * config.block_m // width))
        for k in range(piece * stretch, min(problem.batch, (piece + 1) * stretch), config.block_k):
            yield [
                ((0, group * tiles_n + tile_n, k), a_bytes),
                *(((1, cols[entry], k), b_bytes) for entry in range(begin, end)),
            ]

    for piece in range(count):
        for task in range(len(tasks)):
            for tile_n in range(tiles_n):
                yield program(task, tile_n, piece)
