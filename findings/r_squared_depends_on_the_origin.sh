#!/usr/bin/env bash
# torchmetrics 1.9.0, torcheval 0.0.7 and pytorch-ignite 0.5.5 (each the newest on PyPI) with torch 2.13.0: R²
# (R2Score), and ExplainedVariance of torchmetrics.
#
# Expected: R² compares errors with deviations from the mean, so it does not matter where zero lies: latitudes have the
# R² of latitudes minus 52. float32 has 7 digits, enough for a score of 3.
# Seen: all three keep the sums of y and y² in float32, and take n·mean² off in the end. Where the mean is some hundred
# times the deviation, little is left but rounding errors. For latitudes in a city (52.52 ± 0.05 degrees), and a net
# that explains 75%, the scores of eight data sets lie between 0.6 and 1.8; in batches of another size they are others.
# A net that says the mean to everything, which is 0 by definition, has between -1 and 1.7 (for ± 0.02 degrees). Years
# (2000 ± 3) have 0.3 to 0.9, and Julian dates (2460000 ± 100) about 1, all for 0.75.
# Nothing warns, and while the score stays below 1 it shows only beside another library. Doubles help in torchmetrics;
# in torcheval and ignite they don't, as the sums stay float32. Issue 3077 of torchmetrics and pull request 3836 of
# ignite, both open, have single cases ("R2 result > 1"); the documentation of none says so.
# What works: y - c and prediction - c, for a number c near the mean. MeanSquaredError and PearsonCorrCoef are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torcheval==0.0.7 \
    pytorch-ignite==0.5.5 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch

import ignite.metrics.regression
import torcheval.metrics
import torchmetrics

torch.set_num_threads(2)
N, SETS = 20000, 8


class Ignite(ignite.metrics.regression.R2Score):
    def update(self, prediction, y):
        super().update((prediction, y))


METRICS = {
    "torchmetrics": torchmetrics.R2Score,
    "torchmetrics, ExplainedVariance": torchmetrics.ExplainedVariance,
    "torcheval": torcheval.metrics.R2Score,
    "ignite": Ignite,
}


def score(name, prediction, y, size=64):
    metric = METRICS[name]()
    metric.reset()
    for batch in zip(prediction.split(size), y.split(size)):
        metric.update(*batch)
    return float(metric.compute())


def exact(prediction, y):
    prediction, y = prediction.double(), y.double()
    return (1 - (y - prediction).square().sum() / (y - y.mean()).square().sum()).item()


def data(seed, mean, deviation):
    torch.manual_seed(seed)
    y = mean + deviation * torch.randn(N)
    return y + deviation / 2 * torch.randn(N), y


print(*(f"{name} {version(name)}" for name in ("torchmetrics", "torcheval", "pytorch-ignite", "torch")))
for what, mean, deviation in (
    ("latitudes", 52.52, 0.05), ("latitudes", 52.52, 0.02), ("years", 2000, 3), ("Julian dates", 2460000, 100)
):
    sets = [data(seed, mean, deviation) for seed in range(SETS)]
    right = [exact(*pair) for pair in sets]
    assert all(abs(r - 0.75) < 0.01 for r in right)
    print(f"{what}, {mean} ± {deviation}: R² is {min(right):.3f} to {max(right):.3f}")
    for name in METRICS:
        found = torch.tensor([score(name, *pair) for pair in sets])
        error = (found - torch.tensor(right)).abs()
        print(f"    {name:31}: {found.min():.3f} to {found.max():.3f}, off by {error.mean():.3f} on average")
        assert error.mean() > 0.03 and error.max() > 0.1, "the behavior has changed: R² is right"
        if what == "Julian dates":
            assert found.median() > 0.98, "the behavior has changed: Julian dates"

        # Another origin, the same R²
        moved = torch.tensor([score(name, prediction - mean, y - mean) for prediction, y in sets])
        assert (moved - torch.tensor(right)).abs().max() < 2e-3

prediction, y = data(0, 52.52, 0.05)
print("in batches of 64, 100, 256 and 1000:")
for name in METRICS:
    found = [score(name, prediction, y, size) for size in (64, 100, 256, 1000)]
    print(f"    {name:31}: " + ", ".join(f"{f:.3f}" for f in found))
    assert max(found) - min(found) > 0.02, "the behavior has changed: the size of the batches"

sets = [data(seed, 52.52, 0.05) for seed in range(SETS)]
for name in ("torchmetrics", "torcheval", "ignite"):
    errors = [abs(score(name, p.double(), y.double()) - exact(p, y)) for p, y in sets]
    print(f"in float64, latitudes ± 0.05, {name:12}: off by up to {max(errors):.3f}")
    if name == "torchmetrics":
        assert max(errors) < 1e-3
    else:
        assert max(errors) > 0.02, "the behavior has changed: float64 helps"

mean_for_all = []
for seed in range(SETS):
    y = data(seed, 52.52, 0.02)[1]
    constant = torch.full_like(y, y.double().mean().item())
    assert abs(exact(constant, y)) < 1e-6
    mean_for_all.append(score("torchmetrics", constant, y))
print("the mean for all has R² 0; torchmetrics, latitudes ± 0.02:", ", ".join(f"{s:.2f}" for s in mean_for_all))
assert max(map(abs, mean_for_all)) > 0.5, "the behavior has changed: the mean for all"

# What works
prediction, y = data(0, 52.52, 0.05)
mse, pearson = torchmetrics.MeanSquaredError(), torchmetrics.PearsonCorrCoef()
for batch in zip(prediction.split(64), y.split(64)):
    mse.update(*batch)
    pearson.update(*batch)
assert abs(mse.compute() / (prediction.double() - y.double()).square().mean() - 1) < 1e-3
assert abs(pearson.compute() - torch.corrcoef(torch.stack([prediction, y]).double())[0, 1]) < 1e-3
PYTHON
