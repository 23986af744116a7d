"""The report of complete, partial and empty runs: what is written, drawn, told and escaped."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from efcn_sparse.analysis import read_landscape, write_report
from efcn_sparse.analysis.figures import canvas
from efcn_sparse.analysis.landscape_tables import tables
from efcn_sparse.cli.main import main
from efcn_sparse.training.run.metrics import LOCALITY, SUPPORT
from tests.analysis.synthetic import write_landscape, write_run

FIGURES = [
    "final-accuracy", "final-accuracy-narrow", "curves-accuracy", "curves-loss", "deviation-summary",
    "deviation-elcn", "deviation-efcn-dilated2", "deviation-efcn-full", "gradient-outside", "stored-weights",
    "weights-efcn-dilated2", "weights-efcn-full", "distance-norm",
    "distance-rms", "landscape-paths-left", "landscape-paths-cnn", "landscape-barrier", "landscape-curvature",
    "locality-efcn-dilated2", "locality-efcn-full",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _coarse():
    """Fewer pixels: what is tested does not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config):
    run = write_run(tmp_path_factory.mktemp("runs") / "whole <i> & run", config)
    environment = {"cpu": "<script>alert('&')</script>", "cores": 2}
    (run / "environment.json").write_text(json.dumps(environment))
    write_landscape(run, config)
    assert write_report(run) == run / "report.html"
    return run


def _only_cnn(stage):
    return 1 if (str(stage.arm), stage.seed) == ("cnn", 0) else -1


@pytest.fixture(scope="module")
def small(tmp_path_factory, config):
    """Two epochs of one CNN."""
    run = write_run(tmp_path_factory.mktemp("runs") / "small", config, last=_only_cnn)
    for name in ("layers.csv", "environment.json"):
        (run / name).unlink()
    write_report(run)
    return run


class _Page(HTMLParser):
    """The tags, the addresses and the text of a page."""

    void = frozenset({"meta", "img", "br", "link", "source"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in self.void else [tag]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _page(run) -> _Page:
    return _Page((run / "report.html").read_text(encoding="utf-8"))


def test_every_figure_is_there_twice_and_shows_something(whole):
    image = pytest.importorskip("PIL.Image")
    assert sorted(path.name for path in (whole / "figures").iterdir()) == sorted(
        f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg")
    )
    for name in FIGURES:
        pixels = np.asarray(image.open(whole / "figures" / f"{name}.png").convert("L"))
        assert pixels.min() < 100, name
        assert 0.005 < (pixels < 250).mean() < 0.9, name
        root = ElementTree.parse(whole / "figures" / f"{name}.svg").getroot()
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20, name


def test_the_page_stands_alone_and_is_well_formed(whole):
    page = _page(whole)
    assert page.tags.count("img") == len(FIGURES) - 1 == len(FIGURES) - page.tags.count("source")
    assert page.tags.count("h1") == 1
    for address in page.addresses:
        assert address.startswith(("data:image/png;base64,", "#", "figures/"))
        if address.startswith("figures/"):
            assert (whole / address).is_file()
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r'src(set)?="data:[^"]*"', "", text)
    assert "url(" not in text


def test_the_page_opens_with_the_question_the_answer_and_the_paper(whole, small):
    text = " ".join(_page(whole).text.split())
    in_order = (
        r"The question\..*NeurIPS 2019, arXiv 1906\.06766.*Of 3 findings of the paper, this run agrees"
        r".*The eFCN ends above the standard FCN at every relax time\. ?agrees ?eFCN full ends above the FCN at 4 of 4"
        r".*At some relax time the eFCN ends above the CNN\. ?(disagrees|not decided) ?eFCN full ends above the "
        r"CNN of the same epoch at .*The eFCN stays close to the CNN it came from\. ?agrees ?eFCN full ends at δ "
        r".*The words.*eLCN ?The CNN embedded.*eFCN ?The CNN embedded.*tw ?The relax time.*δ ?The deviation"
        r".*Final test accuracy against the relax time"
    )
    assert re.search(in_order, text)
    assert "No eFCN has come to its end, so there is no answer." in _page(small).text


def test_losses_that_are_not_finite_and_a_landscape_that_is_missing_are_told(whole, small):
    text = _page(whole).text
    assert text.count("On 1 of 24 paths a loss is not finite") == 1
    assert text.count("paths a loss is not finite") == 2  # and under the barriers
    assert "finite" in tables(read_landscape(whole)).splitlines()[1]
    assert "efcn-sparse landscape" not in text
    assert "efcn-sparse landscape with this folder does it" in _page(small).text


def test_the_page_is_made_for_dark_and_narrow_screens(whole):
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert '<meta name="color-scheme" content="light dark">' in text
    assert "@media (prefers-color-scheme: dark)" in text
    assert len(re.findall('<img class="keeps"', text)) == 2  # heat maps, whose lightness means something


def test_a_task_of_ones_own_is_no_preset_and_its_optimizer_has_no_settings_here(small, whole, tmp_path, config):
    run = tmp_path / "run"
    shutil.copytree(small, run)
    (run / "config.json").write_text(dataclasses.replace(config, preset="", momentum=0.0).to_json())
    for optimizer, told in (("optimizer", "momentumas the task's own optimizer has it"), ("none", "momentum0.0")):
        (run / "task.json").write_text(json.dumps({"optimizer": optimizer}))
        write_report(run)
        text = _page(run).text
        assert "28 training runs of a task of one's own, not complete" in text
        assert told in text
    assert "28 training runs of the preset digits, all complete" in _page(whole).text


def test_links_in_a_prepared_folder_are_not_followed(small, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(small, run)
    elsewhere.write_text("precious")
    for name in ("report.html", "report.html.tmp", "figures/curves-loss.png", "figures/curves-loss.png.tmp"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(elsewhere)
    write_report(run)
    assert elsewhere.read_text() == "precious"
    assert not any(path.is_symlink() for path in run.rglob("*"))
    shutil.rmtree(run / "figures")
    (tmp_path / "folder").mkdir()
    (run / "figures").symlink_to(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"figures must be a folder, got a symbolic link$"):
        write_report(run)
    assert list((tmp_path / "folder").iterdir()) == []


def test_text_from_the_run_is_escaped(whole):
    page = _page(whole)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert "<script>alert('&')</script>" in page.text
    assert "whole <i> & run" in page.text


def test_a_complete_run_has_no_gaps(whole):
    page = _page(whole)
    assert "all complete" in page.text
    assert not re.search("not complete|missing|No checkpoint|could not be read", page.text)
    headline = (
        r"Final test accuracy \(± one standard deviation\): FCN 0\.6\d\d ± 0\.\d{3}, CNN 0\.9\d\d ± 0\.\d{3}, best"
    )
    assert re.search(headline, page.text)


def test_the_same_numbers_give_the_same_figures(small, tmp_path, config):
    again = write_run(tmp_path / "again", config, last=_only_cnn)
    write_report(again)
    for path in (small / "figures").iterdir():
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes()


def test_a_partial_run_says_what_is_missing(tmp_path, config, caplog):
    def last(stage):
        if stage.seed == 1 or stage.relax_epoch == 12:
            return -1
        return stage.first + 2 if (str(stage.arm), stage.relax_epoch) == ("efcn-full", 4) else stage.last

    config = dataclasses.replace(config, arms=("cnn", "efcn-full"))
    run = write_run(tmp_path / "partial", config, last=last)
    (run / "environment.json").unlink()
    (run / "checkpoints" / "efcn-full-seed0-t1-e4.safetensors").write_bytes(b"torn")
    write_report(run)
    text = _page(run).text
    assert "eFCN full (seed 0, t_w = 4) has reached epoch 6 of 10." in text
    assert "environment.json is missing." in text
    assert "Checkpoints of eFCN full that could not be read: 1. The first is t_w = 1, epoch 4 (midway): " in text
    assert "No checkpoint of eFCN full, t_w = 4, epoch 10 (end)." in text
    (told,) = (record.getMessage() for record in caplog.records)  # on stderr, of what is there and cannot be read
    assert told.startswith("Checkpoints of eFCN full that could not be read: 1. The first is t_w = 1, epoch 4 (midway)")
    assert (run / "figures" / "weights-efcn-full.png").is_file()


def test_a_run_without_evaluations_has_a_page(tmp_path, config):
    run = write_run(tmp_path / "empty", config, last=lambda stage: -1)
    write_report(run)
    text = _page(run).text
    assert "0 of 28 training runs are finished, 28 have not begun." in text
    assert "Nothing has been evaluated yet, so there is nothing to draw." in text
    assert "No eFCN checkpoint has been written yet." in text
    assert list((run / "figures").iterdir()) == []


def test_what_supports_hold_has_a_table(whole, small):
    told = _page(whole).text.partition("Supports")[2]
    assert re.search(r"captured\s*eLCN\s*0\s*3,000\s*0\.\d{3} ± 0\.\d{3}\s*0\.000 ± 0\.000", told)
    assert re.search(r"eFCN full\s*0\s*27,000\s*0\.000 ± 0\.000\s*1\.000 ± 0\.000", told)
    assert "captured" not in _page(small).text


def test_a_run_of_an_older_version_has_a_report_without_what_it_did_not_read(tmp_path, config):
    config = dataclasses.replace(config, seeds=(0,), arms=("cnn", "elcn"), relax_times=(4,))
    run = write_run(tmp_path / "older", config, checkpoints=False)
    for name in ("metrics.csv", "layers.csv"):
        with (run / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [column for column in rows[0] if column not in (*SUPPORT, *LOCALITY)]
        with (run / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    write_report(run)
    text = _page(run).text
    assert text.count("No gradient was read: ") == 2
    assert "It stores" not in text
    assert {path.stem for path in (run / "figures").iterdir()} == {
        "curves-accuracy", "curves-loss", "final-accuracy", "final-accuracy-narrow", "deviation-summary",
        "deviation-elcn",
    }  # fmt: skip


def test_a_run_with_one_arm_has_its_figures(small):
    assert {path.stem for path in (small / "figures").iterdir()} == {
        "curves-accuracy", "curves-loss", "final-accuracy", "final-accuracy-narrow"
    }  # fmt: skip
    text = _page(small).text
    assert "layers.csv is missing" in text
    assert "No embedded arm has been evaluated yet." in text


def test_the_command_prints_the_page(small, capsys):
    assert main(["report", str(small)]) == 0
    assert capsys.readouterr().out == f"{small / 'report.html'}\n"


def test_the_command_refuses_what_is_no_run_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"efcn-sparse: error: RUN_DIR must be a run directory with a config.json, got {tmp_path}\n"


def test_without_matplotlib_the_message_names_the_extra(small):
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from efcn_sparse.cli.main import main\n"
        "raise SystemExit(main(['report', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(small)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "efcn-sparse: error: a report needs matplotlib, which is not installed: pip install 'efcn-sparse[plot]'\n"
    )


def test_reports_leave_matplotlibs_settings_alone(small):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(small)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
