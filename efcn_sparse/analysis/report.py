"""Figures and a page from a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efcn_sparse.analysis.figures.canvas import Drawing, drawing_style, save
from efcn_sparse.analysis.figures.deviation import draw_deviation
from efcn_sparse.analysis.figures.epochs import draw_curves, draw_leak
from efcn_sparse.analysis.figures.landscape import draw_landscape
from efcn_sparse.analysis.figures.locality import draw_locality
from efcn_sparse.analysis.figures.outcome import draw_final_accuracy, draw_stored_weights
from efcn_sparse.analysis.figures.weights import draw_distance, draw_heat_maps
from efcn_sparse.analysis.landscape import read_landscape
from efcn_sparse.analysis.page import Picture, Section, render_page
from efcn_sparse.analysis.run_data import Run, read_run
from efcn_sparse.analysis.weights import Weights, read_weights
from efcn_sparse.checkpoint.atomic import own_folder, write_text_atomically
from efcn_sparse.importing import require
from efcn_sparse.training.task import Task

_NOTHING_YET = "Nothing has been evaluated yet, so there is nothing to draw."
_NO_LOCALITY = (
    "No locality was measured: no net with off-local weights of their own has been evaluated by this version."
)
_NO_LANDSCAPE = "Paths and curvature have not been measured; efcn-sparse landscape with this folder does it."
_PAGE_PIXELS_PER_INCH = 100


def write_report(run_dir: str | Path, task: Task | None = None) -> Path:
    """Write RUN/figures (PNG and SVG) and RUN/report.html, one file that opens from disk without a network.

    A run that is not complete gets a report of what there is, which says what is missing.

    Args:
        run_dir: the folder that ``efcn-sparse relax`` wrote.
        task: of the run, if it is not a preset's; without it the page has no weights.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``run_dir`` is no run directory, one of its files is damaged, or its figures are a symbolic link.
        ModuleNotFoundError: matplotlib or Jinja2 (the extra ``plot``) is not installed.

    Example:
        >>> write_report("nowhere")
        Traceback (most recent call last):
        ValueError: run_dir must be a run directory with a config.json, got nowhere
    """
    run = read_run(run_dir)
    require("jinja2", package="Jinja2", extra="plot", needed_for="a report")
    with drawing_style():
        weights = read_weights(run, task)
        folder = own_folder(run.path / "figures")
        sections = [_section(folder, *parts) for parts in _contents(run, weights)]
    page = run.path / "report.html"
    write_text_atomically(page, render_page(run, sections))
    return page


def _contents(run: Run, weights: Weights) -> list[tuple[str, list[Drawing], Sequence[str]]]:
    final, curves, deviation = draw_final_accuracy(run), draw_curves(run), draw_deviation(run)
    heat_maps, distance = draw_heat_maps(run, weights), draw_distance(run, weights)
    leak, stored = draw_leak(run), draw_stored_weights(run)
    local = draw_locality(run)
    landscape = draw_landscape(run, read_landscape(run.path))
    no_deviation = () if deviation else ("No embedded arm has been evaluated yet.",)
    return [
        ("Final test accuracy against the relax time", final, () if final else (_NOTHING_YET,)),
        ("Accuracy and loss over the epochs", curves, () if curves else (_NOTHING_YET,)),
        ("Deviation from the CNN subspace", deviation, no_deviation),
        ("Gradient outside the support", leak, () if leak else (_no_leak(run),)),
        ("Stored weights and what they hold", stored, () if stored else (_no_leak(run),)),
        ("Locality as nets leave the CNN", local, () if local else (_NO_LOCALITY,)),
        ("Between the CNN and the nets that left it", landscape, () if landscape else (_NO_LANDSCAPE,)),
        ("Weights of a unit", heat_maps, weights.gaps),
        (
            "Off-local weights by distance",
            distance,
            () if distance else ("No checkpoint could be read; the section before says why.",),
        ),
    ]


def _no_leak(run: Run) -> str:
    if not run.embedded_arms:
        return "No embedded arm has been evaluated yet."
    if any(np.isfinite(trace.columns["leak"]).any() for trace in run.traces):
        return "No gradient fell outside a support."
    if all(arm.support is not None and arm.support.low_rank for arm in run.embedded_arms):
        return "Low-rank arms have no such share: their product follows the gradient outside of the stored blocks."
    return (
        "No gradient was read: no embedded net has taken a step yet, or the run is of a version that did not read it."
    )


def _section(folder: Path, title: str, drawings: list[Drawing], gaps: Sequence[str]) -> Section:
    pictures: list[Picture] = []
    for drawing in drawings:
        png, svg = save(drawing, folder)
        width = round(drawing.figure.get_figwidth() * _PAGE_PIXELS_PER_INCH)
        if drawing.name.endswith("-narrow"):
            pictures[-1] = dataclasses.replace(pictures[-1], narrow=png)
            continue
        inverts = not drawing.name.startswith("weights-")
        pictures.append(Picture(png, svg, drawing.alt, drawing.caption, width, inverts))
    return Section(title, pictures, gaps)
