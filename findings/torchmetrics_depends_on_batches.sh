#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: the same predictions, handed to metrics in other batches or in another order.
#
# Expected: update adds up, so how the data are cut into batches does not matter; metrics in a MetricCollection are the
# metrics alone, computed faster: a compute group holds what is "only different in their compute step", as documented.
# Seen: neither. (1) A MetricCollection compares numbers: metrics whose states are equal after the first batch are one
# metric from then on, through reset() as well, whatever their settings; the first of them is updated. Where the first
# batch has no label of ignore_index, the setting is gone; where its scores are under 0.5 or over 0.9, a threshold of
# 0.9 is one of 0.5. A set sorted by class does that, and so do small batches; shuffled, in large ones, it stays hidden.
# (2) Whether numbers are logits or probabilities is asked anew for each batch: one whose logits happen to lie in [0, 1]
# is taken as it is, the others get a sigmoid. In batches of 1, accuracy is 72% rather than 76%, AUROC 0.78 than 0.85.
# Nothing warns. The documentation has the rule of (2) ("outside [0,1] range we consider the input to be logits"), and
# not that it goes by batches; issue 2195 has it, open. Of (1) users report single cases (2596 and 2916, closed).
# MetricCollection(..., compute_groups=False) is right, and so are probabilities in place of logits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAccuracy

torch.set_num_threads(2)
torch.manual_seed(0)
N, CLASSES = 1000, 10


def batches(size, *data):
    return zip(*(tensor.split(size) for tensor in data))


def run(metric, size, *data):
    for batch in batches(size, *data):
        metric.update(*batch)
    found = metric.compute()
    return {name: value.item() for name, value in found.items()} if isinstance(found, dict) else found.item()


def accuracies():
    return {
        "all": MulticlassAccuracy(CLASSES, average="micro"),
        "without class 9": MulticlassAccuracy(CLASSES, average="micro", ignore_index=9),
    }


def thresholds():
    return {"at half": BinaryAccuracy(0.5), "at nine tenths": BinaryAccuracy(0.9)}


def show(title, found):
    print(f"{title:49}:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))


print(*(f"{name} {version(name)}" for name in ("torchmetrics", "torch")))

# (1) Ten classes, the last is the hardest.
Y = torch.arange(CLASSES).repeat_interleave(N // CLASSES)  # sorted by class
logits = torch.randn(N, CLASSES)
logits[torch.arange(N), Y] += torch.where(Y == CLASSES - 1, 0, 3)
P = logits.softmax(1)
guess = P.argmax(1)
kept = Y != CLASSES - 1
true = {
    "all": (guess == Y).float().mean().item(),
    "without class 9": (guess == Y)[kept].float().mean().item(),
}
show("by hand", true)


def same(found, other):
    return all(abs(found[name] - other[name]) < 1e-6 for name in other)


expected = dict.fromkeys(true, true["all"])
order = torch.randperm(N)
for size in (100, 1):
    collection = MetricCollection(accuracies())
    found = run(collection, size, P, Y)
    show(f"MetricCollection, batches of {size}, sorted", found)
    assert same(found, expected), "the behavior has changed: settings count"
    collection.reset()
    again = run(collection, 100, P[order], Y[order])
    show("    after reset(), shuffled", again)
    assert same(again, expected), "the behavior has changed: reset() forms new groups"
    alone = {name: run(metric, size, P, Y) for name, metric in accuracies().items()}
    assert same(alone, true)
    assert same(run(MetricCollection(accuracies(), compute_groups=False), size, P, Y), true)
    called = MetricCollection(accuracies())
    for batch in batches(size, P, Y):
        called(*batch)
    assert same({name: value.item() for name, value in called.compute().items()}, true)
assert (Y[order][:100] == CLASSES - 1).any()
found = run(MetricCollection(accuracies()), 100, P[order], Y[order])
show("a new MetricCollection, batches of 100, shuffled", found)
assert same(found, true)

scores = torch.rand(N)
labels = torch.bernoulli(scores).long()
scores[:2], labels[:2] = torch.tensor([0.95, 0.05]), torch.tensor([1, 0])
found = run(MetricCollection(thresholds()), 2, scores, labels)
true = {
    name: ((scores > threshold).long() == labels).float().mean().item()
    for name, threshold in {"at half": 0.5, "at nine tenths": 0.9}.items()
}
show("thresholds, by hand", true)
show("thresholds, MetricCollection, batches of 2", found)
assert abs(true["at nine tenths"] - true["at half"]) > 0.1
assert same(found, dict.fromkeys(true, true["at half"])), "the behavior has changed: thresholds count"
assert same(run(MetricCollection(thresholds(), compute_groups=False), 2, scores, labels), true)

# (2)
logits = torch.randn(N)
labels = (logits + torch.randn(N) > 0).long()
positive, negative = logits[labels == 1], logits[labels == 0]
accuracy = ((logits > 0).long() == labels).float().mean().item()
auroc = (positive[:, None] > negative).double().mean().item()
print(f"logits, by hand: accuracy {accuracy:.3f}, AUROC {auroc:.4f}")
for size in (N, 1):
    found = run(BinaryAccuracy(), size, logits, labels), run(BinaryAUROC(), size, logits, labels)
    print(f"logits in batches of {size}: accuracy {found[0]:.3f}, AUROC {found[1]:.4f}")
    off = accuracy - found[0], auroc - found[1]
    if size == N:
        assert max(map(abs, off)) < 1e-5
    else:
        assert min(off) > 0.04, "the behavior has changed: logits are logits in each batch"
    sure = run(BinaryAccuracy(), size, logits.sigmoid(), labels), run(BinaryAUROC(), size, logits.sigmoid(), labels)
    assert abs(sure[0] - accuracy) < 1e-5 and abs(sure[1] - auroc) < 1e-5
PYTHON
