"""What several answers to the same item become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import expand_samples
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.consensus.number_rules import median, robust_mean
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Merge
from tests.integrators.said import miss, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.models.ledger import Table
    from prefect_dispatch.models.outcome import Outcome


def votes(*values: JsonValue, item: str = "a", first: Mapping[int, int] | None = None) -> list[Outcome]:
    """Return answers to an item, of briefs v-1, v-2 and so on; `first` has the priorities of some."""
    return [say(item, value, brief=f"v-{n}", brief_first=(first or {}).get(n, 0)) for n, value in enumerate(values, 1)]


def agreed(said: Sequence[Outcome], briefs: Sequence[Brief] = (), **options: Any) -> Merge:  # noqa: ANN401 -- options of many types
    """Return an audited consensus."""
    consensus = Consensus.model_validate(options)
    merge = consensus.merge(briefs, said)
    assert audit(merge, said, briefs, consensus) == ()
    return merge


def answer(merge: Merge) -> JsonValue:
    """Return the answer to the one item there is."""
    value: Any = merge.value
    [entry] = value["answers"]
    found: JsonValue = entry["value"]
    return found


def table(merge: Merge, name: str) -> Table:
    """Return a table by its name."""
    [found] = [each for each in merge.tables if each.name == name]
    return found


def brief(name: str = "v", **more: Any) -> Brief:  # noqa: ANN401 -- fields of many types
    """Return a brief."""
    return Brief.model_validate({"name": name, "instructions": "Judge.", **more})


def asks(schema: dict[str, Any], count: int = 3) -> list[Brief]:
    """Return briefs v-1, v-2 and so on that ask for records with these properties."""
    output = {"type": "object", "properties": schema}
    return list(expand_samples(brief(output=output, samples=count)))


EMPTY: list[JsonValue] = [{}, {}]
HALF_EMPTY: list[JsonValue] = [{"a": {}}, {"a": {"b": "x"}}]


def nothing(_name: str) -> None:
    """Find no package."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["yes", "no", "yes"], "yes", id="labels"),
        pytest.param([True, False, True], True, id="booleans"),
        pytest.param(["Yes", "yes ", "YES", "Yes", "no"], "Yes", id="one label in several spellings"),
        pytest.param([None, "a", None, None], None, id="most say null"),
        pytest.param([None, "a", "a"], "a", id="few say null"),
        pytest.param([10, 11, 12], 11, id="numbers"),
        pytest.param([1.5, 2.5], 2.0, id="two numbers"),
        pytest.param([10, 11, 12, 500], 11, id="an outlier"),
        pytest.param([7, 7, 7, 500], 7, id="most numbers equal"),
        pytest.param([3, "unclear", 3], 3, id="a number and a word"),
        pytest.param([3, "unclear", "unclear"], "unclear", id="more words than numbers"),
        pytest.param([3, None, None], None, id="more nulls than numbers"),
        pytest.param([["a", "b"], ["a"], ["b", "a"]], ["a", "b"], id="lists"),
        pytest.param([["b", "a"], ["b", "a"], ["c"]], ["b", "a"], id="a list that most have keeps its order"),
        pytest.param([["a"], ["b"], ["c"]], [], id="lists with nothing in common"),
        pytest.param([["A"], ["a", "x"], ["a"], []], ["a"], id="elements in several spellings"),
        pytest.param([["a", "b"], ["a", "c"], None], ["a"], id="lists and a null"),
        pytest.param(
            ["It is free to use.", "It is free for use.", "All rights are kept by us."],
            "It is free to use.",
            id="prose",
        ),
        pytest.param(["x" * 90, "x" * 89 + "y", "q" * 90], "x" * 90, id="long prose"),
        pytest.param(["one\ntwo", "one\ntwo", "three"], "one\ntwo", id="lines"),
        pytest.param([{"a": 1}, "x", "x"], "x", id="objects and words"),
        pytest.param([{"a": 1}, None, None], None, id="more nulls than objects"),
        pytest.param([{"a": 1}, {"a": 1}, None], {"a": 1}, id="a null among objects"),
        pytest.param(EMPTY, {}, id="empty objects"),
        pytest.param(HALF_EMPTY, {"a": {"b": "x"}}, id="an object that is empty for one"),
    ],
)
def test_the_answer(values: list[JsonValue], expected: JsonValue) -> None:
    """Several answers become the one that their kind asks for."""
    assert answer(agreed(votes(*values))) == expected


def test_an_object_is_decided_field_by_field() -> None:
    """The parts of an answer need not come from one agent; fields that some lack are decided by the others."""
    merge = agreed(
        votes(
            {"free": True, "in": {"year": 1987, "name": "MIT"}},
            {"free": True, "in": {"year": 1989, "name": "X11"}, "note": "Short."},
            {"free": False, "in": {"year": 1988, "name": "MIT"}},
        )
    )
    assert answer(merge) == {"free": True, "in": {"name": "MIT", "year": 1988}, "note": "Short."}
    rows = {row.path: row for row in merge.fields}
    assert [str(ref) for ref in rows["/answers/0/value/free"].sources] == ["v-1/a", "v-2/a"]
    assert [loser.value for loser in rows["/answers/0/value/free"].losers] == [False]
    assert rows["/answers/0/value/in/year"].rule == "consensus:mean"
    [note] = [row for row in table(merge, "disagreements").rows if row["field"] == "note"]
    assert (note["agreement"], note["said"]) == (0.3333, '"Short." (v-2); nothing (2)')


def test_where_each_answer_ended() -> None:
    """The first of the majority is merged, the second is its duplicate, the outvoted one is overridden by it."""
    merge = agreed([*votes("yes", "yes", "no"), miss("a", brief="v-4")])
    assert [(row.disposition, row.by and str(row.by), row.reason) for row in merge.ledger] == [
        ("merged", None, ""),
        ("duplicate_of", "v-1/a", "the same answer"),
        ("overridden", "v-1/a", "rule 'majority' on 'answer'"),
        ("failed", None, "timeout: No answer."),
    ]
    assert merge.value == {
        "answers": [{"item": "a", "value": "yes"}],
        "undecided": [],
        "gaps": [{"brief": "v-4", "item": "a", "status": "failed", "reason": "timeout: No answer."}],
    }


def test_outvoted_in_several_fields() -> None:
    """An agent that is outvoted again and again is told of once, with a count."""
    merge = agreed(votes({"a": 1, "b": True}, {"a": 1, "b": True}, {"a": None, "b": False}), rules={"a": "majority"})
    assert merge.ledger[2].reason == "rule 'majority' on 'a' and 1 more"


def test_who_says_nothing() -> None:
    """An agent that has no word in any field is merged, since it says nothing."""
    merge = agreed(votes({"a": "x"}, {"a": "x"}, {}))
    assert (merge.ledger[2].disposition, merge.ledger[2].reason) == ("merged", "says nothing")


def test_all_failed() -> None:
    """An item that nobody answers is a gap and nothing else."""
    merge = agreed([miss("a", brief="v-1"), miss("a", "skipped", brief="v-2"), *votes("x", "x", item="b")])
    value: Any = merge.value
    assert [entry["item"] for entry in value["answers"]] == ["b"]
    assert len(value["gaps"]) == 2


def test_items_come_in_the_order_of_their_keys() -> None:
    """The value has one order, whatever agents disagree on; the table has the worst first."""
    said = [vote for item in ("b10", "b9") for vote in votes("x", "x", "x", item=item)]
    said += votes("x", "y", "x", item="b2") + votes("x", "y", "z", item="b3") + votes("p", "q", "r", item="b1")
    merge = agreed(said)
    value: Any = merge.value
    assert [entry["item"] for entry in value["answers"]] == ["b1", "b2", "b3", "b9", "b10"]
    assert [row["item"] for row in table(merge, "disagreements").rows] == ["b1", "b3", "b2"]


def test_a_tie_goes_to_priority_and_is_flagged() -> None:
    """Of as many votes the brief of higher priority decides; the report says so."""
    merge = agreed(votes("b", "a", "a", "b", first={4: 1}))
    assert answer(merge) == "b"
    [flag] = merge.flags
    assert (flag.path, flag.kind, flag.text, len(flag.sources)) == ("/answers/0/value", "tie", '"b"', 4)
    assert flag.message == 'It ties with "a"; priority, then a hash of item and voters decided.'


def test_texts_as_near_to_each_other_tie() -> None:
    """Of two texts neither is nearer to the other; the preferred one stands, flagged."""
    merge = agreed(votes("It is free.\n", "It is not.\n"))
    assert [flag.kind for flag in merge.flags] == ["tie"]


def test_weights() -> None:
    """An answer counts as much as its brief; each sample of a brief counts as the brief."""
    briefs = [*expand_samples(brief(samples=2)), brief("w")]
    said = [*votes("x", "x"), say("a", "y", brief="w")]
    assert answer(agreed(said, briefs, method="weighted", weights={"w": 3})) == "y"
    assert answer(agreed(said, briefs, method="weighted", weights={"w": 3, "v": 2})) == "x"
    [row] = agreed(said, briefs, method="weighted", weights={"w": 3}).fields
    assert row.rule == "weighted"


@pytest.mark.slow
def test_learned_weights() -> None:
    """Without weights an agent counts as often as it agrees with the majority over all items."""
    said = [vote for n in range(6) for vote in votes("x", "x", "y", item=f"i{n}")]
    said += [say("j", "x", brief="v-1"), say("j", "y", brief="v-3")]
    merge = agreed(said, method="weighted")
    value: Any = merge.value
    assert value["answers"][-1] == {"item": "j", "value": "x"}
    skills = {row["agent"]: row["skill"] for row in table(merge, "agents").rows}
    assert skills == {"v-1": 1.0, "v-2": 1.0, "v-3": 0.0}
    assert "confusion" not in [each.name for each in merge.tables]


@pytest.mark.slow
def test_dawid_and_skene() -> None:
    """By the model two agents that look outvote three that always say yes, and the report says who errs how."""
    said: list[Outcome] = []
    yes: JsonValue = True
    for n in range(30):
        right = n % 2 == 0
        said += votes(right, right, right if n % 7 else not right, yes, yes, item=f"i{n:02}")
    merge = agreed(said, method="dawid_skene")
    value: Any = merge.value
    assert [entry["value"] for entry in value["answers"]] == [n % 2 == 0 for n in range(30)]
    eager = [row for row in table(merge, "confusion").rows if row["agent"] == "v-5" and row["right"] is False]
    assert [(row["said"], row["probability"]) for row in eager] == [(True, 1.0)]
    skills = {row["agent"]: row["skill"] for row in table(merge, "agents").rows}
    assert skills["v-1"] == 1.0
    assert skills["v-5"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ("majority", [1, 2, 2, 90], 2),
        ("mean", ["1", "1", 2], "1"),
        ("median", [1, 2, 4, 90], 3.0),
        ("median", [1, 2, 90], 2),
        ("medoid", ["aaaa", "aaab", "aabb", "zzzz"], "aaab"),
        ("priority", ["x", "y", "y"], "y"),
        ("weighted", ["x", "y", "y"], "y"),
        ("dawid_skene", ["x", "y", "y"], "y"),
    ],
)
def test_a_rule_for_a_field(rule: str, values: list[JsonValue], expected: JsonValue) -> None:
    """A field that has a rule is decided by it, whatever it holds; so is what stands inside it."""
    wrapped: list[JsonValue] = [{"in": {"f": value}} for value in values]
    said = votes(*wrapped)
    assert answer(agreed(said, rules={"in.f": rule})) == {"in": {"f": expected}}
    assert answer(agreed(said, rules={"in": rule})) == {"in": {"f": expected}}


def test_what_the_schema_says() -> None:
    """Integers stay integers, enumerated numbers and formatted texts are labels."""
    briefs = asks({"year": {"type": "integer"}, "stars": {"enum": [1, 2, 3, 4, 5]}, "day": {"format": "date"}})
    said = votes(
        {"year": 1987, "stars": 1, "day": "2024-05-01"},
        {"year": 1988, "stars": 5, "day": "2024-05-02"},
        {"year": 1990, "stars": 5, "day": "2024-05-01"},
    )
    merge = agreed(said, briefs)
    assert answer(merge) == {"year": 1988, "stars": 5, "day": "2024-05-01"}
    rules = {row.path.rpartition("/")[2]: row.rule for row in merge.fields}
    assert rules == {"year": "consensus:mean_rounded", "stars": "majority", "day": "majority"}


def test_what_the_schema_says_of_the_whole_answer() -> None:
    """An answer that is no object has a kind by its schema, too; a text that needn't repeat may be a label."""
    briefs = list(expand_samples(brief(output={"type": ["boolean", "null"]}, samples=2)))
    values: list[JsonValue] = [None, True]
    assert answer(agreed(votes(*values, first={2: 1}), briefs)) is True
    unloaded = [brief("v-1", output="models:Terms"), brief("v-2", output="models:Terms")]
    assert answer(agreed(votes("x", "x"), unloaded)) == "x"


def test_a_schema_that_fields_break_together() -> None:
    """Fields that don't go together give way to the nearest answer that was given, flagged."""
    schema = {
        "type": "object",
        "properties": {"free": {"type": "boolean"}, "price": {"enum": [0, 5]}, "unit": {"enum": ["no", "eur", "usd"]}},
        "if": {"properties": {"free": {"const": True}}},
        "then": {"properties": {"price": {"const": 0}}},
    }
    briefs = list(expand_samples(brief(output=schema, samples=3)))
    said = votes(
        {"free": True, "price": 0, "unit": "no"},
        {"free": True, "price": 0, "unit": "eur"},
        {"free": False, "price": 5, "unit": "eur"},
    )
    assert answer(agreed(said, briefs)) == {"free": True, "price": 0, "unit": "eur"}
    said = votes(
        {"free": True, "price": 0, "unit": "eur"},
        {"free": False, "price": 5, "unit": "eur"},
        {"free": True, "price": 0, "unit": "usd"},
    )
    said = [each.model_copy(update={"brief_priority": int(each.brief == "v-2")}) for each in said]
    torn = agreed(said, briefs, rules={"price": "priority"})
    assert answer(torn) == {"free": False, "price": 5, "unit": "eur"}
    assert [flag.kind for flag in torn.flags] == ["schema"]
    assert [row.rule for row in torn.fields] == ["nearest"]


class Terms(BaseModel):
    """Terms whose price is nought if they are free."""

    free: bool
    price: int

    @model_validator(mode="after")
    def _free_is_free(self) -> Self:
        if self.free and self.price:
            raise ZeroDivisionError
        return self


def test_a_validator_that_breaks() -> None:
    """A validator of the user's that raises on what was put together leaves the nearest answer."""
    briefs = list(expand_samples(brief(output=Terms, samples=3)))
    said = votes({"free": True, "price": 0}, {"free": False, "price": 5}, {"free": True, "price": 0})
    said = [each.model_copy(update={"brief_priority": int(each.brief == "v-2")}) for each in said]
    assert answer(agreed(said, briefs, rules={"price": "priority"})) == {"free": False, "price": 5}


def test_an_answer_that_breaks_the_schema_is_a_violation() -> None:
    """The audit holds the answers to the schema that the briefs have in common."""
    briefs = asks({"year": {"type": "integer"}})
    consensus, said = Consensus(), votes({"year": 1}, {"year": 2}, {"year": 3})
    merge = consensus.merge(briefs, said)
    value: Any = merge.model_copy(deep=True).value
    value["answers"][0]["value"]["year"] = "two"
    found = audit(merge.model_copy(update={"value": value}), said, briefs, consensus)
    assert any(each.law == "schema" and each.where == "/answers/0/value" for each in found)


def test_votes_are_counted_again() -> None:
    """The audit finds, from the outcomes alone, what was outvoted, lists that most lack, and rows about nothing."""

    def laws(said: Sequence[Outcome], change: Callable[[dict[str, Any]], object]) -> list[str]:
        consensus = Consensus()
        bent = consensus.merge([], said).model_dump(mode="json")
        change(bent)
        merge = Merge.model_validate(bent)
        return [str(each) for each in audit(merge, said, [], consensus, again=lambda _: merge)]

    def outvote(merge: dict[str, Any]) -> None:
        [row] = merge["fields"]
        [loser] = row["losers"]
        merge["value"]["answers"][0]["value"] = loser["value"]
        row.update(winner=loser["value"], sources=loser["sources"])
        row["losers"] = [{"value": "x", "sources": [{"brief": f"v-{n}", "item": "a"} for n in (1, 2)]}]

    def unlist(merge: dict[str, Any]) -> None:
        merge["value"]["answers"][0]["value"] = merge["fields"][0]["winner"] = ["a", "b"]

    def stray(merge: dict[str, Any]) -> None:
        merge["fields"].append({**merge["fields"][0], "path": "/gaps"})

    value = "precision at /answers/0/value: recomputed from the evidence, it differs."
    rows = "precision at /: recomputed from the evidence, its 'fields' differs."
    assert {value, rows} <= {*laws(votes("x", "x", "y"), outvote)}
    assert {value, rows} <= {*laws(votes(["a", "b"], ["a"], ["a", "c"]), unlist)}
    assert rows in laws(votes("x", "y"), stray)


def test_too_few_answers() -> None:
    """An item with fewer answers than needed is undecided, and the run has a shortfall that names it."""
    said = [*votes("x", "x", "y"), *votes("x", item="b"), miss("c", brief="v-1")]
    merge = agreed(said, min_votes=2)
    assert merge.value == {
        "answers": [{"item": "a", "value": "x"}],
        "undecided": [{"item": "b", "value": "x"}],
        "gaps": [{"brief": "v-1", "item": "c", "status": "failed", "reason": "timeout: No answer."}],
    }
    assert merge.shortfalls == ("Undecided for want of 2 answers: 1 of 2 items with any ('b').",)
    many = [vote for n in range(25) for vote in votes("x", item=f"i{n}")]
    assert "'i19' and 5 more)" in agreed(many, min_votes=2).shortfalls[0]


def test_the_figures() -> None:
    """Agreement, alpha and each agent's part are told per field; alpha is a word where it is undefined."""
    said = [
        *votes({"l": "x", "n": 1, "t": "One.\n", "e": ["a"]}, {"l": "x", "n": 1, "t": "One.\n", "e": ["a"]}),
        *votes({"l": "y", "n": 4, "t": "Two.\n", "e": ["b"]}, {"l": "x", "n": 5, "t": "Two!\n", "e": []}, item="b"),
    ]
    rows = {row["field"]: row for row in table(agreed(said), "agreement").rows}
    assert {name: row["kind"] for name, row in rows.items()} == {"l": "label", "n": "number", "t": "text", "e": "list"}
    assert rows["l"]["alpha"] == 0.0
    assert rows["n"]["alpha"] == 0.9412
    assert (rows["t"]["alpha"], rows["t"]["measured"]) == ("undefined", "no distance for a text")
    assert [row["unanimous"] for row in rows.values()] == [1, 1, 1, 1]
    agents = [(row["field"], row["agent"], row["agreement"]) for row in table(agreed(said), "agents").rows]
    assert ("l", "v-1", 0.5) in agents or ("l", "v-2", 0.5) in agents


def test_no_disagreement_no_table() -> None:
    """Where all agree there is nothing to list."""
    assert [each.name for each in agreed(votes("x", "x")).tables] == ["agreement", "agents"]


def test_long_answers_are_cut_in_tables_only() -> None:
    """A table shows the start of a long answer; the field row holds it whole."""
    merge = agreed(votes("x" * 200, "y" * 200, first={1: 1}))
    said = table(merge, "disagreements").rows[0]["said"]
    assert isinstance(said, str)
    assert "…" in said
    assert merge.fields[0].losers[0].value == "y" * 200


@pytest.mark.parametrize(
    ("numbers", "mean", "middle"),
    [
        ([1, 2, 3], 2, 2),
        ([0.1, 0.2, 0.3], 0.2, 0.2),
        ([10**400, 10**400 + 2, 5], 10**400, 10**400),
        ([1e308, 1.2e308, 1.4e308, 1.6e308], 1.3e308, 1.2e308),
        ([9780306406157, 9780306406157, 9780306406158], 9780306406157, 9780306406157),
        ([1234567890123456, 1234567890123456, 7], 1234567890123456, 1234567890123456),
        ([1.23456789012345, 1.23456789012345, 1.2], 1.23456789012345, 1.23456789012345),
        ([9780306406157, 9780306406158, 9780306406162], 9780306406159, 9780306406158),
        ([-1, 1], 0, 0),
    ],
)
def test_numbers_in_the_middle(numbers: list[float], mean: float, middle: float) -> None:
    """Means and medians are exact where they can be, and a number that was said where they can't be computed."""
    assert (robust_mean(numbers), median(numbers)) == (mean, middle)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Labels become the answer that most give where voters don't differ from each other by more than chance"),
        ({"method": "majority"}, "Labels become the answer that most give."),
        ({"item": "q", "voter": "w"}, "A vote is on what its field 'q' names, by the voter in 'w'."),
        ({"method": "weighted"}, "agrees with the majority over all items (Wawa, by crowd-kit)"),
        ({"method": "weighted", "weights": {"a": 2.5}}, "votes weighted by brief ('a' 2.5; all others 1)"),
        ({"method": "dawid_skene"}, "model of Dawid and Skene (1979, by crowd-kit, at most 100 rounds"),
        ({"rules": {"year": "median"}}, "Field 'year' becomes the median of the numbers"),
        ({"rules": {"year": "auto"}}, "are flagged."),
        ({"min_votes": 3}, "An item with fewer than 3 answers is undecided."),
    ],
)
def test_the_rules_in_words(options: dict[str, Any], words: str) -> None:
    """Every option stands in the paragraph that a reviewer reads."""
    assert words in Consensus.model_validate(options).merge([], []).rules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 1}}, "'weights' count for the rule 'weighted' alone"),
        ({"rules": [{"field": "a", "rule": "mean"}, {"field": "a", "rule": "median"}]}, "field 'a' is named twice"),
        (
            {"method": "weighted", "weights": [{"brief": "a", "weight": 1}, {"brief": "a", "weight": 2}]},
            "brief 'a' is named twice",
        ),
        ({"method": "weighted", "weights": {"a": 0}}, "greater than 0"),
        ({"rules": {"a": "average"}}, "Input should be 'auto'"),
        ({"min_votes": 0}, "greater than or equal to 1"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str) -> None:
    """What can't be meant is refused with the key and the way out."""
    with pytest.raises(ValidationError, match=message):
        Consensus.model_validate(options)


@pytest.mark.parametrize(
    ("options", "briefs", "message"),
    [
        pytest.param({}, [brief()], "there is 1: give a brief 'samples'", id="nobody to agree with"),
        pytest.param({"min_votes": 4}, asks({}), "4 answers or more.*there are 3", id="never enough"),
        pytest.param({"rules": {"yaer": "mean"}}, asks({"year": {}}), "did you mean 'year'", id="field"),
        pytest.param({"rules": {"year": "mean"}}, [brief("a"), brief("b")], "answers with text", id="text"),
        pytest.param({}, [brief("a"), brief("b", output={"type": "object"})], "nothing to agree on", id="mixed"),
        pytest.param(
            {"method": "weighted", "weights": {"w": 2}},
            asks({}),
            "no brief 'w' to give a weight; known are 'v'",
            id="w",
        ),
    ],
)
def test_unusable_jobs(options: dict[str, Any], briefs: list[Brief], message: str) -> None:
    """What can't work with these briefs is refused before anything is spent."""
    with pytest.raises(JobError, match=message):
        Consensus.model_validate(options).preflight(briefs)


@pytest.mark.parametrize("options", [{"method": "dawid_skene"}, {"rules": {"l": "weighted"}}])
def test_crowd_kit_is_asked_for_beforehand(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs crowd-kit says so before anything is spent; what doesn't, does without."""
    monkeypatch.setattr("prefect_dispatch.integrators.crowdkit_adapter.find_spec", nothing)
    briefs = asks({"l": {}})
    with pytest.raises(JobError, match="crowd-kit"):
        Consensus.model_validate(options).preflight(briefs)
    Consensus(method="majority").preflight(briefs)
    Consensus.model_validate({"method": "weighted", "weights": {"v": 2}}).preflight(briefs)
