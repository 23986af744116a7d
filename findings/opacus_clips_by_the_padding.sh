#!/usr/bin/env bash
# opacus 1.6.0 with torch 2.13.0: nn.Embedding(..., padding_idx=0) in training with gradients clipped sample by sample.
#
# Expected: the gradients of the samples are those that torch gives each sample alone. The row of padding_idx has none,
# as nn.Embedding documents, so a text counts the same however many padding tokens stand behind it.
# Seen: with hooks, the default, nobody looks at padding_idx. The padding row has a gradient in each sample, 56 times
# that of a word where 56 of 64 tokens are padding. It moves, and worse, it uses up the norm to which a sample is
# clipped: the norms are 15 times too large, and that much less is left for the words. With grad_sample_mode="ghost"
# the row stays, and the norms are the same wrong ones. "functorch" is right.
# Same data, same steps: texts of 8 words padded to 64 end near chance, with "functorch" or without the padding at 96%.
# Accuracy then hangs on the longest text of a batch, and looks like the price of privacy. (The noise, which is left out
# here, goes to all rows in each of the modes.) Neither the documentation nor an issue that we found has it.
# A net that masks the padding behind the embedding gives it no gradient, and is right in all modes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opacus==1.6.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import warnings
from importlib.metadata import version

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
torch.set_num_threads(2)
N, WORDS, LENGTH, VOCABULARY, CLIP = 2048, 8, 64, 50, 1.0
torch.manual_seed(0)
X = torch.randint(1, VOCABULARY, (N, LENGTH))
X[:, WORDS:] = 0  # padding
score = torch.randn(VOCABULARY)[X[:, :WORDS]].sum(1)
Y = (score > score.median()).long()
SHORT = X[:, :WORDS].contiguous()
MODES = "hooks", "functorch", "ghost"


class Net(nn.Module):
    """The sum of the embeddings, and a linear layer."""

    def __init__(self, masked=False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8, padding_idx=0)
        self.linear = nn.Linear(8, 2)
        self.masked = masked
        self.embedding.weight.data *= 0.1

    def forward(self, x):
        embedded = self.embedding(x)
        return self.linear((embedded * (x != 0)[..., None] if self.masked else embedded).sum(1))


def private(mode, x, masked=False, noise=0.0):
    torch.manual_seed(1)
    net = Net(masked)
    given = {"criterion": nn.CrossEntropyLoss()} if mode == "ghost" else {}
    loader = DataLoader(TensorDataset(x, Y), 256, shuffle=True)
    made = PrivacyEngine().make_private(
        module=net, optimizer=torch.optim.SGD(net.parameters(), 3.0), data_loader=loader, poisson_sampling=False,
        noise_multiplier=noise, max_grad_norm=CLIP, grad_sample_mode=mode, **given
    )
    wrapped, optimizer, *rest, loader = made
    return net, wrapped, optimizer, rest[0] if rest else nn.CrossEntropyLoss(), loader


def by_torch(masked):
    """Gradients of the first samples, one at a time: the rows of the embedding, and the norms of all."""
    torch.manual_seed(1)
    net, rows, norms = Net(masked), [], []
    for x, y in zip(X[:16], Y[:16]):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[None]), y[None]).backward()
        rows.append(net.embedding.weight.grad.clone())
        norms.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
    return torch.stack(rows), torch.stack(norms)


print(*(f"{name} {version(name)}" for name in ("opacus", "torch")))
for masked in (False, True):
    rows, norms = by_torch(masked)
    assert (rows[:, 0] == 0).all()
    for mode in MODES:
        net, wrapped, optimizer, criterion, _ = private(mode, X, masked)
        optimizer.zero_grad()
        loss = criterion(wrapped(X[:16]), Y[:16])
        loss.backward()
        if mode == "ghost":
            found, sampled = wrapped.get_norm_sample(), None
        else:
            sampled = net.embedding.weight.grad_sample
            found = torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], 1).norm(dim=1)
            assert torch.allclose(sampled[:, 1:], rows[:, 1:], atol=1e-5)
        factor = (found / norms).mean().item()
        moved = "" if sampled is None else f"; row of the padding {sampled[:, 0].norm(dim=1).mean():.2f}"
        print(f"{mode:9}, {'masked' if masked else 'padded'}: norms of samples are {factor:.2f} times torch's{moved}")
        if masked or mode == "functorch":
            assert torch.allclose(found, norms, rtol=1e-3)
            assert sampled is None or (sampled[:, 0] == 0).all()
        else:
            assert factor > 14 and (found > 10 * norms).all(), "the behavior has changed: norms without the padding"
            if sampled is not None:
                ratio = sampled[:, 0].norm(dim=1) / (rows.norm(dim=2).sum(1) / WORDS)
                assert torch.allclose(ratio, torch.full((16,), LENGTH - WORDS, dtype=ratio.dtype), rtol=1e-3), (
                    "the behavior has changed: no gradient of the padding"
                )

ends = {}
for mode, x in (("hooks", X), ("ghost", X), ("functorch", X), ("hooks", SHORT), ("ghost", SHORT)):
    net, wrapped, optimizer, criterion, loader = private(mode, x)
    start = net.embedding.weight[0].detach().clone()
    for _ in range(4):
        for texts, labels in loader:
            optimizer.zero_grad()
            criterion(wrapped(texts), labels).backward()
            optimizer.step()
    accuracy = (net(x).argmax(1) == Y).float().mean().item()
    moved = (net.embedding.weight[0] - start).norm().item()
    padding = "padded" if x.shape[1] == LENGTH else "as it is"
    print(f"{mode:9}, text {padding:8}: accuracy {accuracy:.1%}, the row of the padding moves by {moved:.3f}")
    ends[mode, padding] = accuracy
    assert (moved > 0.01) == ((mode, padding) == ("hooks", "padded")), "the behavior has changed: the padding row"
for mode in ("hooks", "ghost"):
    assert ends[mode, "padded"] < 0.7, "the behavior has changed: it learns"
    assert ends[mode, "as it is"] > 0.95
assert ends["functorch", "padded"] > 0.95

for mode in MODES:
    net, wrapped, optimizer, criterion, _ = private(mode, SHORT, noise=1.0)
    start = net.embedding.weight[0].detach().clone()
    criterion(wrapped(SHORT[:256]), Y[:256]).backward()
    optimizer.step()
    assert not torch.equal(net.embedding.weight[0], start), "the behavior has changed: no noise on the padding"
PYTHON
