"""Configurations are checked field by field and survive JSON; relax times are the original's."""

import functools
import re

import numpy as np
import pytest

import efcn_sparse.training as training
from efcn_sparse.training.run.plan import stages

ARMS = "cnn, fcn, elcn, efcn-dilated<radius>, efcn-grown<budget>, efcn-lowrank<rank>, efcn-full"

BAD = [
    (dict(preset="mnist"),
     f"preset must be one of {', '.join(training.PRESETS)}, got 'mnist'"),
    (dict(seeds=()), "seeds must hold one or more different items, got ()"),
    (dict(seeds=(1, 1)), "seeds must hold one or more different items, got (1, 1)"),
    (dict(seeds=3), "seeds must be a sequence, got 3"),
    (dict(seeds=(-1,)), "each of seeds must be an integer of at least 0, got -1"),
    (dict(seeds=(0.5,)), "each of seeds must be an integer of at least 0, got 0.5"),
    (dict(arms="cnn"), "arms must be a sequence, got 'cnn'"),
    (dict(arms=("cnn", "efcn")),
     f"each of arms must be one of {ARMS}, with numbers of at least 1, got 'efcn'"),
    (dict(arms=("cnn", "efcn-dilated0")),
     f"each of arms must be one of {ARMS}, with numbers of at least 1, got 'efcn-dilated0'"),
    (dict(arms=("cnn", "efcn-grown0.3")),
     f"each of arms must be one of {ARMS}, with numbers of at least 1, got 'efcn-grown0.3'"),
    (dict(arms=("elcn",)), "arms must hold 'cnn', from which the others are embedded, got ('elcn',)"),
    (dict(cnn_epochs=-1), "cnn_epochs must be an integer of at least 0, got -1"),
    (dict(relax_epochs=1.5), "relax_epochs must be an integer of at least 0, got 1.5"),
    (dict(fcn_epochs=True), "fcn_epochs must be an integer of at least 0, got True"),
    (dict(snapshots=0), "snapshots must be an integer of at least 1, got 0"),
    (dict(batch_size=0), "batch_size must be an integer of at least 1, got 0"),
    (dict(train_limit=0), "train_limit must be an integer of at least 1, got 0"),
    (dict(threads=0), "threads must be an integer of at least 1, got 0"),
    (dict(relax_times=(0, 151)), "each of relax_times must lie in [0, cnn_epochs=150], got 151"),
    (dict(relax_times=([1],)), "relax_times must hold one or more different items, got ([1],)"),
    (dict(cnn_epochs=10**20), "cnn_epochs must be an integer of at most 1000000, got 100000000000000000000"),
    (dict(snapshots=2 * 10**9), "snapshots must be an integer of at most 1000, got 2000000000"),
    (dict(seeds=range(10**9)), "seeds must hold at most 1000 items, got 1000000000"),
    (dict(seeds=range(1000), relax_times=range(100)),
     "seeds, relax_times and arms must make at most 100000 training runs, got 500000"),
    (dict(lr=10**400), f"lr must be a positive finite number, got {10**400}"),
    (dict(preset=["digits"]), f"preset must be one of {', '.join(training.PRESETS)}, got ['digits']"),
    (dict(relax_times=()), "relax_times must hold one or more different items, got ()"),
    (dict(lr=0), "lr must be a positive finite number, got 0"),
    (dict(lr=float("nan")), "lr must be a positive finite number, got nan"),
    (dict(relaxed_lr=-0.1), "relaxed_lr must be a positive finite number, got -0.1"),
    (dict(fcn_lr="fast"), "fcn_lr must be a positive finite number, got 'fast'"),
    (dict(momentum=1), "momentum must lie in [0, 1), got 1"),
    (dict(weight_decay=-1), "weight_decay must be a finite number of at least 0, got -1"),
    (dict(relaxing=["both"]), "relaxing must be one of both, sharing, locality, none, got ['both']"),
    (dict(relaxing="all"), "relaxing must be one of both, sharing, locality, none, got 'all'"),
    (dict(copies="some"), "copies must be one of mean, sum, got 'some'"),
    (dict(carry_momentum=1), "carry_momentum must be True or False, got 1"),
    (dict(carry_momentum=True), "carry_momentum must come with momentum, got momentum 0"),
    (dict(parts="tied:rate=0"), "parts must be a sequence, got 'tied:rate=0'"),
    (dict(parts=("conv9/tied:rate=0",)),
     "parts must name convolutions of the net, conv1, conv2, conv3, got 'conv9/tied:rate=0'"),
    (dict(parts=("untied:l1=1",)),
     "parts must go together in each layer, got for conv1: untied.l1 must be 0, got 1.0: the untied part of each "
     "kernel entry has mean zero, which shrinking each number alone would not keep"),
    (dict(parts=("conv2/off-local:beta=50",)),
     "parts must go together in each layer, got for conv2: l1 must be positive where beta is given, "
     "got 0 with beta 50.0"),
    (dict(fused=True, copies="sum"),
     "fused must be left out beside relaxing, parts or copies: the tied part of a step needs the gradients of "
     "all copies, and a fused update sees those of a few block rows at a time"),
    (dict(fused=1), "fused must be True or False, got 1"),
    (dict(data=3), "data must be a path or a name, got 3"),
    (dict(device="abacus"), "device must be a torch device such as 'cpu' or 'cuda:0', got 'abacus'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.RelaxConfig(**{"preset": "digits", **change})


@pytest.mark.parametrize("preset", training.PRESETS)
def test_json_round_trip(preset):
    config = training.RelaxConfig.from_preset(
        preset, relaxed_lr=0.01, train_limit=100, relaxing="sharing", parts=["*/tied:rate=0.1", "off_local:l1=1e-5"],
        copies="sum", momentum=0.9, carry_momentum=True,
    )  # fmt: skip
    assert training.RelaxConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "text must hold a JSON object, got one that is nested too deeply"),
        ("[]", "text must hold a JSON object, got a list"),
        ('{"preset": "digits", "lr": NaN}', "text must hold a JSON object, got text that is none: NaN is no JSON"),
        ('{"preset": "digits", "lr": 1e400}', "lr must be a positive finite number, got inf"),
        ('{"preset": "digits", "cnn_epochs": 1e20}', "cnn_epochs must be an integer of at least 0, got 1e+20"),
        ('{"lr": 0.1}', "text must have the field preset, got none"),
    ],
    ids=["deep", "list", "nan", "infinite", "float", "none"],
)
def test_json_of_something_else_is_refused(text, told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        training.RelaxConfig.from_json(text)


def test_the_defaults_are_the_originals():
    config = training.RelaxConfig.from_preset("vanilla-cifar10")
    assert (config.lr, config.batch_size, config.momentum, config.weight_decay) == (0.1, 250, 0.0, 0.0)
    assert (config.cnn_epochs, config.relax_epochs, config.relaxed_lr) == (150, 100, 0.1)


@pytest.mark.parametrize("epochs", [1, 2, 10, 100, 150, 300])
def test_snapshots_are_the_originals(epochs):
    original = np.unique(np.logspace(0, np.log10(epochs), 20).astype(int))
    assert training.snapshot_epochs(epochs) == (0, *original.tolist())


def test_relax_times_of_a_preset_make_way_for_computed_ones():
    preset = functools.partial(training.RelaxConfig.from_preset, "digits-aligned")
    assert preset(lr=0.2).relax_times == (0, 10, 40)
    assert preset(snapshots=3).relax_times == (0, *training.snapshot_epochs(40, 3)[1:])
    assert preset(cnn_epochs=20).relax_times == training.snapshot_epochs(20)
    assert preset(cnn_epochs=20, relax_times=(5,)).relax_times == (5,)


def test_digits_has_at_least_five_relax_times_and_two_seeds_and_all_arms():
    config = training.RelaxConfig.from_preset("digits")
    assert len(config.relax_times) >= 5
    assert len(config.seeds) >= 2
    assert {"cnn", "fcn", "elcn", "efcn-full"} < set(config.arms)
    assert any(arm.startswith("efcn-dilated") for arm in config.arms)


def test_the_control_is_trained_as_long_as_the_last_embedding():
    config = training.RelaxConfig(preset="digits", cnn_epochs=10, relax_epochs=7, arms=("cnn", "elcn"))
    plan = {stage.name: stage for stage in stages(config)}
    assert plan["cnn-seed0"].last == 17 == plan["elcn-seed0-t10"].last
    assert set(config.relax_times) <= set(plan["cnn-seed0"].kept)
    assert plan["elcn-seed0-t10"].kept == (10, 13, 17)


def test_the_relaxed_control_is_run_only_if_its_learning_rate_differs():
    same = training.RelaxConfig(preset="digits", relaxed_lr=0.1)
    other = training.RelaxConfig(preset="digits", relaxed_lr=0.01)
    assert "cnn-relaxed" not in {str(stage.arm) for stage in stages(same)}
    controls = [stage for stage in stages(other) if str(stage.arm) == "cnn-relaxed"]
    assert [stage.relax_epoch for stage in controls] == list(other.relax_times)
    assert {stage.lr for stage in controls} == {0.01}
