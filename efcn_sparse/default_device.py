"""Where tensors are made that nobody asks for."""

from __future__ import annotations

import contextlib

import torch


def on_cpu() -> contextlib.AbstractContextManager[object]:
    """Structure and images are made on the CPU, whatever the default device is.

    A context of torch's goes through Python for each operation, so there is none where it changes nothing.
    """
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
