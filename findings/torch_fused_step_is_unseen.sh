#!/usr/bin/env bash
# torch 2.13.0: a step of SGD, Adam, AdamW or Adagrad with fused=True, between a forward pass and its backward pass.
#
# Expected: RuntimeError, "modified by an inplace operation", as without fused=True: the weights it needs are gone.
# Seen: no error. The fused kernels write the parameters and leave their version counters as they are, so autograd takes
# the new weights for those that it saved. Here d(w * w) at w = 3 comes out as 4, since the step made w = 2.
# Two losses of one graph with a step between them (GANs, actor and critic, pipelines) lose their safety net by a change
# that is made for speed; so does whatever keeps something as long as weight._version stands still.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def gradient_after_a_step(optimizer_class, fused):
    """d(w * w) / dw of a graph made at w = 3, walked after the step to w = 2; and by how much w._version moved."""
    w = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = optimizer_class([w], lr=1.0, fused=fused)
    y = w * w
    w.grad = torch.ones(1)
    version = w._version
    optimizer.step()
    w.grad = None
    y.backward()
    return w.grad.item(), w.detach().item(), w._version - version


for optimizer_class in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
    try:
        gradient_after_a_step(optimizer_class, fused=False)
    except RuntimeError as error:
        assert "inplace operation" in str(error)
    else:
        raise SystemExit(f"{optimizer_class.__name__}: unfused, no error: the behavior has changed")
    gradient, now, moved = gradient_after_a_step(optimizer_class, fused=True)
    print(f"{optimizer_class.__name__}, fused: gradient {gradient:.2f} where 6 is right; w is {now:.2f}, moved {moved}")
    assert moved == 0, "the behavior has changed: the version counter moves"
    assert abs(gradient - 2 * now) < 1e-6 and abs(gradient - 6) > 1
print("torch", torch.__version__)
PYTHON
