"""Trust: sources are weighed by how often they agree, whatever the order, and ties fall to preference."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators import crowdkit_adapter
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.crowdkit_adapter import Vote
from prefect_dispatch.integrators.merge_records.field_rules import DEFAULT_WEIGHT, select_by_weight
from prefect_dispatch.integrators.merge_records.fold import estimate_weights
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from tests.integrators.said import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

VOTES = st.lists(st.builds(Vote, st.sampled_from("12345"), st.sampled_from("abcd"), st.sampled_from("xyz")))
SURE = settings(deadline=None, max_examples=40)


def merged(outcomes: Sequence[Outcome], **options: Any) -> Merge:  # noqa: ANN401 -- whatever options there are
    """Return an audited merge in which `x` is decided by trust."""
    integrator = MergeRecords.model_validate({"identity": ["name"], "rules": {"x": {"rule": "trust", **options}}})
    merge = integrator.merge([], outcomes)
    assert audit(merge, outcomes, [], integrator) == ()
    return merge


def values(merge: Merge) -> list[Any]:
    """Return what stands at `x`."""
    value: Any = merge.value
    return [record["x"] for record in value["records"]]


def learned(merge: Merge) -> dict[Any, tuple[Any, ...]]:
    """Return weight, claims and agreements of each source."""
    [found] = [table for table in merge.tables if table.name == "trust"]
    return {row["source"]: (row["weight"], row["claims"], row["agreements"]) for row in found.rows}


def answers(said: dict[str, str], *, by: str = "item") -> list[Outcome]:
    """Return the answers of sources: for each one letter for each record; a blank says nothing."""
    return [
        say(
            source if by == "item" else "one",
            [{"name": at, "x": x} for at, x in enumerate(row) if x != " "],
            brief=source if by == "brief" else "terms",
        ).model_copy(update={"model": f"model of {source}"})
        for source, row in said.items()
    ]


SAID = {"good": "aaaaaab", "fair": "aaaabb ", "poor": "bcdcde ", "lone": "      c"}


@pytest.mark.slow
def test_the_most_trusted_source_stands_where_all_differ() -> None:
    """What a source that agrees with the others says stands against two of which each is alone with it."""
    merge = merged(answers(SAID))
    first, ties, last = values(merge)[:4], values(merge)[4:6], values(merge)[6]
    assert (first, last) == (list("aaaa"), "b")
    assert set(ties) <= {"a", "b"}, "of two sources of one weight, a hash decides"
    assert learned(merge) == {
        "fair": (1.0, 4, 4),
        "good": (1.0, 4, 4),
        "poor": (0.0, 4, 0),
        "lone": (DEFAULT_WEIGHT, 0, 0),
    }


@pytest.mark.slow
def test_one_trusted_source_outweighs_two_that_are_mostly_wrong() -> None:
    """Two poor sources that happen to agree count less than one that is always with the others."""
    said = {"a": "ppppppppp", "b": "pppppppp ", "c": "pppppppp ", "d": "xyzuvwstq", "e": "uvwstxyzq"}
    assert values(merged(answers(said)))[-1] == "p"
    majority = MergeRecords.model_validate({"identity": ["name"], "rules": {"x": "majority"}})
    assert values(majority.merge([], answers(said)))[-1] == "q"


def test_two_sources_fall_to_preference() -> None:
    """Of two sources neither is more trusted than the other: the preferred one stands, and the report says why."""
    merge = merged([say("a", {"name": "n", "x": "low"}), say("b", {"name": "n", "x": "high"}, item_first=1)])
    assert values(merge) == ["high"]
    assert set(learned(merge).values()) == {(DEFAULT_WEIGHT, 0, 0)}
    assert "All sources weigh the same" in merge.rules


@pytest.mark.parametrize(
    ("of", "by", "sources"),
    [
        pytest.param(None, "item", {"good", "fair", "poor", "lone"}, id="one-brief-many-items"),
        pytest.param(None, "brief", {"good", "fair", "poor", "lone"}, id="many-briefs-one-item"),
        pytest.param("brief", "item", {"terms"}, id="one-brief"),
        pytest.param("item", "brief", {"one"}, id="one-item"),
        pytest.param("model", "item", {f"model of {name}" for name in SAID}, id="models"),
    ],
)
def test_a_source_is_what_differs(of: str | None, by: str, sources: set[str]) -> None:
    """Unless it is said, the items of one brief are the sources, or else the briefs."""
    assert learned(merged(answers(SAID, by=by), of=of)).keys() == sources


def test_rules_that_mean_the_same_source_share_what_is_known() -> None:
    """All fields that trust decides count together; those of another kind of source by themselves."""
    rules = {"x": "trust", "y": {"rule": "trust", "of": "item"}, "z": {"rule": "trust", "of": "model"}}
    integrator = MergeRecords.model_validate({"identity": ["name"], "rules": rules})
    said = [say(item, {"name": "n", "x": 1, "y": item == "c", "z": 3}) for item in "abc"]
    [table] = integrator.merge([], said).tables
    assert [(row["of"], row["source"], row["claims"], row["agreements"]) for row in table.rows] == [
        ("item", "a", 2, 2),
        ("item", "b", 2, 2),
        ("item", "c", 2, 1),
        ("model", "", 0, 0),
    ]


def test_a_source_counts_once_for_a_value() -> None:
    """A source that says the same in many records has no more weight for it."""
    said = [
        say("a", [{"name": "n", "x": 1, "more": at} for at in range(5)], brief="one"),
        say("b", {"name": "n", "x": 2}, brief="two"),
        say("c", {"name": "n", "x": 2}, brief="three"),
    ]
    assert values(merged(said)) == [2]


@pytest.mark.slow
@SURE
@given(VOTES, st.randoms(use_true_random=False))
def test_weights_know_no_order(votes: list[Vote], chance: random.Random) -> None:
    """However votes are shuffled, and however often they are repeated, weights are the same."""
    shuffled = [*votes, *votes[:3]]
    chance.shuffle(shuffled)
    found = estimate_weights(shuffled)
    assert list(found.items()) == list(estimate_weights(votes).items())
    assert all(0 <= weight <= 1 for weight in found.values())


@SURE
@given(VOTES)
def test_weights_are_shares_of_agreement(votes: list[Vote]) -> None:
    """Counted by hand, the share of a source's claims that most agree with is its weight."""
    claims: dict[str, list[bool]] = {}
    for item in {vote.item for vote in votes}:
        said = {(vote.agent, vote.opinion) for vote in votes if vote.item == item}
        counts = {opinion: sum(other == opinion for _, other in said) for _, opinion in said}
        top = [opinion for opinion, count in counts.items() if count == max(counts.values())]
        if len(top) == 1 and len({agent for agent, _ in said}) > 1:
            for agent, opinion in said:
                claims.setdefault(agent, []).append(opinion == top[0])
    shares = {agent: sum(agreed) / len(agreed) for agent, agreed in claims.items()}
    assert estimate_weights(votes) == pytest.approx(shares, abs=1e-6)


def test_ties_fall_to_what_is_said_first() -> None:
    """Equal weights behind two values: the preferred one stands, though their sums differ by rounding."""
    said = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "x"), ("e", "x"), ("f", "y")]
    known = {"a": 0.1, "d": 0.2, "e": 0.3, "b": 0.3, "c": 0.2, "f": 0.1}
    assert select_by_weight(said, known) == "x"
    assert select_by_weight([("b", "y"), *said], known) == "y"


def test_a_missing_extra_is_refused_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, in the check ahead of a run as in a merge without one."""

    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(crowdkit_adapter, "find_spec", nothing)
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": {"type": "object"}})
    trusting = MergeRecords.model_validate({"identity": ["name"], "default": "trust"})
    with pytest.raises(JobError, match=r"'trust' needs crowd-kit.*pip install 'prefect-dispatch\[consensus\]'"):
        trusting.preflight([brief])
    with pytest.raises(JobError, match="'trust' needs crowd-kit"):
        trusting.merge([], answers(SAID))
    MergeRecords(identity=("name",)).preflight([brief])


@pytest.mark.parametrize("seed", range(3))
def test_trust_is_right_more_often_than_the_majority(seed: int) -> None:
    """Of five sources of which two are reliable, it finds more of the truth than counting does."""
    chance = random.Random(seed)
    right = {"a": 0.95, "b": 0.9, "c": 0.5, "d": 0.4, "e": 0.4}
    truth = {str(at): f"true {at}" for at in range(150)}
    said = [
        say(
            source,
            [
                {"name": at, "x": truth[at] if chance.random() < share else f"false {chance.randrange(2)}"}
                for at in truth
                if chance.random() < 0.8
            ],
        )
        for source, share in right.items()
    ]

    def score(rule: str) -> int:
        merge = MergeRecords.model_validate({"identity": ["name"], "rules": {"x": rule}}).merge([], said)
        value: Any = merge.value
        return sum(record["x"] == truth[record["name"]] for record in value["records"])

    assert score("trust") > score("majority")
