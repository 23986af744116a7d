#!/usr/bin/env bash
# captum 0.9.0 with torch 2.13.0: method= and n_steps= of IntegratedGradients (and of its relatives for layers and
# neurons), and of LayerConductance.
#
# Expected: five rules of integration for one integral. All are exact for a linear net; of the Riemann rules
# "riemann_trapezoid" and "riemann_middle" are the better ones, with an error of 1 / n_steps².
# Seen: two of them integrate something else. (1) "riemann_trapezoid" has the points of n - 1 intervals and the weights
# of n, which sum up to 1 - 1 / n. All attributions are too small by that, for any net: half at 2 steps, 10% at 10, 2%
# at 50. On a linear net it is the only one that is wrong, and elsewhere the error is that of 1 / n, not 1 / n².
# (2) LayerConductance takes differences of the layer between the points of the rule, and all rules but
# "riemann_trapezoid" leave out an end of the path, or both. Behind the last hidden layer the net is linear, and any
# number of steps should do; there 10 steps of "riemann_right" miss 31%, of "riemann_middle" 17%, of the default,
# "gausslegendre", 4%, and of the trapezoid nothing.
# So completeness, the sum rule that both are used for, is missed by the rule and not by the net; who takes the same
# method for both has it wrong in one.
# return_convergence_delta=True shows it. The documentation lists the methods as equals; we found no issue. Right are
# "gausslegendre" (the default) for integrated gradients, and "riemann_trapezoid" for LayerConductance, or the sum of
# NeuronConductance over the layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check captum==0.9.0 torch==2.13.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import torch
from captum.attr import (
    IntegratedGradients,
    InternalInfluence,
    LayerConductance,
    LayerIntegratedGradients,
    NeuronConductance,
    NeuronIntegratedGradients,
)
from torch import nn

METHODS = ("riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre")
print(*(f"{name} {version(name)}" for name in ("captum", "torch")))
torch.manual_seed(1)
x = torch.rand(1, 4, dtype=torch.float64) + 1
linear = nn.Linear(4, 1, bias=False).double()
net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False)).double()
for p in net.parameters():
    nn.init.normal_(p)
full = (net(x) - net(0 * x)).item()


def share(attributor, method, steps, **options):
    """The sum of attributions, by the difference of the outputs."""
    return attributor.attribute(x, method=method, n_steps=steps, **options).sum().item() / full


def by_hand(steps):
    """Integrated gradients by NumPy's trapezoids, on as many points."""
    points, gradients = np.linspace(0, 1, steps), []
    for point in points:
        at = (x * point).requires_grad_()
        gradients.append((torch.autograd.grad(net(at).sum(), at)[0] * x).sum().item())
    return np.trapezoid(gradients, points) / full


# (1)
for steps in (2, 10, 50):
    sums = {m: IntegratedGradients(linear).attribute(x, method=m, n_steps=steps).sum().item() for m in METHODS}
    shares = {m: total / linear(x).item() for m, total in sums.items()}
    print(f"a linear net, {steps} steps:", ", ".join(f"{m} {s:.4f}" for m, s in shares.items()))
    for method, found in shares.items():
        right = 1 - 1 / steps if method == "riemann_trapezoid" else 1
        assert abs(found - right) < 1e-6, "the behavior has changed: " + method
for steps in (10, 50, 200):
    shares = {m: share(IntegratedGradients(net), m, steps) for m in METHODS}
    print(f"a net with tanh, {steps} steps:", ", ".join(f"{m} {s:.4f}" for m, s in shares.items()),
          f"by hand {by_hand(steps):.4f}")
    trapezoid = shares["riemann_trapezoid"]
    assert abs(trapezoid - (1 - 1 / steps) * by_hand(steps)) < 1e-6, "the behavior has changed: trapezoid"
    assert abs(by_hand(steps) - 1) < 0.1 / steps
    assert max(abs(shares[m] - 1) for m in ("riemann_middle", "gausslegendre")) < 0.01 / steps
    others = {
        "layer": LayerIntegratedGradients(net, net[0]),
        "neurons": NeuronIntegratedGradients(net, net[0]),
    }
    assert abs(share(others["layer"], "riemann_trapezoid", steps) - trapezoid) < 1e-6
    per_neuron = sum(
        others["neurons"].attribute(x, (i,), method="riemann_trapezoid", n_steps=steps).sum() for i in range(8)
    )
    per_gauss = sum(others["neurons"].attribute(x, (i,), n_steps=steps).sum() for i in range(8))
    assert abs(per_neuron / per_gauss - (1 - 1 / steps)) < 1e-6, "the behavior has changed: neurons"
    influence = InternalInfluence(net, net[1])
    ratio = (influence.attribute(x, method="riemann_trapezoid", n_steps=steps)
             / influence.attribute(x, method="riemann_middle", n_steps=steps))
    assert torch.allclose(ratio, torch.full_like(ratio, 1 - 1 / steps)), "the behavior has changed: influence"

# (2) Behind the tanh the net is linear, so a neuron's conductance is its change, times its weight.
for steps in (10, 50):
    shares = {m: share(LayerConductance(net, net[1]), m, steps) for m in METHODS}
    neurons = sum(share(NeuronConductance(net, net[1]), "gausslegendre", steps, neuron_selector=(i,)) for i in range(8))
    print(f"LayerConductance, {steps} steps:", ", ".join(f"{m} {s:.4f}" for m, s in shares.items()),
          f"sum of NeuronConductance {neurons:.4f}")
    assert abs(shares["riemann_trapezoid"] - 1) < 1e-9 and abs(neurons - 1) < 1e-4
    points, margin = steps + 1, 1 / (steps + 1)
    gauss = (np.polynomial.legendre.leggauss(points)[0] + 1) / 2
    for method, (start, end) in {
        "riemann_left": (0, 1 - margin),
        "riemann_right": (margin, 1),
        "riemann_middle": (margin / 2, 1 - margin / 2),
        "gausslegendre": (gauss[0], gauss[-1]),
    }.items():
        part = (net(x * end) - net(x * start)).item() / full
        assert part < 0.9999 and abs(shares[method] - part) < 1e-6, "the behavior has changed: " + method
    if steps == 10:
        assert [round(100 * shares[m]) for m in ("riemann_right", "riemann_middle", "gausslegendre")] == [69, 83, 96]
    _, delta = LayerConductance(net, net[1]).attribute(x, n_steps=steps, return_convergence_delta=True)
    assert abs(delta.item() / full - (shares["gausslegendre"] - 1)) < 1e-6
PYTHON
