import argparse
import json

import pytest

from efcn_sparse.cli import bench
from efcn_sparse.measure import report


def _run(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", *arguments])
    return args.func(args)


def test_it_writes_what_it_prints(tmp_path, capsys):
    out, folder = tmp_path / "out.json", tmp_path / "results"
    assert _run("--tiny", "--suite", "ops", "--threads", "1", "--json", str(out), "--results", str(folder)) == 0
    results = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert printed == report.markdown(results)
    [page] = folder.glob("*.md")
    assert page.read_text() == printed
    assert len(results["ops"]) == 12
    assert results["vanilla"] is None
    assert results["machine"]["threads"] == 1
    assert all(record["goal"] is None and record["roofline_fraction"] > 0 for record in results["ops"])


def test_bad_arguments_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
        _run("--threads", "0")
    missing = tmp_path / "no" / "out.json"
    with pytest.raises(ValueError, match="--json must lie in a folder that is there"):
        _run("--json", str(missing))
