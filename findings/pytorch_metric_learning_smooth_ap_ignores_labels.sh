#!/usr/bin/env bash
# pytorch-metric-learning 2.9.0 (the newest on PyPI) with torch 2.13.0: losses.SmoothAPLoss, and ref_emb of
# losses.ThresholdConsistentMarginLoss.
#
# Expected: one minus the smoothed average precision, where the positives of a query are the embeddings with its
# label: 0 for tight clusters by class, in any order of the batch. The loss raises ValueError where classes differ in
# size, so it does look at the labels.
# Seen: for that check, and to count the classes. Then the batch is cut, in its own order, into runs of as many
# embeddings as there are classes, whatever their labels, and those of a run are positives of each other. (1) That is
# right for a batch by class of n classes with n embeddings each, and else it isn't, without a word: with 8 classes of
# 4, two classes at a time are one, and perfect embeddings have a loss of 0.31, not 0; with 4 classes of 8, one class
# is two, each a negative of the other. (2) Shuffling the batch changes the loss, for 4 classes of 4 as well. (3)
# Trained on batches of the package's own MPerClassSampler, 4 classes of 8, a net ends with an average precision of
# retrieval of 0.43; with the formula by the labels, of 0.74.
# (4) ThresholdConsistentMarginLoss takes ref_emb and ref_labels, and looks its pairs up in the batch itself: the loss
# is the same whatever ref_emb is. Losses without them raise ValueError, as SmoothAPLoss does, and for the others it
# is documented that "positives/negatives will come from ref_emb".
# The documentation of SmoothAPLoss on the web has "Positive sets come from the labels, so classes may appear in any
# order and with different counts", which is not so in this release. FastAPLoss goes by the labels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pytorch-metric-learning==2.9.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import common_functions
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

torch.set_num_threads(1)
SMOOTH = losses.SmoothAPLoss()


def formula(embeddings, labels, temperature=0.01):
    """Equation of the paper, with the query among its positives, as in the package."""
    similar = normalize(embeddings) @ normalize(embeddings).T
    others = 1 - torch.eye(len(labels))
    before = torch.sigmoid((similar[:, None, :] - similar[:, :, None]) / temperature) * others
    positive = (labels[:, None] == labels).to(embeddings.dtype)
    rank, rank_of_all = 1 + (before * positive[:, None, :]).sum(2), 1 + before.sum(2)
    return (1 - (rank / rank_of_all * positive).sum(1) / positive.sum(1)).mean()


def by_loops(embeddings, labels, temperature=0.01):
    """The same once more, in NumPy, number by number."""
    e = embeddings.double().numpy()
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    loss, n = 0.0, len(e)
    for q in range(n):
        s = e @ e[q]
        positives = [i for i in range(n) if labels[i] == labels[q]]
        for i in positives:
            ahead = 1 / (1 + np.exp(np.clip((s[i] - s) / temperature, -500, 500)))
            ahead[i] = 0
            loss -= (1 + ahead[positives].sum()) / (1 + ahead.sum()) / len(positives)
    return 1 + loss / n


print(*(f"{name} {version(name)}" for name in ("pytorch-metric-learning", "torch")))

# (1) and (2)
for classes, each in ((4, 4), (6, 6), (8, 4), (4, 8), (16, 2), (2, 8)):
    labels = torch.arange(classes).repeat_interleave(each)
    torch.manual_seed(0)
    batch = torch.randn(len(labels), 16)
    perfect = torch.eye(16)[labels] + 0.01 * torch.randn(len(labels), 16)
    shuffled = torch.randperm(len(labels))
    runs = torch.arange(len(labels)) // classes
    found = {}
    for name, e, y in (("random", batch, labels), ("perfect", perfect, labels),
                       ("perfect, shuffled", perfect[shuffled], labels[shuffled])):
        found[name] = SMOOTH(e, y).item()
        right = formula(e, y).item()
        assert abs(right - by_loops(e, y)) < 1e-4
        assert abs(found[name] - formula(e, runs).item()) < 1e-5, "the behavior has changed: not runs of the batch"
        print(f"{classes:2} classes of {each}, {name}: {found[name]:.3f}, by the formula {right:.3f}")
    assert formula(perfect, labels) < 1e-3 and formula(perfect[shuffled], labels[shuffled]) < 1e-3
    if classes == each:
        assert abs(found["random"] - formula(batch, labels)) < 1e-5 and found["perfect"] < 1e-3
    else:
        assert found["perfect"] > 0.2, "the behavior has changed: clusters by class are perfect"
    assert found["perfect, shuffled"] > 0.2, "the behavior has changed: the order does not matter"
    fast, fast_shuffled = (losses.FastAPLoss()(perfect[o], labels[o]) for o in (torch.arange(len(labels)), shuffled))
    assert fast < 0.01 and abs(fast - fast_shuffled) < 1e-5
try:
    SMOOTH(torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 1]))
    raise AssertionError("the behavior has changed: it takes classes of different sizes")
except ValueError as error:
    print("3 of one class and 2 of another:", str(error).splitlines()[0])


# (3)
def precision(embeddings, labels):
    """Mean average precision of finding those with the same label."""
    similar = normalize(embeddings) @ normalize(embeddings).T
    total = 0.0
    for q, s in enumerate(similar):
        order = s.argsort(descending=True)
        hits = (labels[order[order != q]] == labels[q]).double()
        total += ((hits.cumsum(0) / torch.arange(1, len(hits) + 1)) * hits).sum() / hits.sum()
    return (total / len(labels)).item()


torch.manual_seed(0)
centers, mix = torch.randn(16, 32), 0.5 * torch.randn(32, 32)
labels = torch.arange(16).repeat_interleave(20)
train, test = (centers[labels] + torch.randn(len(labels), 32) @ mix for _ in range(2))
for classes, each in ((8, 4), (4, 8), (6, 6)):
    scores = {}
    for name, loss in (("SmoothAPLoss", SMOOTH), ("the formula", formula), ("FastAPLoss", losses.FastAPLoss())):
        torch.manual_seed(0)
        common_functions.NUMPY_RANDOM = np.random.RandomState(0)  # what the sampler draws from
        net = nn.Linear(32, 8)
        optimizer = torch.optim.Adam(net.parameters(), 0.003)
        size = classes * each
        sampler = MPerClassSampler(labels.numpy(), each, batch_size=size, length_before_new_iter=300 * size)
        for batch in torch.tensor(list(sampler)).view(-1, size):
            optimizer.zero_grad()
            loss(net(train[batch]), labels[batch]).backward()
            optimizer.step()
        scores[name] = precision(net(test).detach(), labels)
    print(f"trained on {classes} classes of {each}, average precision:",
          ", ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    if classes == each:
        assert scores["SmoothAPLoss"] > scores["the formula"] - 0.05
    else:
        assert scores["SmoothAPLoss"] < scores["the formula"] - 0.1, "the behavior has changed: it learns as much"
    assert scores["FastAPLoss"] > scores["the formula"] - 0.1


# (4)
def margins(embeddings, labels, references, itself):
    """Equation of ThresholdConsistentMarginLoss at its defaults."""
    similar = cosine_similarity(embeddings[:, None], references[None], dim=2)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool) if itself else same
    low, high = similar[positive & (similar <= 0.9)], similar[~same & (similar >= 0.5)]
    return (0.9 - low).mean() + (high - 0.5).mean()


tcm = losses.ThresholdConsistentMarginLoss()
torch.manual_seed(0)
y = torch.arange(4).repeat_interleave(4)
e = torch.randn(16, 4)
for name, references in (("others", torch.randn(16, 4)), ("the opposite ones", -e)):
    found = tcm(e, y, ref_emb=references, ref_labels=y).item()
    print(f"ThresholdConsistentMarginLoss, references: {name}: {found:.4f}, of the batch alone {tcm(e, y).item():.4f}, "
          f"by the formula {margins(e, y, references, False):.4f}")
    assert found == tcm(e, y).item(), "the behavior has changed: ref_emb counts"
    assert abs(margins(e, y, references, False) - found) > 0.1
    contrastive = [losses.ContrastiveLoss()(e, y, ref_emb=r, ref_labels=y).item() for r in (references, e.clone())]
    assert abs(contrastive[0] - contrastive[1]) > 0.01
    # What works: one batch of both, and the pairs by their indices
    same = y[:, None] == y
    pairs = [part + shift for part, shift in zip((*torch.where(same), *torch.where(~same)), (0, 16, 0, 16))]
    both = tcm(torch.cat([e, references]), torch.cat([y, y]), indices_tuple=tuple(pairs))
    assert abs(both - margins(e, y, references, False)) < 1e-5
others = torch.randn(16, 4, requires_grad=True)
tcm(e.clone().requires_grad_(), y, ref_emb=others, ref_labels=y).backward()
assert others.grad is None, "the behavior has changed: ref_emb has a gradient"
assert abs(tcm(e, y) - margins(e, y, e, True)) < 1e-5
try:
    SMOOTH(e, y, ref_emb=e.clone(), ref_labels=y)
    raise AssertionError("the behavior has changed: SmoothAPLoss takes ref_emb")
except ValueError as error:
    print("SmoothAPLoss with ref_emb:", error)
PYTHON
