"""The expected time of a training step: its work over measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from efcn_sparse.planning.probe import Probe
from efcn_sparse.planning.work import Operation, Product, StepWork


@dataclass(frozen=True)
class Rates:
    """What a machine did when it was measured.

    Attributes:
        products: FLOP/s of each operation on each probe, by :attr:`Probe.key`.
        dense: FLOP/s of torch's dense product.
        bandwidth: bytes read and written a second, by arrays larger than the caches.
        first_touch: bytes a second that are taken from the system, written, and given back.
        call: seconds that an operator takes when it has nothing to do, autograd's part of it included.
    """

    products: Mapping[str, Mapping[Operation, float]]
    dense: float
    bandwidth: float
    first_touch: float
    call: float

    def lacking(self, products: Iterable[Product]) -> list[Probe]:
        """The probes of ``products`` for which there is no rate."""
        probes = {
            product.probe.key: product.probe
            for product in products
            if product.operation not in self.products.get(product.probe.key, {})
        }
        return list(probes.values())


@dataclass(frozen=True)
class StepTime:
    """The expected time of a step, in seconds.

    Attributes:
        products: of each sparse layer, by name and operation.
        rest: of all other operators.
    """

    products: dict[str, dict[Operation, float]]
    rest: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(sum(layer.values()) for layer in self.products.values()) + self.rest


def expected_time(work: StepWork, rates: Rates) -> StepTime:
    """The time of a step on an idle machine: each product at its rate or as fast as memory gives it, then the rest.

    Raises:
        ValueError: ``rates`` lack a product of ``work``.

    Example:
        >>> from efcn_sparse.planning.work import OperatorWork
        >>> rates = Rates({}, dense=1e11, bandwidth=2e10, first_touch=4e9, call=1e-5)
        >>> expected_time(StepWork(operators={"relu": OperatorWork(calls=10, moved=10**10)}), rates).seconds
        0.5001
    """
    lacking = rates.lacking(work.products)
    if lacking:
        raise ValueError(f"rates must have every product of the step, got none for {lacking[0].key}")
    products: dict[str, dict[Operation, float]] = {}
    for product in work.products:
        computing = product.flops / rates.products[product.probe.key][product.operation]
        layer = products.setdefault(product.layer, {})
        moving = product.moved / rates.bandwidth
        layer[product.operation] = layer.get(product.operation, 0.0) + max(computing, moving)
    rest = work.fresh / rates.first_touch
    for done in work.operators.values():
        rest += done.calls * rates.call + max(done.flops / rates.dense, done.moved / rates.bandwidth)
    return StepTime(products, rest)
