# %% [markdown]
# # The relax protocol with your own net
#
# Does weight sharing help a CNN until its end, or only at the start? The protocol of
# [d'Ascoli and others](https://arxiv.org/abs/1906.06766) asks so: train a CNN; at some
# epochs, the [relax times](../../DESIGN.md#relax-time-t_w), copy it into a larger space,
# where its weights may leave what a convolution can be; train on there; and compare with
# the CNN that went on as it was. This page runs it on a net, data and an optimizer of your
# own, in seconds.

# %%
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import efcn_sparse as es
from efcn_sparse import training

# %% [markdown]
# ## The task
#
# A `Task` says what is trained, in plain PyTorch: a function that builds the CNN, training
# and test examples (tensors, or any map-style data set), and if the defaults don't fit, a
# loss, metrics, an optimizer, a schedule and an augmentation.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1000:]


def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


task = training.Task(
    build,
    train=(images[train], labels[train]),
    test=(images[test], labels[test]),
    optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
)

# %% [markdown]
# ## The run
#
# An [arm](../../DESIGN.md#arm) is a kind of net that takes part: the CNN itself, the
# fully-connected net from scratch (`fcn`), and the CNN embedded with some support: `elcn`
# only unties the weights, `efcn-full` also frees all those outside the CNN's windows.

# %%
config = training.RelaxConfig(
    arms=("cnn", "elcn", "efcn-full"),
    cnn_epochs=5,
    relax_times=(2, 5),
    relax_epochs=5,
    lr=0.05,
    batch_size=50,
)
folder = tempfile.mkdtemp()
training.run_relax(task, config, folder, quiet=True)
print(
    *sorted(path.name for path in Path(folder).iterdir() if not path.name.startswith("."))
)

# %% [markdown]
# Killed at any moment, the same call goes on where it stopped, and ends with the same
# numbers, bit for bit. With more seeds, arms or relax times it adds what is missing.
#
# ## What came out
#
# Every epoch of every net is a row of
# [`metrics.csv`](../run_directory.md#metricscsv-and-layerscsv).

# %%
with open(Path(folder) / "metrics.csv", newline="") as file:
    rows = list(csv.DictReader(file))
runs = {}
for row in rows:
    runs.setdefault((row["arm"], row["relax_epoch"]), []).append(row)

colors = {"cnn": "black", "elcn": "tab:orange", "efcn-full": "tab:blue"}
figure, (above, below) = plt.subplots(2, 1, figsize=(6, 5), sharex=True)
for (arm, relaxed), run in runs.items():
    epochs = [int(row["epoch"]) for row in run]
    style = "--" if relaxed == "5" else "-"
    name = arm if not relaxed else f"{arm}, relaxed at {relaxed}"
    above.plot(
        epochs,
        [100 * float(row["test_accuracy"]) for row in run],
        style,
        color=colors[arm],
        label=name,
    )
    if arm == "efcn-full":
        below.plot(epochs, [float(row["delta"]) for row in run], style, color=colors[arm])
    print(
        f"{name:<24} {100 * float(run[-1]['test_accuracy']):.1f}% right after epoch {epochs[-1]}"
    )
above.set(ylabel="test accuracy, %", ylim=(80, 100))
above.legend(fontsize=7)
below.set(xlabel="epoch", ylabel="δ of efcn-full")
plt.show()

# %% [markdown]
# δ is the share of the weights' norm that no CNN could have: how far the net has left. One
# seed on a small data set decides nothing; give `seeds=(0, 1, 2, 3, 4)`, and for real runs
# an `executor`, so that several nets train at a time.
#
# A net of the run is loaded by its arm, seed, relax time and epoch:

# %%
net = training.load_arm(folder, "efcn-full", seed=0, relax_epoch=2, epoch=7, task=task)
print(
    f"δ = {es.deviation(net).delta:.3f}, {(net(images[test]).argmax(1) == labels[test]).float().mean():.1%} right"
)

# %% [markdown]
# ## As a command
#
# Put `task` into a file of yours ([what it may hold](../howto/own_net.md)). `efcn-sparse
# report` makes a page with figures, comparisons and their confidence intervals.
#
# ```sh
# efcn-sparse relax my_file.py:task --seeds 5 --arms cnn elcn efcn-full --epochs 100 --run-dir runs/mine
# efcn-sparse report runs/mine
# ```
#
# Next: [which weights may train, and how](../relax.md), what the run directory
# [holds](../run_directory.md), and what lies [between the nets](../landscape.md).
