"""Gradual pruning: blocks of dense layers become zero while the model trains, and leave storage at the end."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear.refusals import chosen_linears, out_by_in, weight_of
from efcn_sparse.linear.select_blocks import highest_blocks, sums_of_blocks
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import check_has_numbers, checked_pair
from efcn_sparse.pattern.structure import grid_of
from efcn_sparse.pruning.budget import BUDGETS, CubicSchedule, LayerSize, counts_by_layer, final_densities
from efcn_sparse.pruning.penalty import group_lasso
from efcn_sparse.pruning.shrink import shrink, state_like_weight

SCORES = ("magnitude", "gradient")
_MASKED: weakref.WeakSet[_Masked] = weakref.WeakSet()  # those of all Pruners, also of frozen weights without a hook


class _Masked:
    """A Linear, which of its blocks are kept, and the hook that keeps the gradient of the others at zero."""

    def __init__(self, linear: nn.Module, block_shape: tuple[int, int]) -> None:
        self.linear, self.block_shape = linear, block_shape
        grid, device = grid_of(weight_of(linear).shape, block_shape), self.weight.device
        self.kept = torch.ones(grid, dtype=torch.bool, device=device)
        self.saliency = torch.zeros(grid, dtype=torch.float64, device=device)
        self.gone: Tensor | None = None  # bool, as weight: the entries of the blocks that are not kept
        self.watched: nn.Parameter | None = None
        self.watch()
        _MASKED.add(self)

    def watch(self) -> bool:
        """Hook the weight, unless it is; whether it was not, as one that was frozen, or put in by ``assign=True``."""
        weight = self.linear._parameters.get("weight")
        if weight is None or weight is self.watched or not weight.requires_grad:
            return False
        self.watched, self.handle = weight, weight.register_hook(self._mask)
        return True

    def replaced_by(self, sparse: nn.Module) -> None:
        """Let the dense layer go."""
        if self.watched is not None:
            self.handle.remove()
        self.linear, self.watched, self.handle, self.gone = sparse, None, None, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"handle": None, "watched": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.watch()  # copies of parameters, and those from a file, have no hooks
        _MASKED.add(self)

    @property
    def weight(self) -> nn.Parameter:
        return self.linear.get_parameter("weight")

    def by_rows(self, tensor: Tensor) -> Tensor:
        """What is shaped as the weight, as ``[out_features, in_features]``."""
        return out_by_in(self.linear, tensor)

    def _mask(self, gradient: Tensor) -> Tensor:
        return gradient if self.gone is None else gradient.masked_fill(self.gone, 0)

    def entries_gone(self, kept: Tensor) -> Tensor:
        rows, cols = self.by_rows(self.weight).shape
        wide = (~kept).repeat_interleave(self.block_shape[0], 0)[:rows]
        return self.by_rows(wide.repeat_interleave(self.block_shape[1], 1)[:, :cols])

    def pattern(self) -> BlockPattern:
        rows, cols = self.kept.nonzero().unbind(1)
        return BlockPattern.from_blocks(rows, cols, self.by_rows(self.weight).shape, self.block_shape)


def _finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


class Pruner:
    """Prunes blocks of :class:`torch.nn.Linear` layers while the model trains; at the end only the rest is stored.

    The ``Conv1D`` that GPT-2 of transformers has in place of Linears counts as one; blocks are those of its
    ``[out_features, in_features]`` matrix, the transpose of its weight.

    Until then a layer stays dense. Its pruned blocks are exactly zero, and so are their gradient and the optimizer's
    state, so they stay zero under every optimizer for which a weight of zero with gradients of zero is at rest (SGD,
    momentum, weight decay, Adam). :meth:`finish` makes them :class:`SparseLinear` layers: values, gradient and state
    move along, biases stay the same parameters.

    Args:
        model: any module, or a ``DistributedDataParallel`` around one: then rank 0's choice counts for all, and the
            model must be wrapped anew after :meth:`finish`.
        rules: shell-style name patterns to ``dict(density=..., block_shape=...)``, the density at the end, or to None
            to leave a layer as it is; the first that matches counts.
        schedule: how densities fall.
        optimizer: a torch optimizer that holds the weights.
        score: what blocks are kept by: ``"magnitude"``, their Frobenius norm, or ``"gradient"``, the sum of
            (Σ gradient · weight)² over the steps since the last choice: the first-order change of the loss without it.
            Steps whose gradient is not finite, which a gradient scaler skips, do not count then.
        budget: ``"uniform"``, each layer by its rule; ``"erk"``, as many weights in all, more in layers with few;
            ``"global"``, as many in all, one threshold on the score per stored entry (a block that the edge cuts stores
            a whole one).
        cover: whether every block row and block column keeps a block, for which a layer may have to keep more. Without
            it outputs may become constant and inputs unread.
        finish_at_end: whether :meth:`step` calls :meth:`finish` at the end of the schedule.

    Attributes:
        steps: how many steps have counted.
        skipped: how many have not, for want of a finite gradient.
        finished: whether storage has shrunk.

    Laws: the model with masks, and after :meth:`finish`, computes the same. Both train alike. So does
    ``copy.deepcopy((model, optimizer, pruner))``; a copy of the model alone is a dense model that no one prunes.

    Raises:
        ValueError: an argument is out of range, a rule matches no Linear, or a layer cannot be replaced without losing
            something.
        TypeError: an argument is of the wrong kind; a :class:`FusedOptimizer` is for layers that are sparse already.

    Source: Zhu & Gupta 2017, arXiv 1710.01878, with blocks; the score by gradients: Molchanov et al. 2019,
        arXiv 1906.10771.

    Example:
        >>> import efcn_sparse as es
        >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> rules = {"0": dict(density=0.25, block_shape=(16, 16))}
        >>> pruner = es.Pruner(model, rules, es.CubicSchedule(begin=2, end=8), optimizer)
        >>> for step in range(10):
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        ...     pruner.step()
        ...     optimizer.zero_grad()
        >>> type(model[0]).__name__, pruner.densities
        ('Linear', {'0': 0.25})
        >>> pruner.finish()[0]
        SparseLinear(in_features=64, out_features=128, block_shape=(16, 16), nnz_blocks=8, density=0.25, bias=True)
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Mapping[str, Any] | None],
        schedule: CubicSchedule,
        optimizer: torch.optim.Optimizer,
        *,
        score: str = "magnitude",
        budget: str = "uniform",
        cover: bool = True,
        finish_at_end: bool = False,
    ) -> None:
        if not isinstance(schedule, CubicSchedule):
            raise TypeError(f"schedule must be a CubicSchedule, got {type(schedule).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, FusedOptimizer):
            raise TypeError(f"optimizer must be a torch optimizer, not a fused one, got {type(optimizer).__name__}")
        for name, value, known in (("score", score, SCORES), ("budget", budget, BUDGETS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self._group: Any = None
        self._wrapped = isinstance(model, DistributedDataParallel)
        if isinstance(model, DistributedDataParallel):
            self._group, model = model.process_group, model.module
            if finish_at_end:
                raise ValueError(
                    "finish_at_end must be False with DistributedDataParallel, which must be wrapped around the model "
                    "anew after finish(), got True"
                )
        chosen = chosen_linears(model, rules, "be pruned", "forward")
        if not chosen:
            raise ValueError(f"rules must choose at least one nn.Linear, got {dict(rules)!r}")
        self._sizes: dict[str, LayerSize] = {}
        blocks = {name: checked_pair("block_shape", rule["block_shape"], least=1) for name, (_, rule) in chosen.items()}
        for name, (linear, rule) in chosen.items():
            weight = linear.get_parameter("weight")
            check_has_numbers(f"{name}.weight", weight)
            if type(weight.detach()) is not Tensor:
                raise ValueError(f"{name}.weight must be a plain tensor, got {type(weight.detach()).__name__}")
            if any(masked.linear is linear for masked in _MASKED):
                raise ValueError(f"{name!r} cannot be pruned: another Pruner does; a deep copy of the model can")
            state_like_weight(optimizer, name, weight)
            rows, cols = weight_of(linear).shape
            grid, area = grid_of((rows, cols), blocks[name]), math.prod(blocks[name])
            self._sizes[name] = LayerSize((rows, cols), grid, area, float(rule["density"]))
        self._layers = {name: _Masked(linear, blocks[name]) for name, (linear, _) in chosen.items()}
        self._final = final_densities(budget, self._sizes)
        self._model, self._schedule, self._optimizer = model, schedule, optimizer
        self._score, self._budget, self._cover, self._at_end = score, budget, cover, finish_at_end
        self.steps, self.skipped, self.finished = 0, 0, False

    @property
    def densities(self) -> dict[str, float]:
        """The share of blocks that each layer keeps now."""
        return {name: float(layer.kept.double().mean()) for name, layer in self._layers.items()}

    def group_lasso(self) -> Tensor:
        """:func:`efcn_sparse.pruning.group_lasso` of all layers together, to be added to the loss with a factor."""
        penalties = []
        for layer in self._layers.values():
            weight = layer.linear.weight if self.finished else layer.by_rows(layer.weight)
            assert isinstance(weight, Tensor)
            penalties.append(group_lasso(weight, layer.block_shape))
        return torch.stack(penalties).sum()

    @torch.no_grad()
    def step(self) -> None:
        """Count a step, after ``optimizer.step()`` and before ``zero_grad()``; prune if it is time.

        All blocks are chosen before the first weight changes.

        Raises:
            RuntimeError: the score needs gradients, and a layer has none.
            ValueError: a layer was replaced, a score is not finite, or the optimizer has state that cannot be masked:
                that of Adafactor and LBFGS is not shaped like the weights. The first step tells.
        """
        self._watch()
        if not self.finished and self.steps < self._schedule.end:
            self._check_layers()
            if self.steps == 0:  # now the optimizer has state, and nothing has been trained for long
                for name, layer in self._layers.items():
                    state_like_weight(self._optimizer, name, layer.weight)
            if self._score == "gradient" and not self._gather_saliency():
                self.skipped += 1
                return
            if self._schedule.due(self.steps + 1):
                self._apply(self._choice(self.steps + 1))
                for layer in self._layers.values():
                    layer.saliency.zero_()
        self.steps += 1
        if self._at_end and self.steps == self._schedule.end:
            self.finish()

    def finish(self) -> nn.Module:
        """Replace the layers by :class:`SparseLinear` ones that store what is kept, in place; all or nothing.

        The optimizer, and schedulers of its learning rate, go on with the values where they had the weights. A compiled
        model is compiled again; one in ``DistributedDataParallel`` must be wrapped anew.

        Returns:
            The model, without ``DistributedDataParallel``.
        """
        if not self.finished:
            self._check_layers()
            self._watch()
            patterns = {name: layer.pattern() for name, layer in self._layers.items()}
            shrink(self._model, patterns, self._optimizer)
            for name, layer in self._layers.items():
                layer.replaced_by(self._model.get_submodule(name))
            self.finished = True
        return self._model

    def _check_layers(self) -> None:
        for name, layer in self._layers.items():
            found = self._model.get_submodule(name)
            if found is not layer.linear:
                raise ValueError(f"model must hold {name!r} as the Pruner was given it, got a {type(found).__name__}")

    @torch.no_grad()
    def _watch(self) -> None:
        """Hook weights that were not, and set to zero what they have in blocks that are gone."""
        unwatched = [layer for layer in self._layers.values() if layer.watch()]
        if unwatched:
            self._apply({name: layer.kept for name, layer in self._layers.items()})

    def _gather_saliency(self) -> bool:
        """Add to the scores of all layers; False, and nothing is added, if it is a gradient that is not finite."""
        sums = {}
        for name, layer in self._layers.items():
            weight = layer.weight
            if weight.grad is None:
                raise RuntimeError(
                    f"{name}.weight must have a gradient: call pruner.step() before zero_grad(), got None"
                )
            products = layer.by_rows(weight.grad.double() * weight)  # finite if both are
            sums[name] = sums_of_blocks(products, layer.block_shape)
        if not _finite(*sums.values()) and _finite(*(layer.weight for layer in self._layers.values())):
            return False
        for name, layer in self._layers.items():
            layer.saliency += sums[name].square()
        return True

    def _scores(self) -> dict[str, Tensor]:
        """fp64 ``[block rows, block columns]`` by layer; -1 where a block is gone, which is the last to come back."""
        scores = {}
        for name, layer in self._layers.items():
            if self._score == "gradient":
                score = layer.saliency.clone()
            else:
                score = sums_of_blocks(layer.by_rows(layer.weight).double().square(), layer.block_shape)
            if self._wrapped:
                dist.broadcast(score, dist.get_global_rank(self._group, 0), group=self._group)
            scores[name] = score / self._sizes[name].area
        for name, score in scores.items():
            if not _finite(score):
                raise ValueError(f"{name}.weight must have finite scores, got NaN or infinity")
            score.masked_fill_(~self._layers[name].kept, -1.0)
        return scores

    def _choice(self, step: int) -> dict[str, Tensor]:
        scores = self._scores()
        densities = {name: self._schedule.density(step, final) for name, final in self._final.items()}
        every = scores if self._budget == "global" else None
        counts = counts_by_layer(densities, self._sizes, every, self._cover)
        chosen = {}
        for name, score in scores.items():
            kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
            kept[highest_blocks(score, counts[name], cover=self._cover)] = True
            chosen[name] = kept.view(score.shape)
        return chosen

    def _apply(self, chosen: Mapping[str, Tensor]) -> None:
        """Keep these blocks; weights, gradients and state of all others become zero."""
        ready: list[tuple[_Masked, Tensor, Tensor, list[Tensor]]] = []
        for name, layer in self._layers.items():
            weight = layer.weight
            tensors = [weight, *state_like_weight(self._optimizer, name, weight).values()]
            if weight.grad is not None:
                tensors.append(weight.grad)
            ready.append((layer, chosen[name], layer.entries_gone(chosen[name]), tensors))
        for layer, kept, gone, tensors in ready:
            layer.kept, layer.gone = kept, gone
            for tensor in tensors:
                tensor.masked_fill_(gone, 0)
        weights_were_written()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the state dicts of model and optimizer."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "finished": self.finished,
            "kept": {name: layer.kept.clone() for name, layer in self._layers.items()},
            "saliency": {name: layer.saliency.clone() for name, layer in self._layers.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, before model and optimizer load theirs.

        If storage had shrunk, it shrinks here, so that the layers have the shapes of what they load.

        Raises:
            ValueError: the layers or their blocks are others, or storage has shrunk here and not there.
        """
        wanted = {name: layer.kept.shape for name, layer in self._layers.items()}
        for part in ("kept", "saliency"):
            found = {name: tensor.shape for name, tensor in state_dict[part].items()}
            if found != wanted:
                told = [{name: list(shape) for name, shape in shapes.items()} for shapes in (wanted, found)]
                raise ValueError(f"state_dict must hold {part} of {told[0]}, got {told[1]}")
        kept = {name: state_dict["kept"][name].to(layer.kept.device) for name, layer in self._layers.items()}
        if self.finished:
            same = all(torch.equal(kept[name], layer.kept) for name, layer in self._layers.items())
            if not (same and state_dict["finished"]):
                raise ValueError("state_dict must be of the same sparse layers after finish(), got others")
        else:
            self._apply(kept)
        for name, layer in self._layers.items():
            layer.saliency.copy_(state_dict["saliency"][name])
        self.steps, self.skipped = int(state_dict["steps"]), int(state_dict.get("skipped", 0))
        if state_dict["finished"]:
            self.finish()
