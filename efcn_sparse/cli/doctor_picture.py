"""The density of each layer's pattern as a picture, with its numbers beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import drawing_style, new_figure, write_figure
from efcn_sparse.planning.density import DensityMap, density_map
from efcn_sparse.sizes import count_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

    from efcn_sparse.embedding.plan import EmbeddingPlan, LayerPlan

_COLUMNS = 4
_TALLEST = 1.6  # a panel's sides differ by no more, however thin the matrix is
_LEAST_SHARE = 1e-3  # where the colors begin
_GREY = "#555555"


def draw_plan(planned: EmbeddingPlan, name: str, path: Path) -> None:
    """Write one panel for each kind of layer, those that are alike together, to a ``.png`` or ``.svg`` file.

    Raises:
        ModuleNotFoundError: matplotlib (the extra ``plot``) is not installed.
    """
    with drawing_style(needed_for="--picture"):
        write_figure(_figure(planned, name), path)


def _figure(planned: EmbeddingPlan, name: str) -> Figure:
    from matplotlib.cm import ScalarMappable

    kinds: dict[Any, list[LayerPlan]] = {}
    for layer in planned.layers:
        kinds.setdefault((layer.geometry, layer.support, layer.block_shape), []).append(layer)
    maps = [density_map(layers[0]) for layers in kinds.values()]
    norm, colors = _scale(maps)
    columns = min(_COLUMNS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = new_figure(0.7 + 3.6 * rows, max(1.2 + 3.1 * columns, 6.2))
    slots = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for layers, density, axes in zip(kinds.values(), maps, slots, strict=False):
        _panel(axes, layers, density, norm, colors)
    for unused in slots:
        unused.set_axis_off()
    palest = min(float(density.share[density.share > 0].min()) for density in maps)
    bar = figure.colorbar(
        ScalarMappable(norm, colors),
        ax=figure.axes,
        extend="min" if palest < _LEAST_SHARE else "neither",
        fraction=0.05,
        shrink=1 / rows,
        anchor=(0, 1),
        aspect=25,
        label="blocks stored (white: none)",
    )
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    bar.ax.minorticks_off()
    supports = sorted({str(layer.support) for layer in planned.layers})
    share = planned.stored_weights / planned.full_weights
    told = (
        f"{count_text(planned.stored_weights)} weights in {count_text(planned.stored_blocks)} blocks, "
        f"{size_text(planned.bytes)}, {share:.2%} of the full matrices"
    )
    figure.suptitle(f"{name}, {' and '.join(supports)}\n{told}", x=0.01, ha="left", fontsize=11)
    return figure


def _panel(axes: Axes, layers: list[LayerPlan], density: DensityMap, norm: LogNorm, colors: Colormap) -> None:
    layer = layers[0]
    out_features, in_features = layer.shape
    height, width = density.share.shape
    block_rows, block_cols = layer.block_shape
    right, bottom = width * density.cell[1] * block_cols, height * density.cell[0] * block_rows
    share = np.ma.masked_equal(density.share.numpy(), 0)
    axes.imshow(share, norm=norm, cmap=colors, interpolation="nearest", aspect="auto", extent=(0, right, bottom, 0))
    axes.set_box_aspect(min(max(out_features / in_features, 1 / _TALLEST), _TALLEST))
    axes.set_xlim(0, in_features)
    axes.set_ylim(out_features, 0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_ticks())
        axis.set_major_formatter(lambda value, _: count_text(value))
    axes.set_xlabel("input unit")
    axes.set_ylabel("output unit")
    axes.set_title(_title(layers), loc="left", fontsize=9, fontweight="bold", pad=40)
    axes.text(0, 1.02, _numbers(layer, density), transform=axes.transAxes, fontsize=7.5, color=_GREY, va="bottom")


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 5, 10], integer=True)


def _title(layers: list[LayerPlan]) -> str:
    name = f"layer {layers[0].name}" if layers[0].name.isdigit() else layers[0].name
    return name + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")


def _numbers(layer: LayerPlan, density: DensityMap) -> str:
    geometry = layer.geometry
    sizes = [
        "×".join(map(str, size))
        for size in ((geometry.in_channels, *geometry.input_size), (geometry.out_channels, *geometry.output_size))
    ]
    shape = "×".join(map(str, layer.block_shape))
    share = layer.stored_weights / layer.full_weights
    sampled = ", rows sampled" if density.sampled else ""
    return (
        f"{sizes[0]} → {sizes[1]}\n{count_text(layer.stored_blocks)} blocks of {shape}: {share:.2%}\n"
        f"{count_text(layer.stored_weights)} weights, {size_text(layer.bytes)}{sampled}"
    )


def _scale(maps: list[DensityMap]) -> tuple[LogNorm, Colormap]:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    least = min(float(density.share[density.share > 0].min()) for density in maps)
    low = min(0.1, 10.0 ** math.floor(math.log10(max(least, _LEAST_SHARE)) + 1e-9))
    shades = colormaps["viridis_r"](np.linspace(0.08, 1.0, 256))  # the palest would be lost on white
    return LogNorm(low, 1.0, clip=True), ListedColormap(shades).with_extremes(bad="white")
