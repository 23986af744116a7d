#!/usr/bin/env bash
# torch_geometric 2.8.1 (PyG) with torch 2.13.0: an adjacency made by torch.sparse_coo_tensor, and layers that share it.
#
# Expected: a layer reads the graph and leaves it as it is. The same graph gives the same numbers, as edges, as CSR or
# as COO, in whatever order its entries lie, and however often it is used.
# Seen: the first GCNConv, GATConv, LGConv, TAGConv or ClusterGCNConv that sees such a tensor changes it, in place: it
# calls torch_geometric.utils.to_edge_index, which marks the caller's tensor as coalesced, whether it is or not. From
# then on torch takes its rows for sorted, and to_sparse_csr(), with which SAGEConv, GINConv and GraphConv begin,
# returns another matrix. Their outputs are off by 40% and more, without an error, while those of GCNConv and GATConv
# stay right, and so do to_dense() and adj @ x.
# adj_t = torch.sparse_coo_tensor(edge_index.flip(0), weight, (n, n)) is such a tensor: edges are sorted by source as a
# rule, and PyG wants the targets in the rows. A net of a GraphConv and a GCNConv is right in its first step, and trains
# on another graph from the second on: on the right one it then has 72%, where it has 97% if trained with edges. Where
# an edge occurs twice, with 1 and 2, adj * adj has 5 for it, not 9. adj.coalesce() no longer helps then.
# Not documented; a search of PyG's issues found nothing.
# What works: adj = adj.coalesce() before the first layer, CSR, PyG's own to_torch_coo_tensor, or edges.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch_geometric==2.8.1 torch==2.13.0 numpy
TMPDIR=$folder "$folder/venv/bin/python" - <<'PYTHON'
import warnings
from importlib.metadata import version

import torch
from torch import nn
from torch_geometric.nn import ClusterGCNConv, GATConv, GCNConv, GINConv, GraphConv, LGConv, SAGEConv, TAGConv
from torch_geometric.utils import to_edge_index, to_torch_coo_tensor

warnings.filterwarnings("ignore", message=".*(beta state|to CSR format|invariant checks)")
torch.set_num_threads(2)
torch.manual_seed(0)
N, IN, OUT = 200, 16, 8
EDGES = (torch.rand(N, N) < 0.05).fill_diagonal_(False).nonzero().t()  # sorted by source, as from a data set
X = torch.randn(N, IN)
MARK = {
    "GCNConv": GCNConv(IN, OUT),
    "GCNConv(add_self_loops=False)": GCNConv(IN, OUT, add_self_loops=False),
    "GATConv": GATConv(IN, OUT),
    "LGConv": LGConv(),
    "TAGConv": TAGConv(IN, OUT),
    "ClusterGCNConv": ClusterGCNConv(IN, OUT),
}
SUFFER = {
    "SAGEConv": SAGEConv(IN, OUT),
    "SAGEConv(aggr='max')": SAGEConv(IN, OUT, aggr="max"),
    "GINConv": GINConv(nn.Linear(IN, OUT)),
    "GraphConv": GraphConv(IN, OUT),
}


def coo():
    return torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.shape[1]), (N, N))


@torch.no_grad()
def off(layer, adj):
    right = layer(X, EDGES)
    return ((layer(X, adj) - right).norm() / right.norm()).item()


print(*(f"{name} {version(name)}" for name in ("torch_geometric", "torch")))

small = torch.sparse_coo_tensor([[1, 2, 0], [0, 0, 1]], [1.0, 2.0, 3.0], (3, 3))
before = small.to_sparse_csr().to_dense()
to_edge_index(small)
print("as CSR, before and after to_edge_index:", before.tolist(), small.to_sparse_csr().to_dense().tolist())
assert before.tolist() == small.to_dense().tolist() == [[0, 3, 0], [1, 0, 0], [2, 0, 0]]
assert small.is_coalesced(), "the behavior has changed: it isn't marked"
assert small.to_sparse_csr().to_dense().tolist() == [[3, 3, 0], [0, 0, 0], [0, 0, 0]], "the behavior has changed: CSR"

twice = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 0]], [1.0, 2.0, 3.0], (2, 2))
assert (twice * twice).to_dense().tolist() == [[0, 9], [9, 0]]
to_edge_index(twice)
print("square of an edge that occurs twice, with 1 and 2:", (twice * twice).to_dense()[0, 1].item())
assert (twice * twice).to_dense()[0, 1] == 5, "the behavior has changed: the square of a sum"

for marks, first in MARK.items():
    adj, dense = coo(), coo().to_dense()
    fresh = [off(layer, adj) for layer in SUFFER.values()]
    assert not adj.is_coalesced() and max(fresh) < 1e-5
    own = off(first, adj)
    found = {name: off(layer, adj) for name, layer in SUFFER.items()}
    again = off(first, adj)
    print(f"after {marks:29}: " + ", ".join(f"{name} {value:.0%} off" for name, value in found.items()))
    assert adj.is_coalesced(), "the behavior has changed: it isn't marked"
    assert min(found.values()) > 0.3, "the behavior has changed: the layers behind are right"
    assert max(own, again) < 1e-5
    assert torch.equal(adj.to_dense(), dense) and torch.allclose(adj @ X, dense @ X, atol=1e-4)
    assert off(SUFFER["GINConv"], adj.coalesce()) > 0.3, "the behavior has changed: coalesce()"

    # What works
    for works in (coo().coalesce(), coo().to_sparse_csr(), to_torch_coo_tensor(EDGES.flip(0), size=N)):
        off(first, works)
        assert max(off(layer, works) for layer in SUFFER.values()) < 1e-5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two = GraphConv(IN, 32), GCNConv(32, 4)

    def forward(self, x, adj):
        return self.two(self.one(x, adj).relu(), adj)


# Nodes get edges from nodes of their own class, and features that tell little by themselves.
label = torch.arange(400) * 4 // 400
graph = (torch.rand(400, 400) < torch.where(label[:, None] == label, 0.06, 0.004)).fill_diagonal_(False)
edges = graph.nonzero().t()
x = 2.5 * nn.functional.one_hot(label, IN) + 2 * torch.randn(400, IN)
train = torch.arange(400) % 2 == 0
for name, adj in {
    "edges": edges,
    "COO": torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.shape[1]), (400, 400)),
    "coalesced COO": torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.shape[1]), (400, 400)).coalesce(),
}.items():
    net, losses = Net(), []
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x, adj)[train], label[train])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right, seen = ((net(x, a).argmax(1) == label)[~train].double().mean().item() for a in (edges, adj))
    print(f"trained with {name:13}: losses {losses[0]:.4f}, {losses[1]:.4f}, …, {losses[-1]:.4f}; "
          f"accuracy on other nodes {seen:.1%}, and with edges {right:.1%}")
    if name == "edges":
        reference = losses
        assert right > 0.95
    elif name == "COO":
        assert abs(losses[0] - reference[0]) < 1e-5
        assert abs(losses[1] - reference[1]) > 0.3, "the behavior has changed: the second step"
        assert right < 0.85, "the behavior has changed: it has learnt on the right graph"
    else:
        assert torch.allclose(torch.tensor(losses), torch.tensor(reference), atol=1e-4)
PYTHON
