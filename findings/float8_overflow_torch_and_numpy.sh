#!/usr/bin/env bash
# torch 2.13.0 and ml_dtypes 0.6.0 (the float8 types of NumPy and JAX): overflow on the way to float8.
#
# Expected: the same bits from both for the same type; float8_e4m3fn has no infinity, so what overflows becomes NaN.
# Seen: torch's float8_e4m3fn saturates, and not only what is finite: 1000 and infinity become 448, its largest number,
# where ml_dtypes has NaN. Of the other types the two agree, and do not saturate: e5m2 has infinity, e4m3fnuz and
# e5m2fnuz have NaN.
# A run that diverges in front of a cast to float8_e4m3fn shows neither inf nor NaN behind it: checks of the loss and
# GradScaler see nothing. And weights converted by torch and by JAX differ. Test for overflow before the cast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 ml_dtypes==0.6.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import math

import ml_dtypes
import numpy as np
import torch

VALUES = [448.0, 464.0, 1000.0, -1000.0, math.inf, math.nan]


def both(name, values):
    by_torch = torch.tensor(values).to(getattr(torch, name)).float().tolist()
    by_numpy = np.array(values, np.float32).astype(getattr(ml_dtypes, name)).astype(np.float32).tolist()
    print(f"{name:16} of {values}\n  torch     {by_torch}\n  ml_dtypes {by_numpy}")
    return [str(value) for value in by_torch], [str(value) for value in by_numpy]


by_torch, by_numpy = both("float8_e4m3fn", VALUES)
assert by_torch == ["448.0", "448.0", "448.0", "-448.0", "448.0", "nan"], "the behavior has changed: torch"
assert by_numpy == ["448.0", "448.0", "nan", "nan", "nan", "nan"], "the behavior has changed: ml_dtypes"
for name in ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"):
    by_torch, by_numpy = both(name, [1000.0, 1e6, -1e6, math.inf, math.nan])
    assert by_torch == by_numpy, "the behavior has changed"
print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__)
PYTHON
