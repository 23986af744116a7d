"""Exit statuses of ``efcn-sparse``, and that what the user got wrong is told in one line."""

import importlib
import subprocess
import sys

import pytest
import torch

from efcn_sparse.cli.main import main
from efcn_sparse.cli.relax import outcome

TINY = [
    "relax", "--preset", "digits", "--seeds", "1", "--arms", "cnn", "elcn", "--epochs", "1", "--relax-epochs", "1",
    "--relax-times", "0", "--train-limit", "40", "--test-limit", "40", "--threads", "1", "--no-report",
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["relax", "--preset", "digits", "--lr", "-1"], "error: --lr must be a positive finite number, got -1.0"),
        (["relax", "--preset", "digits", "--lr", "inf"], "error: --lr must be a positive finite number, got inf"),
        *(
            (
                ["relax", "--preset", "digits", "--seeds", given],
                f"argument --seeds: must be how many seeds to run, from 1 to 1000, got {given!r}",
            )
            for given in ("0", "two", "10000000000", "1.5", "²")
        ),
        (
            ["relax", "--preset", "digits", "--relax-times", "31"],
            "error: each of --relax-times must lie in [0, --epochs=30], got 31",
        ),
        (
            ["relax", "--preset", "digits", "--epochs", "100000000000000000000"],
            "error: --epochs must be an integer of at most 1000000, got 100000000000000000000",
        ),
        (
            ["relax", "--preset", "digits", "--snapshots", "2000000000"],
            "error: --snapshots must be an integer of at most 1000, got 2000000000",
        ),
        (
            ["relax", "--preset", "digits", "--snapshots", "3", "--relax-times", "0", "9"],
            "error: --snapshots must be left out beside --relax-times, got 3",
        ),
        (["relax", "--preset", "digits", "--part", "untied:l1=1"], "error: --part must go together in each layer, got"),
        (
            ["relax", "--preset", "digits", "--device", "abacus"],
            "error: --device must be a torch device such as 'cpu' or 'cuda:0', got 'abacus'",
        ),
        (["relax", "--preset", "mnist"], "argument --preset: invalid choice: 'mnist'"),
        (["relax", "--preset", "digits", "--arms", "cnn", "rnn"], "error: each of --arms must be one of"),
        (
            ["relax", "--preset", "digits", "--run-dir", "/dev/null"],
            "--run-dir must be a folder, got the file /dev/null",
        ),
        (
            ["relax", "--preset", "vanilla-cifar10"],
            "--data must be given for uoft-cs/cifar10: pass --data FOLDER",
        ),
        (["relax"], "TASK or --preset must be given, and not both"),
        (["bake"], "invalid choice: 'bake'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(arguments, told, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("efcn-sparse: error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message", "told"),
    [
        (TINY, "dask must be an address", "--dask must be an address"),
        (TINY, "each of parts must be short, got 'run_dir/x'", "each of --part must be short, got 'run_dir/x'"),
        (TINY, "cnn_epochs (30) and train data: lr is low", "--epochs (30) and train data: lr is low"),
        (["report", "x"], "run_dir x is in use", "RUN_DIR x is in use"),
        (TINY, "train raised KeyError: my train_limit", "train raised KeyError: my train_limit"),
        (TINY, "data must be a path, got run_dir", "--data must be a path, got run_dir"),
        (
            ["landscape", "x"],
            "data must be at my.curvature_images, got task",
            "--data must be at my.curvature_images, got task",
        ),
        (
            ["doctor", "x"],
            "cannot embed 'a': layers={'a': None} leaves it, and leave_uncalled=True more",
            "cannot embed 'a': --skip 'a' leaves it, and --leave-uncalled more",
        ),
        (["tune", "x"], "batch must be small", "--batch must be small"),
    ],
)
def test_every_command_calls_arguments_by_its_options(command, message, told, monkeypatch, capsys):
    def fails(args):
        raise ValueError(message)

    importlib.import_module(f"efcn_sparse.cli.{command[0]}")
    monkeypatch.setattr(f"efcn_sparse.cli.{command[0]}.run", fails)
    assert main(command) == 2
    assert capsys.readouterr().err == f"efcn-sparse: error: {told}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here_is_told_before_anything_is_made(tmp_path, capsys):
    assert main([*TINY, "--device", "cuda", "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(
        "efcn-sparse: error: --device must be one that is here, such as 'cpu', got 'cuda': "
    )
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_terminal_prints_plain_lines_and_the_outcome(tmp_path, capsys):
    assert main([*TINY, "--run-dir", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["cnn-seed0", "elcn-seed0-t0"]
    assert lines[2].split() == ["test", "accuracy,", "%", "no", "embedding", "t_w=0"]
    assert lines[-1] == f"run directory: {tmp_path / 'run'}"


def test_a_run_with_an_efcn_ends_with_the_paper_s_findings(tmp_path, capsys):
    arguments = [*TINY, "--preset", "digits-aligned", "--arms", "cnn", "efcn-full", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert "The eFCN stays close to the CNN it came from. This run: agrees. " in capsys.readouterr().out


@pytest.mark.parametrize(("module", "package"), [("matplotlib", "matplotlib"), ("jinja2", "Jinja2")])
def test_without_the_extra_for_reports_the_run_is_whole_and_the_extra_is_named(
    tmp_path, capsys, monkeypatch, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    told = f"a report needs {package}, which is not installed: pip install 'efcn-sparse[plot]'"
    run_dir = str(tmp_path / "run")
    assert main([*TINY[:-1], "--run-dir", run_dir]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: not written; {told}"
    assert main(["report", run_dir]) == 2
    assert capsys.readouterr().err == f"efcn-sparse: error: {told}\n"


def test_without_the_extra_of_a_preset_it_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main([*TINY, "--run-dir", str(tmp_path / "run")]) == 2
    told = "the preset digits needs scikit-learn, which is not installed: pip install 'efcn-sparse[digits]'"
    assert capsys.readouterr().err == f"efcn-sparse: error: {told}\n"
    assert not (tmp_path / "run").exists()


def test_the_outcome_is_the_last_accuracy_with_its_spread(tmp_path):
    from efcn_sparse.training.run.metrics import METRICS

    rows = [
        "cnn,0,,0,0.1,1,1,1,0.5,,,,,,,,1", "cnn,0,,1,0.1,1,1,1,0.9,,,,,,,,1", "cnn,1,,1,0.1,1,1,1,0.8,,,,,,,,1",
        "elcn,0,10,11,0.1,1,1,1,0.25,0,1,0,0,,,,1", "elcn,0,9,10,0.1,1,1,1,0.125,0,1,0,0,,,,1",
    ]  # fmt: skip
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(METRICS), *rows]) + "\n")
    table = [line.split() for line in outcome(tmp_path).splitlines()]
    assert table[0][3:] == ["±", "standard", "deviation", "no", "embedding", "t_w=9", "t_w=10"]
    assert table[1] == ["cnn", "85.0", "±7.1", "-", "-"]
    assert table[2] == ["elcn", "-", "12.5", "25.0"]


def test_help_leaves_the_commands_unloaded():
    script = (
        "import sys; from efcn_sparse.cli.main import main; main(['--help']); "
        "loaded = {name for name in sys.modules if name.startswith('efcn_sparse.cli.')}; "
        "assert loaded == {'efcn_sparse.cli.main'}, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "relax" in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("efcn-sparse ")


def test_an_error_of_ours_is_no_user_error(monkeypatch):
    def fails(args):
        raise AssertionError("a bug")

    monkeypatch.setattr("efcn_sparse.cli.relax.run", fails)
    with pytest.raises(AssertionError, match="a bug"):
        main(TINY)


def test_an_interruption_is_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("efcn_sparse.cli.relax.run", interrupted)
    assert main(TINY) == 130
    assert capsys.readouterr().err == "efcn-sparse: interrupted\n"
