"""CUDA graphs whose capture may fail without spoiling what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_FAILED: list[torch.cuda.CUDAGraph] = []  # torch's allocator still asks them whether a later capture is theirs


def captured(call: Callable[[], Any], harmless: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """The graph of ``call``.

    Where a capture fails, torch 2.11 leaves its stream the current one and its random numbers in the graph, so that
    every later ``torch.randn`` on the device raises; a capture that succeeds puts that right.

    Args:
        harmless: something that can be captured.

    Raises:
        Exception: what ``call`` raised, or ``RuntimeError`` if it did what cannot be captured.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            call()
    except Exception:
        _FAILED.append(graph)
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            harmless()
        raise
    return graph
