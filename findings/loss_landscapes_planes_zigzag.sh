#!/usr/bin/env bash
# loss-landscapes 3.0.6 (the newest on PyPI) with torch 2.13.0: the losses on a line or plane around a net.
#
# Expected: planes are regular grids; `distance` is the "maximum distance in parameter space from the start point", as
# documented; random directions point anywhere; and a function that returns losses leaves the net as it is.
# Seen: none of it, without a word. (1) In planar_interpolation and random_plane each second column lies one step
# lower along the second direction, 0 to n - 1 beside 1 to n: the walk goes up one column and down the next. A bowl
# becomes a washboard, and its bottom a zigzag. (2) distance divides: at the default 0.1, random_line goes to ten times
# the norm of the weights, and 10 goes a tenth of it. (3) The numbers of a random direction are uniform in [0, 1): all
# weights grow along a line, and two directions are nearly the same one, with cosines of 0.7 and more. (4) By default
# (deepcopy_model=False; True is documented "to avoid aliasing") the net itself is walked and left where the walk ends,
# in a corner of the plane or at the other model, and requires_grad is off for its parameters and those of the other.
# The repository has (3) as issue 4, open, and mended (2) in 2019 without a release; its (1) is the same, and undocumented.
# Roughness, sharpness and distances read off such a figure are those of the walk. losses[::2, :-1] and losses[1::2, 1:]
# together are a grid; pass deepcopy_model=True, and 1 / distance.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check loss-landscapes==3.0.6 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy
from importlib.metadata import version

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics import Loss, Metric
from torch import nn
from torch.nn.utils import parameters_to_vector


class Place(Metric):
    """Where the net is, in place of its loss."""

    def __call__(self, model):
        return np.concatenate([p.numpy().ravel() for p in model.get_module_parameters()])


def weights(*numbers):
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([numbers], dtype=torch.float32)
    return net


def vector(net):
    return parameters_to_vector(net.parameters()).detach().numpy().copy()


def mlp(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


print(*(f"{name} {version(name)}" for name in ("loss-landscapes", "torch")))

# (1) Weights (0, 0), (6, 0) and (0, 6), six steps: the grid is i along one side and j along the other.
STEPS = 6
corners = weights(0, 0), weights(STEPS, 0), weights(0, STEPS)
plane = loss_landscapes.planar_interpolation(*corners, Place(), STEPS, deepcopy_model=True).round(4)
print("planar_interpolation, second coordinate, a column to a line:", plane[..., 1].astype(int).tolist())
right = np.arange(STEPS)
assert np.array_equal(plane[..., 0], np.repeat(right[:, None], STEPS, 1))
assert np.array_equal(plane[::2, :, 1], np.tile(right + 1, (3, 1))), "the behavior has changed: even columns"
assert np.array_equal(plane[1::2, :, 1], np.tile(right, (3, 1))), "the behavior has changed: odd columns"


def distance_from_center(net_output, _):
    return (net_output - 3).square().sum()  # the weights are the outputs, at inputs (1, 0) and (0, 1)


bowl = loss_landscapes.planar_interpolation(
    *corners, Loss(distance_from_center, torch.eye(2), None), STEPS, deepcopy_model=True
).round(4)
print("a round bowl around (3, 3):", *bowl.astype(int).tolist(), sep="\n")
low = np.argmin(bowl, 1)
assert low.tolist() == [2, 3, 2, 3, 2, 3], "the behavior has changed: the bottom is straight"
mended = np.stack([column[:-1] if i % 2 == 0 else column[1:] for i, column in enumerate(bowl)])
i, j = np.mgrid[:STEPS, 1:STEPS]
assert np.array_equal(mended, (i - 3) ** 2 + (j - 3) ** 2)

torch.manual_seed(0)
net = mlp(0)
around = loss_landscapes.random_plane(net, Place(), steps=STEPS, deepcopy_model=True)
one, two = (around[2, 0] - around[0, 0]) / 2, around[0, 1] - around[0, 0]
step = around[1, 0] - around[0, 0]
share = (step + two - one).dot(two) / two.dot(two)
print(f"random_plane: one column on is one step along the first direction, and {share - 1:.3f} along the second")
assert np.allclose(step, one - two, atol=1e-5), "the behavior has changed: random_plane"

# (2) and (3)
size = np.linalg.norm(vector(net))
for distance in (None, 0.1, 0.5, 1, 10):
    given = {} if distance is None else {"distance": distance}
    line = loss_landscapes.random_line(net, Place(), steps=4, deepcopy_model=True, **given)
    far = np.linalg.norm(line[-1] - vector(net)) / size
    print(f"random_line, distance {distance or 'by default'}: ends {far:.3f} norms of the weights from the start")
    assert abs(far * (distance or 0.1) - 1) < 1e-4, "the behavior has changed: distance"
directions = []
for seed in range(20):
    torch.manual_seed(seed)
    move = loss_landscapes.random_line(net, Place(), steps=1, deepcopy_model=True)[0] - vector(net)
    directions.append(move / np.linalg.norm(move))
cosines = np.stack(directions) @ np.stack(directions).T
others = cosines[np.triu_indices(20, 1)]
print(f"20 random directions: {np.mean(np.stack(directions) >= 0):.0%} of all weights grow, "
      f"cosines {others.min():.2f} to {others.max():.2f}")
assert (np.stack(directions) >= 0).all() and others.min() > 0.7, "the behavior has changed: random directions"

# (4)
X = torch.randn(300, 8)
Y = (X @ torch.randn(8, 3)).argmax(1)
optimizer = torch.optim.Adam(net.parameters(), 0.01)
for _ in range(200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), Y).backward()
    optimizer.step()
other, loss = mlp(1), Loss(nn.functional.cross_entropy, X, Y)
trained, lost = vector(net), loss_landscapes.point(copy.deepcopy(net), loss)
calls = {
    "random_plane": lambda n: loss_landscapes.random_plane(n, loss, steps=4),
    "random_line": lambda n: loss_landscapes.random_line(n, loss, steps=4),
    "linear_interpolation": lambda n: loss_landscapes.linear_interpolation(n, other, loss, 4),
}
for name, call in calls.items():
    walked = copy.deepcopy(net)
    losses = call(walked)
    found = loss_landscapes.point(copy.deepcopy(walked), loss)
    trainable = [p.requires_grad for p in walked.parameters()]
    print(f"the net's loss before and after {name}: {lost:.3f}, {found:.3f}; "
          f"parameters to train: {sum(trainable)} of {len(trainable)}")
    assert found > 5 * lost and not np.allclose(vector(walked), trained), "the behavior has changed: the net stays"
    assert not any(trainable), "the behavior has changed: it can be trained"
assert np.allclose(vector(walked), vector(other), atol=1e-5), "the behavior has changed: not at the other model"
assert losses[0] != lost and np.isclose(losses[-1], loss_landscapes.point(other, loss), rtol=1e-3)
assert not any(p.requires_grad for p in other.parameters())
assert np.array_equal(vector(net), trained)
PYTHON
