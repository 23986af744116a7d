"""A VanillaCNN training step as CNN, eFCN, dense eFCN and unfold+bmm; all compute the same function first."""

from __future__ import annotations

import pytest

from efcn_sparse.measure import vanilla


@pytest.mark.benchmark(group="VanillaCNN training step")
def test_training_step(shapes, session, compete, enforce):
    prepared = vanilla.prepare(shapes.vanilla)
    compete(prepared.contest, shapes.vanilla.rounds)
    record = session.add_vanilla(prepared)
    for rival, met in record["goals_met"].items():
        least, ratio = record["goals"][rival], record["times_faster_than"][rival]
        enforce(met, f"{rival}'s step over ours must be at least {least}, got {ratio:.3f}")
    enforce(record["deviation_goal_met"], f"a reading took {record['deviation_share_of_step']:.1%} of a step")
    enforce(record["embed_goal_met"], f"embedding took {record['embed_seconds']:.2f} s")
