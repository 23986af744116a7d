#!/usr/bin/env bash
# torch 2.13.0: forward mode twice (jvp of jvp, jacfwd of jacfwd) through a torch.autograd.Function that has a jvp.
#
# Expected: the second derivative (jvp is written in operations that torch can differentiate, and grad of grad, jvp of
# grad and grad of jvp are right), or an error.
# Seen: 0, without a word: torch turns forward mode off around the call of jvp, and what the outer tangent would have
# added is lost. The second derivative of x³ at 2 is 12 in the three other ways, and 0 by jvp of jvp.
# Curvature, Taylor series and physics losses by nested jacfwd come out as those of a linear layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.func import grad, jacfwd, jvp


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * dy

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


def forward(f):
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


x = torch.tensor(2.0)
for name, second in (("jvp of grad", forward(grad(Cube.apply))), ("grad of jvp", grad(forward(Cube.apply))),
                     ("grad of grad", grad(grad(Cube.apply)))):  # fmt: skip
    assert second(x) == 12, name
plain, custom = forward(forward(lambda x: x**3))(x).item(), forward(forward(Cube.apply))(x).item()
print(f"second derivative of x³ at 2 by jvp of jvp: {plain} written out, {custom} through the Function")
assert plain == 12
assert custom == 0, "the behavior has changed"
Cube.generate_vmap_rule = True  # jacfwd wants it
assert jacfwd(jacfwd(Cube.apply))(x) == 0, "the behavior has changed: jacfwd"
print("torch", torch.__version__)
PYTHON
