"""What ``torch.autocast`` has to be told."""

from __future__ import annotations

import torch


def weights_were_written() -> None:
    """Call after writing into parameters that torch's own layers multiply by.

    While ``torch.autocast`` is entered it keeps the 16-bit copy that it made of a weight, and does not notice writes.
    """
    torch.clear_autocast_cache()
