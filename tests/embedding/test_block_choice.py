"""Block shapes fit the channels: little is stored that is not needed, and maps stay small."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from efcn_sparse import Dilated, Full, Local
from efcn_sparse.embedding import ConvGeometry, EmbeddedConv, Support
from efcn_sparse.embedding.blocks import choose_block_shape, count_stored


class Row(NamedTuple):
    """A layer, the blocks it should get (None: any), and the most it may store for each weight of its support."""

    conv: tuple[int, int, int, int, int, int]  # in, out, kernel, stride, padding, groups
    size: int
    blocks: tuple[int, int] | None
    waste: float


ROWS = {
    "rgb, stride 2": Row((3, 64, 4, 2, 2, 1), 32, (64, 6), 1.0),
    "rgb, stride 1": Row((3, 64, 3, 1, 1, 1), 32, (64, 3), 1.0),
    "patches": Row((3, 64, 16, 16, 0, 1), 64, (64, 48), 1.0),
    "one channel": Row((1, 32, 5, 1, 2, 1), 28, None, 1.5),
    "one channel to few": Row((1, 8, 3, 1, 1, 1), 20, None, 2.5),
    "to one channel": Row((64, 1, 3, 1, 1, 1), 12, None, 2.5),
    "24 and 40": Row((24, 40, 3, 1, 1, 1), 14, (40, 24), 1.0),
    "17": Row((17, 17, 3, 1, 1, 1), 14, None, 1.5),
    "64": Row((64, 64, 3, 1, 1, 1), 14, (64, 64), 1.0),
    "96 to 192": Row((96, 192, 3, 1, 1, 1), 8, (64, 96), 1.0),
    "256 to 512": Row((256, 512, 3, 1, 1, 1), 4, (128, 128), 1.0),
    "prime": Row((131, 131, 3, 1, 1, 1), 5, (131, 131), 1.0),
    "four groups": Row((128, 128, 3, 1, 1, 4), 8, (32, 32), 1.0),
    "depthwise": Row((32, 32, 3, 1, 1, 32), 14, None, 8.0),
}


def _geometry(row: Row) -> ConvGeometry:
    c_in, c_out, kernel, stride, padding, groups = row.conv
    return ConvGeometry(
        c_in, c_out, groups, (row.size,) * 2, (kernel,) * 2, (stride,) * 2, ((padding,) * 2,) * 2, (1, 1)
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_local(row: Row) -> None:
    geometry = _geometry(row)
    chosen = choose_block_shape(geometry, Local())
    assert row.blocks in (None, chosen)
    stored = count_stored(geometry, Local(), chosen) * chosen[0] * chosen[1]
    assert stored <= row.waste * geometry.local_weights


@pytest.mark.parametrize("support", [Dilated(1), Full()], ids=str)
@pytest.mark.parametrize("name", ["rgb, stride 2", "one channel to few", "24 and 40", "64", "four groups"])
def test_other_supports(name: str, support: Support) -> None:
    geometry = _geometry(ROWS[name])
    layer = EmbeddedConv(geometry, support, device="meta")
    assert layer.linear.values.numel() <= 2 * support.entries(geometry)
    assert layer.ties.maps.numel() <= layer.linear.values.numel()


def test_a_choice_of_ones_own() -> None:
    conv = nn.Conv2d(3, 8, 3)
    layer = EmbeddedConv.from_conv(conv, (6, 6), block_shape=(5, 7))
    assert layer.linear.pattern.block_shape == (5, 7)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x), conv(x))


def test_a_wrong_choice() -> None:
    with pytest.raises(ValueError, match=r"^block_shape must be two integers of at least 1, got \(0, 7\)$"):
        EmbeddedConv.from_conv(nn.Conv2d(3, 8, 3), (6, 6), block_shape=(0, 7))
