"""A capture that fails leaves the device as it was: checked on a stand-in for torch.cuda that behaves as torch 2.11."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse.measure import gpu_capture as capture


class _Device:
    """Which stream is current, whether random numbers are in a capture, and what runs."""

    def __init__(self) -> None:
        self.stream, self.random_is_captured, self.calls = "main", False, []

    def call(self, name: str) -> None:
        self.calls.append((self.stream, name))

    def fail(self) -> None:
        self.call("fail")
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _Device:
    found = _Device()

    class Graph:
        def __init__(self, graph: object) -> None:
            pass

        def __enter__(self) -> None:
            self.before, found.stream, found.random_is_captured = found.stream, "capture", True

        def __exit__(self, kind: object, *_: object) -> None:
            if kind is not None:  # the end of the capture raises, and what follows it is left out
                raise RuntimeError("operation failed due to a previous error during capture")
            found.stream, found.random_is_captured = self.before, False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(found, "stream", stream))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return found


def test_a_failed_capture_is_told_and_leaves_nothing_behind(device: _Device) -> None:
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture.captured(device.fail, lambda: device.call("harmless"))
    assert device.calls == [("capture", "fail"), ("capture", "harmless")]
    assert (device.stream, device.random_is_captured) == ("main", False)


def test_a_capture_runs_once(device: _Device) -> None:
    capture.captured(lambda: device.call("step"), lambda: device.call("harmless"))
    assert device.calls == [("capture", "step")]
