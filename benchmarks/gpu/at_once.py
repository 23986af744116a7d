"""A pytest plugin: what failed is told when it fails, since a run that is cut off never comes to its report."""

from __future__ import annotations

import pytest

_terminal: list[pytest.TerminalReporter] = []


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        _terminal.append(reporter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and _terminal:
        _terminal[-1].write(f"\n-- {report.nodeid}, {report.when}\n{report.longreprtext}\n")
