"""Options and the session of ``pytest benchmarks/``; what is measured lives in ``efcn_sparse.measure``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efcn_sparse.measure import report
from efcn_sparse.measure.contest import OURS, Contest
from efcn_sparse.measure.shapes import SHAPES, OpsCase, Shapes
from efcn_sparse.measure.suite import Session, threads_set_to

_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("efcn-sparse benchmarks")
    group.addoption("--shapes", choices=list(SHAPES), default="full", help="what is measured (default: full)")
    group.addoption("--threads", type=int, default=2, help="threads of torch (default: 2)")
    group.addoption("--results", type=Path, default=None, help="write <machine>-<date>.json and .md into this folder")
    group.addoption("--enforce-goals", action="store_true", help="a goal that is not reached fails its test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = list(SHAPES[metafunc.config.getoption("--shapes")].ops.cases())
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture(scope="session")
def shapes(pytestconfig: pytest.Config) -> Shapes:
    return SHAPES[pytestconfig.getoption("--shapes")]


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config, shapes: Shapes) -> Iterator[Session]:
    """The records of this run; the roofline is measured when the first test asks."""
    threads = pytestconfig.getoption("--threads")
    with threads_set_to(threads):
        pytestconfig.stash[_SESSION] = Session(shapes, threads)
        yield pytestconfig.stash[_SESSION]


@pytest.fixture
def compete(benchmark: Callable) -> Callable[[Contest, int], None]:
    """Run a contest under pytest-benchmark: a round's setup is the rivals' turn, its timed call is ours."""

    def run(contest: Contest, rounds: int) -> None:
        contest.warm_up()
        benchmark.pedantic(contest.our_turn, setup=contest.rivals_turn, rounds=rounds)
        rivals = [name for name in contest.contestants if name != OURS]
        benchmark.extra_info["rival's time / ours"] = {name: contest.ratio(name, OURS).median for name in rivals}

    return run


@pytest.fixture
def enforce(pytestconfig: pytest.Config) -> Callable[[bool | None, str], None]:
    """``enforce(met, message)`` fails the test where a goal was missed, if ``--enforce-goals`` asks for that."""

    def check(met: bool | None, message: str) -> None:
        if pytestconfig.getoption("--enforce-goals") and met is False:
            pytest.fail(message, pytrace=False)

    return check


@pytest.fixture
def case_group(benchmark: Callable, case: OpsCase) -> None:
    """Operations of one kind stand together in pytest-benchmark's table."""
    benchmark.group = case.group


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is None or not (session.ops or session.vanilla):
        return
    results = session.results()
    terminalreporter.section("efcn_sparse: ratios within this process")
    terminalreporter.write_line(report.markdown(results))
    directory = config.getoption("--results")
    if directory is not None:
        for path in report.write(results, directory, session.machine.slug):
            terminalreporter.write_line(f"wrote {path}")
