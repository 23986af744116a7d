import pytest

from efcn_sparse.measure import contest as contests
from efcn_sparse.measure.contest import Contest, Spread


def test_contestants_take_turns_and_ours_is_last():
    calls = []
    contest = Contest({"ours": lambda: calls.append("o"), "rival": lambda: calls.append("r")}, ours="ours")
    contest.run(3)
    assert "".join(calls) == "oorr" + "rroo" * 3  # warm-up, then an untimed and a timed call of each
    assert len(contest.times("ours")) == len(contest.times("rival")) == 3


def test_ratio_pairs_the_rounds_in_which_both_ran():
    contest = Contest({"ours": lambda: None, "rival": lambda: None}, ours="ours")
    contest.samples = {"ours": [1.0, 2.0, 4.0, 5.0], "rival": [3.0, 6.0, 12.0, None]}
    assert contest.ratio("rival", "ours") == Spread(3.0, 3.0, 3.0, 3)


def test_a_slow_rival_sits_out_and_ours_never_does(monkeypatch):
    seconds = {"ours": 1.5, "rival": 1.5}
    monkeypatch.setattr(contests, "_timed", lambda call: seconds[call()])
    contest = Contest({"ours": lambda: "ours", "rival": lambda: "rival"}, ours="ours")
    contest.run(6)
    assert contest.samples == {"ours": [1.5] * 6, "rival": [1.5] * 3 + [None] * 3}


def test_ours_must_take_part():
    with pytest.raises(ValueError, match="contestants must hold 'efcn_sparse', got \\['rival'\\]"):
        Contest({"rival": lambda: None})
