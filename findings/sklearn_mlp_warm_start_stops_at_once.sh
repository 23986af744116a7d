#!/usr/bin/env bash
# scikit-learn 1.9.1 (the newest on PyPI): MLPRegressor and MLPClassifier with warm_start=True, fitted a second time.
#
# Expected: "reuse the solution of the previous call to fit as initialization", as documented: the second fit starts
# from these weights, and then is a fit. It stops when it no longer improves, or with a ConvergenceWarning at max_iter;
# and early_stopping=True holds out data, and ends with the weights of the best epoch, as it does in the first fit.
# Seen: no error, no warning, and three times not. (1) The count of epochs without improvement, and the best loss or
# score, are those of the last fit. Once a fit has stopped by itself, each later one stops after its first epoch: a net
# that is to go on with other data hardly moves, and no ConvergenceWarning is raised. Below, on new data, R² goes from
# 0.41 to 0.62 in a fit of one epoch (n_iter_ = 1), where a new net, from nothing, comes to 0.98; accuracy of a
# classifier likewise. If max_iter has ended the first fit, the second ends after 11 epochs (n_iter_no_change and one),
# unless the loss on the new data falls below the lowest one on the old data.
# (2) With early_stopping, after a first fit the weights and the copy of the best weights are the same arrays. A second
# fit writes into both, and unless it beats the best score of the first, what it "restores" is the last epoch;
# best_validation_score_ stays that of the old data, and belongs to no net that is left.
# (3) With an integer as random_state the data are split anew, in another way, since the first fit has drawn its weights
# before the split. 92% of what is held out has been trained on: the best validation score rises from 0.64 to 0.85 on
# the same data, and R² on new data falls.
# So a pre-trained net looks like one that does not transfer, and a second fit like a better one. Not documented. A
# search for issues found those on max_iter and n_iter_ after a warm start (16812, 24764; closed), and none of these.
# What works: a loop of partial_fit, which makes an epoch per call whatever the count is, with a hold-out of one's own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import warnings
from importlib.metadata import version

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor


def data(count, seed, shift=0.0, noise=0.0, classes=False):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, 5))
    outputs = np.sin(2 * inputs[:, 0] + shift) + inputs[:, 1] * inputs[:, 2] + noise * generator.normal(size=count)
    return inputs, (outputs > 0).astype(int) if classes else outputs


def net(cls=MLPRegressor, **options):
    defaults = dict(hidden_layer_sizes=(64,), random_state=0, warm_start=True, max_iter=1000, learning_rate_init=0.01)
    return cls(**defaults | options)


print(f"scikit-learn {version('scikit-learn')}")
warnings.simplefilter("error", ConvergenceWarning)
print("(1) a fit, and a second one on other data")
for cls, options in (
    (MLPRegressor, {}), (MLPRegressor, {"early_stopping": True}),
    (MLPClassifier, {}), (MLPClassifier, {"early_stopping": True}),
):
    classes = cls is MLPClassifier
    old, new, test = (data(1000, s, shift, 0.3 * (s == 2), classes) for s, shift in ((1, 0), (2, 1.5), (3, 1.5)))
    fresh = net(cls, **options).fit(*new)
    model = net(cls, **options).fit(*old)
    epochs, before = model.n_iter_, model.score(*test)
    model.fit(*new)
    second, after = model.n_iter_, model.score(*test)
    looped = net(cls, **options | {"early_stopping": False}).fit(*old)
    for _ in range(fresh.n_iter_):
        looped.partial_fit(*new)
    print(f"  {cls.__name__:13} {options}: {epochs} epochs, then {second}: score {before:.3f} to {after:.3f}; "
          f"new net {fresh.score(*test):.3f} in {fresh.n_iter_} epochs; partial_fit {looped.score(*test):.3f}")
    assert second == 1 and fresh.n_iter_ > 20, "the behavior has changed: epochs of the second fit"
    assert after < fresh.score(*test) - 0.04, "the behavior has changed: the second fit trains"
    assert abs(looped.score(*test) - fresh.score(*test)) < 0.04

warnings.simplefilter("ignore", ConvergenceWarning)
old, new, test = data(1000, 1), data(1000, 2, 1.5, 0.3), data(1000, 3, 1.5)
cut = net(max_iter=20).fit(*old).set_params(max_iter=1000).fit(*new)
print(f"  after a first fit that max_iter has ended: {cut.n_iter_} epochs, {cut.score(*test):.3f}")
assert cut.n_iter_ == 11 and cut.score(*test) < 0.92, "the behavior has changed: the best loss"

print("(2) early stopping: the last of the validation scores, the best, and that of the net")


def held_out(new, first):
    """What fit holds out: in the first fit it draws the weights, then splits; in a later one it splits at once."""
    random = np.random.RandomState(0)
    if first:
        for inputs, outputs in ((5, 64), (64, 1)):
            random.uniform(size=inputs * outputs + outputs)
    rows = train_test_split(np.arange(len(new[0])), random_state=random, test_size=0.1)[1]
    return rows, (new[0][rows], new[1][rows])


old, noisy = data(1000, 1), data(1000, 4, 0.7, 1.0)
for first in (True, False):
    model = net(early_stopping=True, max_iter=35)
    if not first:
        model.fit(*old)
    start = 0 if first else len(model.validation_scores_)
    model.fit(*noisy)
    scores, own = model.validation_scores_[start:], model.score(*held_out(noisy, first)[1])
    print(f"  {'first ' if first else 'second'} fit: {scores[-1]:.4f}, {max(scores):.4f}, {own:.4f}; "
          f"best_validation_score_ {model.best_validation_score_:.4f}")
    assert max(scores) > scores[-1] + 0.01
    if first:
        assert abs(own - max(scores)) < 1e-9 and model.best_validation_score_ == max(scores)
    else:
        assert abs(own - scores[-1]) < 1e-9, "the behavior has changed: the weights of the best epoch"
        assert model.best_validation_score_ > max(scores) + 0.1, "the behavior has changed: the best score"

print("(3) early stopping, the same data again")
same, other = data(600, 1, noise=0.5), data(2000, 9)
model = net(hidden_layer_sizes=(128,), early_stopping=True)
best, outside = [], []
for _ in range(2):
    model.fit(*same)
    best.append(model.best_validation_score_)
    outside.append(model.score(*other))
rows = [held_out(same, first)[0] for first in (True, False)]
shared = np.isin(rows[1], rows[0]).mean()
print(f"  {shared:.0%} of the rows held out in both; best validation score {best[0]:.3f}, then {best[1]:.3f}; "
      f"new data {outside[0]:.3f}, then {outside[1]:.3f}")
assert shared < 0.2 and best[1] > best[0] + 0.15, "the behavior has changed: the second split"
assert outside[1] < outside[0]
PYTHON
