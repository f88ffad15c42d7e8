"""Votes: what `auto` learns of voters, ties that no label's name decides, numbers, and votes that exist already."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus import voter_models
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.consensus.number_rules import find_outliers, mean, screened_mean
from prefect_dispatch.integrators.consensus.voter_models import estimate_truth
from prefect_dispatch.integrators.crowdkit_adapter import Vote
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Merge
from tests.integrators.said import miss, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

LABELS = "abcd"


def crowd(sees: Callable[[random.Random, str, int], str], voters: int = 9) -> tuple[list[Vote], dict[str, str]]:
    """Return the votes on 150 items of voters, five on each, and the right labels."""
    chance = random.Random(5)
    truth = {f"item {n}": chance.choice(LABELS) for n in range(150)}
    votes = [
        Vote(item, f"voter {n}", sees(chance, right, n))
        for item, right in truth.items()
        for n in chance.sample(range(voters), 5)
    ]
    return votes, truth


def alike(chance: random.Random, right: str, _voter: int) -> str:
    """Return what a voter sees who is as good as all others."""
    return right if chance.random() < 0.7 else chance.choice(LABELS)


def mixed(chance: random.Random, right: str, voter: int) -> str:
    """Return what a voter sees of whom some guess, and some always say the same."""
    if voter % 3 == 0:
        return chance.choice(LABELS)
    return "a" if voter % 3 == 1 and voter > 3 else right if chance.random() < 0.8 else chance.choice(LABELS)


def count_right(scores: Mapping[str, Mapping[str, float]], truth: Mapping[str, str]) -> int:
    """Return how many items the label of the highest score is right about."""
    return sum(max(scores[item], key=lambda label: scores[item][label]) == right for item, right in truth.items())


def vote(votes: Sequence[Vote]) -> list[Outcome]:
    """Return votes as outcomes of a brief for each voter."""
    return [say(each.item, each.opinion, brief=each.agent.replace(" ", "-")) for each in votes]


def agreed(said: Sequence[Outcome], briefs: Sequence[Brief] = (), **options: Any) -> Merge:  # noqa: ANN401 -- options of many types
    """Return an audited consensus."""
    consensus = Consensus.model_validate(options)
    merge = consensus.merge(briefs, said)
    assert audit(merge, said, briefs, consensus) == ()
    return merge


def answers(merge: Merge) -> dict[str, Any]:
    """Return the answer to each item."""
    value: Any = merge.value
    return {entry["item"]: entry["value"] for entry in value["answers"]}


def test_voters_who_are_alike_decide_by_majority() -> None:
    """Where nothing sets voters apart, nothing is learned; nor of two voters, of single votes, or of unanimous ones."""
    votes, _ = crowd(alike)
    assert estimate_truth(votes) is None
    assert estimate_truth([each for each in crowd(mixed)[0] if each.agent in ("voter 1", "voter 2")]) is None
    assert estimate_truth([Vote(str(n), f"voter {n}", "a") for n in range(5)]) is None
    assert estimate_truth([Vote(str(n), f"voter {m}", "a") for n in range(5) for m in range(4)]) is None


def test_voters_who_guess_count_less() -> None:
    """Where some guess and some always say the same, the models are right more often than the majority."""
    votes, truth = crowd(mixed)
    found = estimate_truth(votes)
    assert found is not None
    said = vote(votes)
    merge = agreed(said)
    assert {row.rule for row in merge.fields} == {"models"}
    by_majority = answers(agreed(said, method="majority"))
    assert count_right(found.scores, truth) >= sum(by_majority[item] == right for item, right in truth.items()) + 10
    assert found.skills["voter 2"] > 0.7 > found.skills["voter 0"]
    agents = [row["agent"] for table in merge.tables if table.name == "agents" for row in table.rows]
    assert agents == [f"voter-{n}" for n in range(9)]


def test_each_model_is_fitted_until_it_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few rounds to converge, there is an estimate all the same."""
    votes, truth = crowd(mixed)
    monkeypatch.setattr(voter_models, "ITERATIONS", 2)
    found = estimate_truth(votes)
    assert found is not None
    assert count_right(found.scores, truth) > 100


@pytest.mark.parametrize("most", [500, 3])
def test_more_labels_than_fit_into_a_matrix(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many labels, the model of one skill for each voter decides, which needs no matrix of labels."""
    votes, truth = crowd(mixed)
    monkeypatch.setattr(voter_models, "MAX_CELLS", most)
    found = estimate_truth(votes)
    assert found is not None
    assert count_right(found.scores, truth) > 100


@pytest.mark.parametrize("method", ["auto", "majority", "weighted", "dawid_skene"])
def test_the_name_of_a_label_decides_nothing(method: str) -> None:
    """The same votes with other names for the labels give the same answers by these names, ties included."""
    votes, _ = crowd(mixed if method == "auto" else alike)
    names = dict(zip("abcd", "zyxw", strict=True))
    renamed = [each._replace(opinion=names[each.opinion]) for each in votes]
    before, after = (answers(agreed(vote(each), method=method)) for each in (votes, renamed))
    assert {item: names[label] for item, label in before.items()} == after


def test_ties_are_shared_out() -> None:
    """Of many ties between two labels, each wins about half, in any order of votes; the flag names the other."""
    said = [
        say(f"item {n}", label, brief=brief) for n in range(200) for brief, label in (("one", "yes"), ("two", "no"))
    ]
    merge = agreed(said)
    won = [*answers(merge).values()].count("yes")
    assert 75 < won < 125
    assert len(merge.flags) == 200
    assert merge.flags[0].message.endswith("priority, then a hash of item and voters decided.")


def test_ties_that_break_the_schema_are_shared_out() -> None:
    """Where the fields together violate the schema, the name of no value decides which of two answers stands whole."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [0, 1]}, "b": {"enum": [0, 1]}},
        "oneOf": [{"properties": {"a": {"const": n}, "b": {"const": n}}} for n in (0, 1)],
    }
    briefs = [Brief.model_validate({"name": name, "instructions": "Judge.", "output": schema}) for name in "xy"]
    said = [say(f"i{n}", {"a": m, "b": m}, brief=name) for n in range(60) for m, name in enumerate("xy")]
    merge = agreed(said, briefs, rules={"a": "majority"})
    assert 15 < [each["a"] for each in answers(merge).values()].count(0) < 45


def test_a_source_trusted_as_much_as_another_wins_by_no_name() -> None:
    """By the rule `trust`, renaming values changes no winner."""
    trusting = MergeRecords.model_validate({"identity": ["name"], "rules": {"x": "trust"}})

    def decide(first: str, second: str) -> list[str]:
        said = [
            say(str(n), {"name": f"record {n}", "x": x}, brief=brief)
            for n in range(4)
            for brief, x in (("one", first), ("two", second))
        ]
        value: Any = trusting.merge([], said).value
        return [{first: "first", second: "second"}[record["x"]] for record in value["records"]]

    assert decide("a", "b") == decide("b", "a")


def test_auto_without_crowd_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the majority decides, and a flag says so and what to install; the run isn't refused."""

    def find_nothing(_name: str) -> None:
        """Find no package."""

    monkeypatch.setattr("prefect_dispatch.integrators.crowdkit_adapter.find_spec", find_nothing)
    votes, _ = crowd(mixed)
    merge = agreed(vote(votes))
    assert {row.rule for row in merge.fields} == {"majority"}
    [flag] = [flag for flag in merge.flags if flag.kind == "method"]
    assert (flag.path, flag.text) == ("/answers", "answer")
    assert "pip install 'prefect-dispatch[consensus]'" in flag.message
    assert [flag for flag in agreed(vote(votes), method="majority").flags if flag.kind == "method"] == []


@pytest.mark.parametrize(
    ("rule", "expected", "row", "left_out"),
    [
        ("auto", 37, "consensus:mean", ""),
        ("mean", 37, "consensus:arithmetic_mean", ""),
        ("median", 0, "consensus:median", ""),
        ("robust_mean", 0, "consensus:robust_mean", "90, 95 are far from most numbers, and left out."),
    ],
)
def test_rules_for_numbers(rule: str, expected: int, row: str, left_out: str) -> None:
    """Mean, median and robust mean stand side by side; what a robust one leaves out is flagged."""
    said = [say("a", {"n": n}, brief=f"v-{at}") for at, n in enumerate([0, 0, 0, 90, 95])]
    merge = agreed(said, rules={"n": rule})
    assert answers(merge) == {"a": {"n": expected}}
    assert [each.rule for each in merge.fields] == [row]
    assert [(flag.kind, flag.message) for flag in merge.flags] == ([("outlier", left_out)] if left_out else [])


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([10, 11, 12, 500], 11),
        ([7, 7, 7, 500], 7),
        ([7, 7, 7, 50], 17.75),
        ([7, 7, 7, 70], 7),
        ([70, 70, 7], 70),
        ([-70, -70, -7], -70),
        ([70, 70, 0], 46.6666666666667),
        ([2000, 2000, 2000, 2, 3], 1201),
        ([0, 0, 0, 30], 7.5),
        ([1, 3], 2),
        ([1.0, 1.1, 3.0], 1.7),
        ([5, 6, 5, 900, 950], 373.2),
        ([1e308, 1.2e308, 1.4e308, 1.6e308], 1.3e308),
    ],
)
def test_only_gross_errors_are_left_out(numbers: list[float], expected: float) -> None:
    """A single number that is out by an order of magnitude is an error; two of them, or a larger spread, are not."""
    assert screened_mean(numbers) == expected


def test_numbers_too_large_for_a_spread() -> None:
    """Of numbers that no deviation can be computed of, none is an outlier."""
    assert find_outliers("consensus:mean", [10**400, 1.5, 2.5]) == []
    assert mean([10**400, 1.5]) == 1.5


ROWS = [("q1", "w1", "yes"), ("q1", "w2", "yes"), ("q1", "w3", "no"), ("q2", "w1", "no"), ("q10", "w3", "no")]


def label(rows: Sequence[tuple[str, str, JsonValue]]) -> list[Outcome]:
    """Return the rows of a table of labels as outcomes of one brief."""
    return [
        say(str(n), {"question": question, "worker": worker, "answer": answer}, brief="labels")
        for n, (question, worker, answer) in enumerate(rows, 1)
    ]


def test_votes_that_exist_already() -> None:
    """Rows of question, worker and answer become an answer for each question, with a ledger row for each vote."""
    said = [*label(ROWS), miss("9", brief="labels")]
    merge = agreed(said, item="question", voter="worker", min_votes=1)
    value: Any = merge.value
    assert value["answers"] == [
        {"item": "q1", "value": {"answer": "yes"}, "voters": ["w1", "w2", "w3"]},
        {"item": "q2", "value": {"answer": "no"}, "voters": ["w1"]},
        {"item": "q10", "value": {"answer": "no"}, "voters": ["w3"]},
    ]
    assert [(row.item, row.disposition, row.by and row.by.item) for row in merge.ledger] == [
        ("1", "merged", None),
        ("2", "duplicate_of", "1"),
        ("3", "overridden", "1"),
        ("4", "merged", None),
        ("5", "merged", None),
        ("9", "failed", None),
    ]
    [row] = [row for table in merge.tables if table.name == "disagreements" for row in table.rows]
    assert (row["item"], row["said"]) == ("q1", '"yes" (w1, w2); "no" (w3)')
    few = agreed(said, item="question", voter="worker", min_votes=2)
    assert [*answers(few)] == ["q1"]


def test_sparse_votes_are_learned_from() -> None:
    """Workers of whom each answers some questions only are told apart as briefs are."""
    votes, truth = crowd(mixed)
    merge = agreed(label([(each.item, each.agent, each.opinion) for each in votes]), item="question", voter="worker")
    found = {item: value["answer"] for item, value in answers(merge).items()}
    assert found == answers(agreed([say(each.item, each.opinion, brief=each.agent) for each in votes]))
    assert sum(found[item] == right for item, right in truth.items()) > 115


def test_votes_that_are_tampered_with() -> None:
    """The audit finds an item renamed, a voter added, and an answer given to another item."""
    consensus = Consensus(item="question", voter="worker")
    said = label(ROWS)
    honest = consensus.merge([], said)

    def change(path: str, new: JsonValue) -> Merge:
        copy = honest.model_dump(mode="json")
        for row in copy["fields"]:
            if row["path"] == path:
                row["winner"] = new
        _, name, at, *keys, last = path.split("/")
        target: Any = copy["value"][name][int(at)]
        for key in keys:
            target = target[key]
        target[last] = new
        return Merge.model_validate(copy)

    changes: dict[str, JsonValue] = {
        "/answers/0/item": "q2",
        "/answers/0/voters": ["w1", "w2", "w3", "w9"],
        "/answers/1/voters": ["w2"],
        "/answers/1/value/answer": "yes",
    }
    for path, new in changes.items():
        bent = [change(path, new)]
        assert audit(bent[0], said, [], consensus, again=lambda _: bent[0]) != (), path  # noqa: B023 -- called at once


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": "q1", "worker": "w1", "answer": "no"}, "'w1' votes twice on 'q1', in labels/1 and labels/7"),
        (
            {"question": "q1", "answer": "no"},
            "The answer of labels/7 has neither text nor a whole number in its field 'worker'",
        ),
        ({"question": 7, "worker": "w1", "answer": "no"}, "some answers have the number 7 and others the text '7'"),
        ({"question": True, "worker": "w1"}, "has neither text nor a whole number in its field 'question'"),
        ({"question": "q1", "worker": 1.5}, "has neither text nor a whole number in its field 'worker'"),
        ("yes", "has neither text nor a whole number in its field 'question'"),
    ],
)
def test_answers_that_are_no_votes(value: JsonValue, message: str) -> None:
    """An answer without item or voter, and a second one of a voter, are refused by name."""
    with pytest.raises(Exception, match=message):
        Consensus(item="question", voter="worker").merge(
            [], [*label([*ROWS[:-1], ("7", "w3", "no")]), say("7", value, brief="labels")]
        )


def test_the_fields_of_votes_are_checked_beforehand() -> None:
    """One brief is enough for votes that exist; both fields have to be in its schema, and given together."""
    schema = {"type": "object", "properties": {"question": {"type": "string"}, "worker": {"type": "string"}}}
    brief = Brief.model_validate({"name": "labels", "instructions": "A label.", "output": schema})
    Consensus.model_validate(
        {"item": "question", "voter": "worker", "method": "weighted", "weights": {"w1": 2}}
    ).preflight([brief])
    with pytest.raises(Exception, match=r"'werker' is not in the schema of brief 'labels'; did you mean 'worker'"):
        Consensus(item="question", voter="werker").preflight([brief])
    with pytest.raises(ValueError, match="give both, or neither"):
        Consensus(item="question")
