import multiprocessing
import time

import pytest

from efcn_sparse.measure import machine, report
from efcn_sparse.measure.machine import CpuClock


def test_what_others_took_is_what_all_took_less_our_own(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    start, end = CpuClock(0.0, 100.0, 10.0), CpuClock(10.0, 112.0, 18.0)
    assert end.others_since(start) == pytest.approx(0.2)


def test_our_own_work_does_not_count_as_others():
    if (start := CpuClock.now()) is None:
        pytest.skip("this system does not tell")
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    child = multiprocessing.get_context("spawn").Process(target=sum, args=(range(10**6),))
    child.start()
    child.join()
    end = CpuClock.now()
    assert end.own - start.own >= 0.2
    assert end.everyone - start.everyone >= 0.15  # counted in ticks of 10 ms


def test_a_slug_is_fit_for_a_file_name():
    assert machine.describe(1).slug.replace("-", "").isalnum()


def test_a_busy_machine_is_named_in_the_report():
    page = {share: report._load(share) for share in (None, 0.01, 0.5)}
    assert "not for the record" in page[0.5]
    assert "not for the record" not in page[0.01]
    assert page[None] == ""
