"""Where blocks and their masks come from: a mask of entries, or chance."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import torch
from torch import Tensor

from efcn_sparse.pattern.structure import grid_of

_MOST_SHUFFLED = 1 << 26


def blocks_of_mask(mask: Tensor, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """``(rows, cols, entries)`` of the blocks of ``mask`` that hold a true entry, in row-major order.

    Args:
        mask: bool ``[out, in]``.

    Returns:
        int64 ``[n]`` twice, and bool ``[n, block_rows, block_cols]``.
    """
    block_rows, block_cols = block_shape
    rows, cols = grid_of(mask.shape, block_shape)
    padding = (0, cols * block_cols - mask.shape[1], 0, rows * block_rows - mask.shape[0])
    tiles = torch.nn.functional.pad(mask, padding).view(rows, block_rows, cols, block_cols).transpose(1, 2)
    row, col = tiles.any(-1).any(-1).nonzero(as_tuple=True)
    return row, col, tiles[row, col]


def unique_masks(entries: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(mask_index, masks)`` that store each distinct partial block once.

    Args:
        entries: bool ``[n, block_rows, block_cols]``: the entries in the support.
        inside: the same shape: the entries inside the matrix, or None if all of them are.
    """
    outside = ~entries if inside is None else ~entries & inside
    partial = outside.flatten(1).any(1)
    if not bool(partial.any()):
        return entries.new_empty(0, dtype=torch.int32), entries.new_empty((0, *entries.shape[1:]), dtype=torch.uint8)
    masks, which = torch.unique(entries[partial].to(torch.uint8).flatten(1), dim=0, return_inverse=True)
    index = torch.full((entries.shape[0],), -1, dtype=torch.int32, device=entries.device)
    index[partial] = which.to(torch.int32)
    return index, masks.view(-1, *entries.shape[1:])


def canonical_masks(index: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The same masks each once, in lexicographic order, without those that are unused or whole.

    So patterns with the same masks are equal, however they were numbered; the transposed pattern's order differs too.
    """
    if masks.shape[0] == 0:
        return index.to(torch.int32), masks
    whole = masks.flatten(1).bool().all(1)
    masked = (index >= 0) & ~whole[index.clamp(min=0)]
    used = torch.unique(index[masked])
    renumbered = torch.full((masks.shape[0],), -1, dtype=torch.int32, device=index.device)
    if used.numel():
        once, which = torch.unique(masks[used].flatten(1), dim=0, return_inverse=True)
        renumbered[used] = which.to(torch.int32)
        masks = once.view(-1, *masks.shape[1:])
    else:
        masks = masks[:0]
    return torch.where(masked, renumbered[index.clamp(min=0)], -1), masks


def draw_blocks(total: int, density: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """int64 ``[round(density * total)]``: numbers below ``total``, uniformly without repetition, in any order.

    A large and sparse grid is not shuffled whole: numbers are drawn until enough of them differ, and some of these are
    taken. No set of numbers is then favored over another of its size, since none is by the draws.
    """
    wanted = round(density * total)
    if total <= _MOST_SHUFFLED or density > 0.5:
        return torch.randperm(total, generator=generator, device=device)[:wanted]
    found = torch.empty(0, dtype=torch.int64, device=device)
    while found.numel() < wanted:
        more = int(1.2 * (wanted - found.numel())) + 16
        drawn = torch.randint(total, (more,), generator=generator, device=device)
        found = torch.unique(torch.cat([found, drawn]))
    return found[torch.randperm(found.numel(), generator=generator, device=device)[:wanted]]


def covering(
    blocks: Tensor, grid: tuple[int, int], fill: Callable[[Tensor, Tensor], Tensor], order: Callable[[], Tensor]
) -> Tensor:
    """``blocks`` with one in each block row and block column that had none, and without as many of the others.

    Law: there are as many as there were, or ``max(grid)`` if that is more.

    Args:
        blocks: int64: places in the grid, row by row, each once.
        fill: the places to add for block rows and block columns without one.
        order: int64: the indices of ``blocks``, those that may go first coming first.
    """
    rows, cols = grid
    if 0 in grid:
        return blocks
    bare_rows = (torch.bincount(blocks // cols, minlength=rows) == 0).nonzero().squeeze(1)
    bare_cols = (torch.bincount(blocks % cols, minlength=cols) == 0).nonzero().squeeze(1)
    if not bare_rows.numel() and not bare_cols.numel():
        return blocks
    added = fill(bare_rows, bare_cols).tolist()
    stored = blocks.tolist()
    stored = [divmod(stored[k], cols) for k in order().tolist()] + [divmod(place, cols) for place in added]
    return torch.tensor(
        [row * cols + col for row, col in _thinned(stored, len(added))], dtype=torch.int64, device=blocks.device
    )


def _thinned(stored: list[tuple[int, int]], excess: int) -> list[tuple[int, int]]:
    """``stored`` without ``excess`` blocks, the first ones first, as far as all of its rows and columns stay."""
    in_row, in_col = Counter(row for row, _ in stored), Counter(col for _, col in stored)
    stays = []
    for row, col in stored:
        if excess and in_row[row] > 1 and in_col[col] > 1:
            in_row[row], in_col[col], excess = in_row[row] - 1, in_col[col] - 1, excess - 1
        else:
            stays.append((row, col))
    if not excess:
        return stays
    # Now each block is the only one of its row or of its column. One that shares its row and one that shares its column
    # may go together, for the block where the line of the one and the line of the other meet.
    in_long_rows = deque(block for block in stays if in_row[block[0]] > 1)
    in_long_cols = deque(block for block in stays if in_col[block[1]] > 1)
    kept = set(stays)
    while excess and in_long_rows and in_long_cols:
        (row, lone_col), (lone_row, col) = in_long_rows[0], in_long_cols[0]
        if in_row[row] > 1 and in_col[col] > 1:
            in_row[row], in_col[col], excess = in_row[row] - 1, in_col[col] - 1, excess - 1
            kept.difference_update([in_long_rows.popleft(), in_long_cols.popleft()])
            kept.add((lone_row, lone_col))
        else:
            (in_long_cols if in_row[row] > 1 else in_long_rows).popleft()
    return sorted(kept)


def cover_at_random(blocks: Tensor, grid: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """:func:`covering` with blocks drawn by chance."""

    def shuffled(count: int) -> Tensor:
        return torch.randperm(count, generator=generator, device=blocks.device)

    def fill(bare_rows: Tensor, bare_cols: Tensor) -> Tensor:
        rows, cols = bare_rows[shuffled(bare_rows.numel())], bare_cols[shuffled(bare_cols.numel())]
        more = rows.numel() - cols.numel()
        others = torch.randint(grid[more > 0], (abs(more),), generator=generator, device=blocks.device)
        rows, cols = (rows, torch.cat([cols, others])) if more > 0 else (torch.cat([rows, others]), cols)
        return rows * grid[1] + cols

    return covering(blocks, grid, fill, lambda: shuffled(blocks.numel()))
