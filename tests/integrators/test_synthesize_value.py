"""A value by a schema, whose parts name the answers that they rest on; and what a judge says of a synthesis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, field_validator

from prefect_dispatch.errors import BriefError, RejectedError
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.synthesize.findings import WORDING_KINDS
from prefect_dispatch.integrators.synthesize.judge import JUDGE_BRIEF
from prefect_dispatch.integrators.synthesize.output_format import schema_with_sources
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.models.output_schema import normalize_output, validate_output
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.said import miss, say
from tests.integrators.writers import Desk, faithful, scripted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "days": {"type": "integer"}, "notes": {"type": "array"}, "ok": {}},
    "required": ["title"],
    "additionalProperties": False,
}
SHAPED = Synthesize(instructions="Sum up.", output=SCHEMA, reasks=0)
SAID = [say("a", {"days": 5, "note": "Keep it."}), say("b", "7 days"), say("c", "none"), miss("d")]


def answer(value: JsonValue, **sources: list[int]) -> Any:  # noqa: ANN401 -- JSON
    """Return what a writer answers: a value, and by the names of its fields what they rest on."""
    return {"value": value, "sources": [{"path": f"/{name}", "ids": ids} for name, ids in sources.items()]}


def merged(said: JsonValue, *, by: Synthesize = SHAPED, outcomes: Sequence[Outcome] = SAID) -> tuple[Merge, Any]:
    """Return a merge that passes its audit, and its value."""
    desk = Desk(scripted(lambda ask: said))
    merge = by.merge_asking([], outcomes, desk)
    assert audit(merge, outcomes, [], by, again=lambda again: by.merge_asking([], again, desk)) == ()
    return merge, merge.value


def test_each_part_names_what_it_rests_on() -> None:
    """A value keeps to its schema; beside it stand its sources, what it leaves out, what is doubtful, and gaps."""
    merge, value = merged(answer({"title": "Kept [1]; for 7 days [2].", "days": 5}, days=[1]))
    assert value == {
        "value": {"title": "Kept [1]; for 7 days [2].", "days": 5},
        "sources": {str(at): {"brief": "terms", "item": item} for at, item in enumerate("abc", 1)},
        "cited": {"/value/title": [1, 2], "/value/days": [1]},
        "also_reported": [{"brief": "terms", "item": "c", "value": "none"}],
        "unverified": [],
        "gaps": [{"brief": "terms", "item": "d", "status": "failed", "reason": "timeout: No answer."}],
    }
    assert [row.reason for row in merge.ledger if row.item in "abc"] == [
        "cited at /value/days",
        "cited at /value/title",
        "also reported: not cited by the model",
    ]
    assert {row.path: [ref.item for ref in row.sources] for row in merge.fields} == {
        "/value/title": ["a", "b"],
        "/value/days": ["a"],
        "/also_reported/0/value": ["c"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "sources", "doubts"),
    [
        pytest.param({"title": "x", "days": 6}, {"title": [3], "days": [1]}, [("number", "6")], id="a-number"),
        pytest.param({"title": "x", "days": 5}, {"title": [3]}, [("claim", "5")], id="no-source"),
        pytest.param({"title": "x"}, {}, [("claim", "x")], id="a-text-without-source"),
        pytest.param({"title": "6 days [1]"}, {}, [("number", "6")], id="a-number-in-a-text"),
        pytest.param({"title": "6 days"}, {"title": [1]}, [("number", "6")], id="a-number-in-a-text-with-sources"),
        pytest.param({"title": "x [9]"}, {"title": [1]}, [("citation", "[9]")], id="unknown"),
        pytest.param({"title": "x", "days": 2}, {"title": [1], "days": [1, 3]}, [], id="a-count"),
        pytest.param({"title": "", "notes": [], "ok": None}, {}, [], id="nothing-said"),
        pytest.param({"title": "x", "ok": True}, {"": [1, 2, 3]}, [], id="sources-of-the-whole"),
        pytest.param({"title": "x", "ok": {"a/b": [1.5]}}, {"title": [1], "ok": [2]}, [("number", "1.5")], id="deep"),
        pytest.param(
            {"title": "x", "ok": {"2019": 5}}, {"title": [1], "ok": [1]}, [("key", "/value/ok/2019")], id="a-key"
        ),
        pytest.param(
            {"title": "x", "ok": {"in 5 days": "so"}},
            {"title": [1], "ok": [2]},
            [("key", "/value/ok/in 5 days")],
            id="a-key-of-a-text",
        ),
        pytest.param({"title": "x", "ok": ["so", {"5": "so", "q1": "so"}]}, {"": [1]}, [], id="keys-that-are-said"),
        pytest.param({"title": "x", "ok": {"9": 6}}, {"title": [1]}, [("claim", "6")], id="a-key-without-source"),
        pytest.param(
            {"title": "[9]", "days": 10**70},
            {"days": [1]},
            [("number", str(10**70)), ("citation", "[9]")],
            id="no-words",
        ),
        pytest.param(
            {"title": "x", "ok": False}, {"title": [1], "ok": [77]}, [("claim", "false")], id="unknown-source"
        ),
    ],
)
def test_what_is_doubtful_is_named(
    value: JsonValue, sources: dict[str, list[int]], doubts: list[tuple[str, str]]
) -> None:
    """The value is left as it is, for its schema's sake; what is doubtful in it is flagged and listed beside it."""
    merge, found = merged(answer(value, **sources))
    assert [(flag.kind, flag.text) for flag in merge.flags] == doubts
    assert [entry["text"] for entry in found["unverified"]] == [text for _, text in doubts]
    assert found["value"] == value


@pytest.mark.parametrize("nothing", [None, [], {}, "", "[3]", "…"])
def test_what_says_nothing_accounts_for_nothing(nothing: JsonValue) -> None:
    """An answer that is named for nothing at all is not cited: it stands beside the value."""
    _, value = merged(answer({"title": "x", "ok": nothing}, title=[1, 2], ok=[3]))
    assert "/value/ok" not in value["cited"]
    assert [entry["item"] for entry in value["also_reported"]] == ["c"]


def test_paths_may_be_written_in_several_ways() -> None:
    """A missing or a trailing slash names the same part."""
    said: Any = {
        "value": {"title": "x", "days": 5},
        "sources": [{"path": "title/", "ids": [3]}, {"path": "days", "ids": [1]}],
    }
    assert merged(said)[1]["cited"] == {"/value/days": [1], "/value/title": [3]}
    said["sources"] = [{"path": "/value/title", "ids": [3.0]}, {"path": "#/days", "ids": [1]}]
    assert merged(said)[1]["cited"] == {"/value/days": [1], "/value/title": [3]}


def test_what_is_missing_is_sent_back() -> None:
    """Faults of a value are told with the paths of its parts."""

    def write(ask: Ask) -> Any:  # noqa: ANN401 -- JSON
        if "Faults:" not in str(ask.item.value):
            return answer({"title": "x", "days": 6}, days=[1, 99])
        return answer({"title": "All.", "days": 5}, title=[2, 3], days=[1])

    by = SHAPED.model_copy(update={"reasks": 1})
    desk = Desk(scripted(write))
    merge = by.merge_asking([], SAID, desk)
    faults = str(desk.questions[1].item.value).partition("Faults:\n")[2].split("\n")
    assert faults == [
        "    - Answer [2] is not cited.",
        "    - Answer [3] is not cited.",
        "    - /title: The sentence cites no answer.",
        "    - /days: '6' doesn't stand in [1], which it is said to rest on.",
        "    - There is no answer [99].",
    ]
    assert merge.flags == ()


def test_values_that_cannot_be_merged() -> None:
    """Two values can't stand one after another: the one that cites more is kept, the rest stands beside it."""
    said = [say(f"item-{at}", f"{at} days " + "and nights " * 30) for at in range(8)]

    def write(ask: Ask) -> Any:  # noqa: ANN401 -- JSON
        numbers = list(map(int, re.findall(r"(?m)^\[(\d+)\]", str(ask.item.value))))
        if not numbers:
            raise RejectedError("No.", kind="refused")
        return answer({"title": "x"}, title=numbers)

    by = SHAPED.model_copy(update={"context_tokens": 1100})
    desk = Desk(scripted(write))
    merge = by.merge_asking([], said, desk)
    assert audit(merge, said, [], by) == ()
    value: Any = merge.value
    assert 0 < len(value["also_reported"]) < 8
    assert len(value["cited"]["/value/title"]) + len(value["also_reported"]) == 8
    assert len(merge.shortfalls) == 2


def test_no_value_at_all() -> None:
    """Where the writer fails, the value is empty, and every answer stands beside it."""

    def fail(ask: Ask) -> JsonValue:
        raise RejectedError("No.", kind="refused")

    merge = SHAPED.merge_asking([], SAID, Desk(scripted(fail)))
    assert audit(merge, SAID, [], SHAPED) == ()
    value: Any = merge.value
    assert (value["value"], len(value["also_reported"])) == (None, 3)


class Finding(BaseModel):
    """A model of the user's own."""

    title: str
    level: Literal["low", "high"] = "low"

    @field_validator("title")
    @classmethod
    def _short(cls, title: str) -> str:
        if len(title) > 20:
            raise ValueError("too long")
        return title


def test_a_model_of_the_users_own() -> None:
    """Its validators hold, its defaults are filled in, and what it refuses is no answer."""
    by = Synthesize(instructions="Sum up.", output=Finding, reasks=0)
    assert merged(answer({"title": "Kept."}, title=[1]), by=by)[1]["value"] == {"title": "Kept.", "level": "low"}
    merge, value = merged(answer({"title": "Kept" * 20}, title=[1]), by=by)
    assert value["value"] is None
    assert "what came is not of the form that was asked for" in merge.shortfalls[0]


def test_a_model_by_its_name() -> None:
    """`module:Name` is looked up in the user's code; what is no model is refused."""
    by = Synthesize(instructions="Sum up.", output="shapes:Finding")
    assert by.resolve_references({"shapes:Finding": Finding}.__getitem__).output is Finding
    assert SHAPED.resolve_references(lambda name: name) is SHAPED
    with pytest.raises(BriefError, match=r"integrator\.output: .* is not a pydantic model"):
        by.resolve_references(lambda name: int)


def test_references_inside_a_schema_still_lead_there() -> None:
    """A schema with definitions, and one that refers to itself, hold inside the schema that asks for sources, too."""
    tree = {
        "$defs": {"n": {"type": "integer"}},
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}, "sub": {"$ref": "#"}},
    }
    output = str(
        normalize_output(schema_with_sources({**tree, "$id": "https://example.org/tree", "examples": [{"$ref": 1}]}))
    )
    assert validate_output(output, answer({"n": 1, "sub": {"n": 2}}))[1] == []
    assert validate_output(output, answer({"n": 1, "sub": {"n": "x"}}))[1] != []


@pytest.mark.parametrize(
    ("reference", "moved"),
    [
        ("#", "#/properties/value"),
        ("#/$defs/n", "#/properties/value/$defs/n"),
        ("#node", "#node"),
        ("https://example.org/tree", "#/properties/value"),
        ("https://example.org/tree#/$defs/n", "#/properties/value/$defs/n"),
        ("tree", "#/properties/value"),
        ("/tree#/$defs/n", "#/properties/value/$defs/n"),
        ("https://example.org/tree#node", "#node"),
        ("https://example.org/other", "https://example.org/other"),
        ("other#/n", "other#/n"),
    ],
)
def test_references_to_the_schemas_own_address(reference: str, moved: str) -> None:
    """A schema may call itself by its address, in full or in part: where it stands now, it has none."""
    schema = {"$id": "https://example.org/tree", "properties": {"sub": {"$ref": reference}}}
    assert schema_with_sources(schema)["properties"]["value"] == {"properties": {"sub": {"$ref": moved}}}


def test_a_schema_in_the_schema_keeps_its_own_references() -> None:
    """What has an address of its own stands by itself, and may refer to what is around it."""
    inner = {"$id": "leaf", "properties": {"own": {"$ref": "#/x"}, "tree": {"$ref": "tree"}, "$ref": {"type": "null"}}}
    schema = {"$id": "https://example.org/tree", "$defs": {"leaf": inner}}
    [found] = schema_with_sources(schema)["properties"]["value"]["$defs"].values()
    assert found["properties"] == {
        "own": {"$ref": "#/x"},
        "tree": {"$ref": "#/properties/value"},
        "$ref": {"type": "null"},
    }


def verdict(**labels: tuple[str, str]) -> ScriptedExecutor:
    """Return a judge that knows what to say of claims with a word in them."""

    def judge(ask: Ask) -> JsonValue:
        claim = str(ask.item.value).partition("\n\nAnswers:")[0]
        label, sentence = next((each for word, each in labels.items() if word in claim), ("not_found", ""))
        if label == "fails":
            raise RejectedError("No.", kind="refused")
        return {"sentence": sentence, "label": label}

    return ScriptedExecutor(judge, fingerprint="judge")


def test_a_judge_labels_each_claim() -> None:
    """Supported, contradicted, not found: a table of all, a mark where it is not supported."""
    said = [say("a", "It is red, not old."), say("b", "It is blue."), say("c", "It is new."), say("d", "It is flat.")]
    judge = verdict(
        red=("supported", "It is red, not old"),
        blue=("contradicted", "It is blue."),
        flat=("supported", "It is round."),
    )
    by = Synthesize(instructions="Sum up.", judge=judge)
    desk = Desk(scripted(faithful))
    merge = by.merge_asking([], said, desk)
    assert audit(merge, said, [], by, again=lambda again: by.merge_asking([], again, desk)) == ()
    [table] = merge.tables
    assert [(row["cited"], row["label"], row["sentence"]) for row in table.rows] == [
        ("1", "supported", "It is red, not old"),
        ("2", "contradicted", "It is blue."),
        ("3", "not_found", ""),
        ("4", "not_found", ""),
    ]
    assert table.rows[3]["note"] == "it said 'supported', by what is no sentence of [4]"
    assert [(flag.kind, flag.text) for flag in merge.flags] == [
        ("contradicted", "It says It is blue. [2]"),
        ("not_found", "It says It is new. [3]"),
        ("not_found", "It says It is flat. [4]"),
    ]
    assert "It says It is blue. [2] [unverified].\n" in str(merge.value)
    assert "4 of 4 statements with a citation were compared with what they cite, by the executor" in merge.rules


def test_a_judge_that_fails_is_a_shortfall() -> None:
    """What could not be judged is neither supported nor marked: the run says so."""
    said = [say("a", "It is red."), say("b", "It is blue " * 400)]
    by = Synthesize(instructions="Sum up.", judge=verdict(red=("fails", "")), context_tokens=3300)
    desk = Desk(scripted(faithful))
    merge = by.merge_asking([], said, desk)
    assert audit(merge, said, [], by, again=lambda again: by.merge_asking([], again, desk)) == ()
    assert [row["label"] for row in merge.tables[0].rows] == ["not_judged", "not_judged"]
    assert merge.shortfalls == ("2 of 2 claims could not be judged (refused, too long for a context of 3300 tokens).",)
    assert "0 of 2 statements with a citation were compared with what they cite, by the executor" in merge.rules
    assert "; of the others there is no verdict." in merge.rules


def test_a_judge_of_a_value() -> None:
    """Texts are judged sentence by sentence, other parts as `path: value`; doubts stand beside the value."""
    judge = verdict(days=("supported", "7 days"), first=("contradicted", "none"))
    by = SHAPED.model_copy(update={"judge": judge})
    said = answer({"title": "The first [3]. The second.", "days": 7, "notes": ["A third.", None]}, days=[2], notes=[1])
    desk = Desk(scripted(lambda ask: said))
    merge = by.merge_asking([], SAID, desk)
    assert audit(merge, SAID, [], by, again=lambda again: by.merge_asking([], again, desk)) == ()
    assert [(row["path"], row["claim"], row["label"]) for row in merge.tables[0].rows] == [
        ("/value/days", "/value/days: 7", "supported"),
        ("/value/notes/0", "A third.", "not_found"),
        ("/value/title", "The first [3].", "contradicted"),
    ]
    assert [(flag.path, flag.kind, flag.start) for flag in merge.flags if flag.kind not in WORDING_KINDS] == [
        ("/value/notes/0", "not_found", 0),
        ("/value/title", "claim", 15),
        ("/value/title", "contradicted", 0),
    ]
    assert {flag.kind for flag in merge.flags} > {"support", "not_found"}


def test_nothing_to_judge() -> None:
    """A text without a claim that cites anything: the table is empty, and nobody is asked."""
    by = Synthesize(instructions="Sum up.", judge=verdict(), reasks=0)
    desk = Desk(scripted(lambda ask: "Well."))
    merge = by.merge_asking([], SAID, desk)
    assert merge.tables[0].rows == ()
    assert merge.shortfalls == ("What was written cites none of the 3 answers; trust nothing in it.",)
    assert JUDGE_BRIEF.name not in {question.brief.name for question in desk.questions}
    assert "No statement was compared with the answers: none cites any, so nothing was put to the exec" in merge.rules
