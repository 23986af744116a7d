"""Where the measured rates of this machine are kept between calls, and whether what is kept there still holds."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from efcn_sparse.checkpoint.atomic import write_text_atomically
from efcn_sparse.measure import machine
from efcn_sparse.planning.duration import Rates
from efcn_sparse.planning.work import Operation

FORMAT = 1


@dataclass(frozen=True)
class KeptRates:
    """What was found in the file.

    Attributes:
        rates: None where there are none that hold here.
        reason: why there are none; empty where there are.
        date: when they were measured, ISO 8601; empty where there are none.
    """

    rates: Rates | None
    reason: str = ""
    date: str = ""


def rates_path() -> Path:
    """The file for torch's present number of threads: in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    Source: the XDG Base Directory Specification.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return folder / "efcn_sparse" / f"rates-threads{torch.get_num_threads()}.json"


def identity() -> dict[str, str]:
    """What rates depend on: the processor, the threads, and what runs on it."""
    here = machine.describe(torch.get_num_threads())
    return {
        "processor": here.cpu,
        "instructions": f"{here.capability} {here.onednn_max_cpu_isa}".strip(),
        "cores": str(here.cores),
        "threads": str(here.threads),
        "kernels": here.extension,
        "torch": here.versions["torch"],
        "efcn_sparse": here.versions["efcn_sparse"],
    }


def load_rates(path: Path | None = None) -> KeptRates:
    """The rates that are kept, if they are of this machine, these threads and these versions."""
    path = rates_path() if path is None else path
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return KeptRates(None, f"there is no {path}")
    except (OSError, ValueError) as error:
        return KeptRates(None, f"{path} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(told, dict) or told.get("format") != FORMAT or not isinstance(told.get("identity"), dict):
        return KeptRates(None, f"{path} is of another format")
    for name, here in identity().items():
        there = told["identity"].get(name)
        if there != here:
            return KeptRates(None, f"{path} is of other {name}: {there}, here {here}")
    try:
        return KeptRates(_checked(told["rates"]), date=str(told["date"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return KeptRates(None, f"{path} is damaged: {error!r}")


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Write the rates with this machine's identity and the date; the file is the old one or the new one at any moment.

    Returns:
        Where they are.
    """
    path = rates_path() if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    told = {"format": FORMAT, "identity": identity(), "date": date, "rates": asdict(rates)}
    write_text_atomically(path, json.dumps(told, indent=1) + "\n")
    return path


def _checked(told: Mapping[str, Any]) -> Rates:
    plain = {name: _positive(told[name]) for name in ("dense", "bandwidth", "first_touch", "call")}
    products: dict[str, dict[Operation, float]] = {}
    for key, rates in told["products"].items():
        products[key] = {operation: _positive(rate) for operation, rate in rates.items()}
    return Rates(products, **plain)


def _positive(number: object) -> float:
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < math.inf:
        raise ValueError(f"a rate must be positive, got {number!r}")
    return float(number)
