"""Who errs how: what crowd-kit makes of votes, and that nothing but the votes counts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.crowdkit_adapter import Vote, dawid_skene, require_crowd_kit, wawa

if TYPE_CHECKING:
    from collections.abc import Mapping

TRUTH = {f"item {n}": "yes" if n % 3 else "no" for n in range(60)}


def crowd() -> list[Vote]:
    """Return the votes of two good agents, and of three who mostly say yes."""
    chance = random.Random(1)
    votes: list[Vote] = []
    for item, right in TRUTH.items():
        wrong = "no" if right == "yes" else "yes"
        votes += [Vote(item, agent, right if chance.random() < 0.95 else wrong) for agent in ("good", "better")]
        votes += [Vote(item, f"eager-{n}", "yes" if chance.random() < 0.9 else "no") for n in range(3)]
    return votes


def right_by(scores: Mapping[str, Mapping[str, float]]) -> int:
    """Return how many items the opinion of the highest score is right about."""
    return sum(max(scores[item], key=lambda one: scores[item][one]) == right for item, right in TRUTH.items())


def nothing(_name: str) -> None:
    """Find no package."""


def test_dawid_skene_sees_through_a_bias() -> None:
    """Agents who always say yes outvote those who look; the model finds out and goes by the latter."""
    votes = crowd()
    model = dawid_skene(votes)
    assert right_by(model.scores) > right_by(wawa(votes).scores)
    assert right_by(model.scores) >= 57
    assert model.skills["better"] > 0.9 > model.skills["eager-1"]
    assert model.confusion["eager-0", "no", "yes"] > 0.7
    assert model.confusion["good", "no", "yes"] < 0.2
    assert 0 < model.rounds < 100


def test_agreement_with_the_majority_is_an_agents_weight() -> None:
    """By Wawa an agent weighs as often as it votes with the majority."""
    votes = [Vote(str(n), agent, "a") for n in range(4) for agent in "xyz"]
    votes[0] = Vote("0", "x", "b")
    model = wawa(votes)
    assert model.skills == {"x": 0.75, "y": 1.0, "z": 1.0}
    assert model.scores["0"] == pytest.approx({"a": 2 / 2.75, "b": 0.75 / 2.75})
    assert (model.confusion, model.rounds) == ({}, 0)


@pytest.mark.parametrize("model", [dawid_skene, wawa])
def test_the_order_of_votes_is_no_matter(model: type) -> None:
    """Shuffled votes give the same figures, to the last bit."""
    votes = crowd()
    shuffled = random.Random(2).sample(votes, len(votes))
    assert model(shuffled) == model(votes)


@pytest.mark.parametrize("model", [dawid_skene, wawa])
@pytest.mark.parametrize("names", [("task", "worker", "label"), ("true", "1", "null"), ("", "\x00", "é")])
def test_no_name_means_anything(model: type, names: tuple[str, str, str]) -> None:
    """Names that mean something to pandas are names."""
    item, agent, opinion = names
    found = model([Vote(item, agent, opinion), Vote(item, "other", opinion), Vote("other", agent, "other")])
    assert found.scores[item][opinion] > 0.99
    assert found.skills.keys() == {agent, "other"}


def test_one_vote() -> None:
    """A single vote is certain, and its agent is right."""
    found = dawid_skene([Vote("a", "x", "yes")])
    assert (found.scores, found.skills) == ({"a": {"yes": 1.0}}, {"x": 1.0})


def test_without_crowd_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it isn't installed, the message says what to install, and what for."""
    require_crowd_kit("This")
    monkeypatch.setattr("prefect_dispatch.integrators.crowdkit_adapter.find_spec", nothing)
    with pytest.raises(JobError, match=r"This needs crowd-kit.*pip install 'prefect-dispatch\[consensus\]'"):
        require_crowd_kit("This")
