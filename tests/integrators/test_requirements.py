"""What the briefs require of a merged value: met, violated with the place, or not checkable; never met unseen."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from prefect_dispatch import Brief, Collate, Consensus, Item, MergeRecords, Synthesize, Tournament
from prefect_dispatch.errors import TerminalError
from prefect_dispatch.integrators.audit.brief_conformance import check_requirements, requirement_shortfalls
from prefect_dispatch.integrators.base import BaseIntegrator
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.models.checks import Function
from prefect_dispatch.models.ledger import MAX_PLACES, FieldRow, Flag, LedgerRow, Merge, Ref, Requirement
from prefect_dispatch.models.outcome import Citation, Outcome
from prefect_dispatch.testing import ScriptedExecutor
from tests.integrators.said import miss, say
from tests.integrators.writers import Desk

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.integrators.base import Integrator

RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "note": {"type": "string"}, "tags": {"type": "array"}},
}
ITEMS = [Item(key=key, value={"title": key.upper()}) for key in "abc"]


def verdicts(found: Sequence[Requirement]) -> list[tuple[str, str, str]]:
    """Return what was found, in short."""
    return [(row.brief, row.kind, row.verdict) for row in found]


def only(found: Sequence[Requirement], kind: str) -> Requirement:
    """Return the only requirement of a kind."""
    [row] = [row for row in found if row.kind == kind]
    return row


def brief(**more: Any) -> Brief:  # noqa: ANN401 -- fields of a brief
    """Return a brief."""
    return Brief.model_validate({"name": "terms", "instructions": "Read it.", **more})


def checked(
    given: Brief, outcomes: Sequence[Outcome], by: Integrator | None = None, *, items: Sequence[Item] = ITEMS
) -> tuple[Requirement, ...]:
    """Merge, and compare with the brief."""
    by = by or Collate()
    return check_requirements(by.merge([given], outcomes), outcomes, [given], by, items=items)


def test_each_requirement_has_a_verdict_with_the_place() -> None:
    """Schema and checks are compared, what is in words is not checkable without a judge."""
    asked = brief(
        scope="One licence.",
        constraints=("Judge by the text alone.", "Spell {title} in {{braces}}."),
        checks=[
            {"kind": "max_words", "words": 3},
            {"kind": "must_mention", "terms": ["{title}"]},
            {"kind": "regex", "pattern": "^A"},
        ],
    )
    found = checked(asked, [say("a", "A is fine"), say("b", "A b is too long"), miss("c")])
    assert verdicts(found) == [
        ("terms", "output", "met"),
        ("terms", "check", "violated"),
        ("terms", "check", "met"),
        ("terms", "check", "met"),
        ("terms", "scope", "not_checkable"),
        ("terms", "constraint", "not_checkable"),
        ("terms", "constraint", "not_checkable"),
    ]
    assert (found[0].text, found[0].checked) == ("Each answer is text.", 2)
    [place] = found[1].places
    assert (place.path, place.sources) == ("/answers/1/value", (Ref(brief="terms", item="b"),))
    assert "5 words; the most is 3" in place.message
    assert found[6].text == "Spell {title} in {braces}."
    assert "no judge" in found[5].note
    assert requirement_shortfalls(found) == (
        "The merged value violates 1 requirement: check of terms at /answers/1/value.",
    )


@given(st.randoms(use_true_random=False))
def test_order_changes_nothing(shuffled: random.Random) -> None:
    """Outcomes, briefs and items in any order give the same requirements."""
    briefs = [brief(name=name, checks=[{"kind": "max_words", "words": 2}]) for name in ("one", "two")]
    outcomes = [say(key, f"it is {key}", brief=each.name) for each in briefs for key in "abc"]
    expected = check_requirements(Collate().merge(briefs, outcomes), outcomes, briefs, Collate(), items=ITEMS)
    items = [*ITEMS]
    lists: list[list[Any]] = [briefs, outcomes, items]
    for each in lists:
        shuffled.shuffle(each)
    merge = Collate().merge(briefs, outcomes)
    assert check_requirements(merge, outcomes, briefs, Collate(), items=items) == expected
    assert [row.violations for row in expected] == [0, 3, 0, 3]


def test_many_violations_are_counted_and_the_first_are_listed() -> None:
    """The list of places is bounded, and the sentence names some."""
    outcomes = [say(f"{at:02}", "two words", brief=name) for name in ("one", "two") for at in range(30)]
    briefs = [
        brief(name=name, checks=[{"kind": "max_words", "words": 1}, {"kind": "regex", "pattern": "^x"}])
        for name in ("one", "two")
    ]
    found = check_requirements(Collate().merge(briefs, outcomes), outcomes, briefs, Collate())
    assert [(row.violations, len(row.places)) for row in found if row.kind == "check"] == [(30, MAX_PLACES)] * 4
    [sentence] = requirement_shortfalls(found)
    assert sentence.startswith(
        "The merged value violates 4 requirements: check of one at /answers/0/value and 29 more,"
    )
    assert sentence.endswith(" and 1 more.")


def test_samples_of_a_brief_count_as_one_brief() -> None:
    """The answer that was voted for is compared once, and a value that lost belongs to no brief."""
    samples = [
        brief(name=f"terms-{at}", samples=3, sample=at, checks=[{"kind": "max_words", "words": 1}]) for at in (1, 2, 3)
    ]
    outcomes = [say("a", said, brief=each.name) for each, said in zip(samples, ("x", "x", "y y"), strict=True)]
    by = Consensus()
    found = check_requirements(by.merge(samples, outcomes), outcomes, samples, by, items=ITEMS)
    assert verdicts(found) == [("terms", "output", "met"), ("terms", "check", "met")]
    assert found[1].checked == 1
    rivals = [brief(name="one"), brief(name="two", priority=-1)]
    outcomes = [say("a", "x", brief="one", brief_first=1), say("a", "y", brief="two")]
    found = check_requirements(by.merge(rivals, outcomes), outcomes, rivals, by)
    assert {row.verdict for row in found} == {"met", "not_checkable"}
    assert any("No part of the merged value" in row.note for row in found)


def test_merged_records_are_compared_where_they_are_answers() -> None:
    """A record that several items share has to satisfy a check for one of them; lists are taken apart."""
    asked = brief(output=RECORD, checks=[{"kind": "must_mention", "field": "note", "terms": ["{title}"]}])
    outcomes = [say("a", {"name": "MIT", "note": "A"}), say("b", {"name": "mit", "note": "B"})]
    found = checked(asked, outcomes, MergeRecords(identity=("name",)))
    assert verdicts(found) == [("terms", "output", "met"), ("terms", "check", "met")]
    found = checked(asked, outcomes, MergeRecords(identity=("name",)), items=())
    assert (found[1].verdict, "aren't known here" in found[1].note) == ("not_checkable", True)
    outcomes = [say("a", {"name": "MIT", "note": "C"}), say("b", {"name": "mit", "note": "C"})]
    found = checked(asked, outcomes, MergeRecords(identity=("name",)))
    assert (found[1].verdict, found[1].places[0].path) == ("violated", "/records/0")
    listed = brief(output={"type": "array", "items": RECORD}, checks=[{"kind": "max_words", "words": 1}])
    found = checked(listed, [say("a", [{"name": "MIT", "note": "A"}])], MergeRecords(identity=("name",)))
    assert verdicts(found) == [("terms", "output", "met"), ("terms", "check", "not_checkable")]
    keyed = brief(output={**RECORD, "additionalProperties": False}, checks=[{"kind": "regex", "pattern": r"^\{\"name"}])
    values: list[JsonValue] = [{"name": "MIT"}, {"key": "x", "name": "MIT"}]
    for value in values:
        found = checked(
            keyed.model_copy(update={"output": "text"}), [say("a", value)], MergeRecords(identity=("{key}",))
        )
        assert only(found, "check").verdict == ("met" if value == values[0] else "violated")
    nothing: list[Any] = [say("a", [3])]
    assert only(checked(listed, nothing, MergeRecords(identity=("name",))), "check").verdict == "not_checkable"


def test_what_a_rule_collects_is_not_compared_by_the_type_of_the_answers() -> None:
    """A list in place of a text is exempt, and the report says so; a list that was a list is compared."""
    asked = brief(
        output=RECORD,
        checks=[
            {"kind": "max_words", "field": "note", "words": 1},
            {"kind": "max_words", "words": 9},
            {"kind": "regex", "field": "tags", "pattern": "y"},
            {"kind": "regex", "field": "name", "pattern": "M"},
        ],
    )
    outcomes = [say(key, {"name": "MIT", "note": f"is {key}", "tags": [tag]}) for key, tag in ("ax", "by")]
    found = checked(
        asked,
        outcomes,
        MergeRecords.model_validate({"identity": ["name"], "rules": {"note": "union", "tags": "union"}}),
    )
    assert found[0].note == "Exempt, as a rule may change the type: 'note', 'tags'."
    assert [row.verdict for row in found] == ["met", "not_checkable", "not_checkable", "met", "met"]
    assert "gave 'note' another type" in found[1].note


def test_a_record_that_violates_its_schema_violates_the_brief() -> None:
    """The flags that the audit requires are its places; records of several briefs share no schema."""
    asked = brief(output={"type": "object", "properties": {"name": {"type": "string"}}, "maxProperties": 2})
    outcomes = [say("a", {"name": "MIT", "x": 1}), say("b", {"name": "mit", "y": 2})]
    by = MergeRecords(identity=("name",))
    row = only(checked(asked, outcomes, by), "output")
    assert (row.verdict, row.violations, row.checked, row.places[0].path) == ("violated", 1, 1, "/records/0")
    briefs = [brief(name="one", output=RECORD), brief(name="two", output={"type": "object"})]
    outcomes = [
        say(key, {"name": name}, brief=of)
        for key, name, of in [("a", "x", "one"), ("b", "x", "two"), ("c", "y", "one")]
    ]
    found = check_requirements(by.merge(briefs, outcomes), outcomes, briefs, by)
    assert [row.verdict for row in found] == ["not_checkable"] * 2
    assert found[0].note == "1 of 2 records come from briefs with different schemas."
    odd = Merge(value={"records": 3}, ledger=())
    assert only(check_requirements(odd, [], [asked], by), "output").verdict == "not_checkable"


class Person(BaseModel):
    """A form with a rule of its own."""

    name: str

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if len(name) > 3:
            raise ValueError("too long")
        return name


def test_models_and_schemas_are_compared_by_whoever_validated_them() -> None:
    """A model validates what no answer was; code that isn't loaded can't be asked."""
    asked = brief(output=Person)
    outcomes = [say("a", {"name": "Ann"})]
    row = only(checked(asked, outcomes), "output")
    assert (row.text, row.verdict) == ("Each answer is a Person.", "met")
    merge = Collate().merge([asked], outcomes)
    lie = merge.model_copy(update={"value": {"answers": [{"value": {"name": "Annabel"}}]}})
    row = only(check_requirements(lie, outcomes, [asked], Collate()), "output")
    assert (row.verdict, "too long" in row.places[0].message) == ("violated", True)
    row = only(checked(brief(output="people:Person"), outcomes), "output")
    assert (row.text, row.verdict) == ("Each answer is a 'people:Person'.", "not_checkable")
    assert row.note == "The code of 'people:Person' isn't loaded. (1 of 1 part)"
    ranked = Tournament(metric="len:len")
    row = only(check_requirements(merge, [say("a", {"name": 5})], [brief(output=RECORD)], ranked), "output")
    assert (row.text, row.verdict) == (
        "Each answer conforms to the output schema with the fields 'name', 'note', 'tags'.",
        "met",
    )
    assert (
        only(checked(brief(output={"type": "object"}), outcomes), "output").text
        == "Each answer conforms to the output schema."
    )


def test_functions_are_asked_again_and_may_fail() -> None:
    """A function sees the merged value; one that raises, or isn't loaded, decides nothing."""

    def short(value: Any, item: Item) -> str | None:  # noqa: ANN401 -- any answer
        if item.key == "c":
            raise RuntimeError("boom")
        return None if len(value) < 3 else f"{item.key} is long"

    asked = brief(checks=[Function(function=short)])
    row = only(checked(asked, [say("a", "x"), say("b", "long")]), "check")
    assert (row.verdict, row.places[0].message) == ("violated", "b is long")
    row = only(checked(asked, [say("a", "x"), say("c", "y")]), "check")
    assert (row.verdict, row.checked, row.note) == (
        "not_checkable",
        1,
        "The check raised RuntimeError: boom. (1 of 2 parts)",
    )
    row = only(checked(brief(checks=[{"kind": "function", "function": "mine:short"}]), [say("a", "x")]), "check")
    assert (row.verdict, "'mine:short' isn't loaded" in row.note) == ("not_checkable", True)
    missing = brief(checks=[{"kind": "must_mention", "terms": ["{nothing}"]}])
    row = only(checked(missing, [say("a", "x")]), "check")
    assert (row.verdict, "Placeholder {nothing}" in row.note) == ("not_checkable", True)


def test_sources_have_to_be_pages_of_the_search() -> None:
    """A source that no search returned violates the check, as it would in an answer."""
    asked = brief(output={"type": "object"}, checks=[{"kind": "sources", "from_search": True}])
    page = Citation(url="https://www.iana.org/a", title="A", retrieved=date(2026, 11, 25))
    for url, verdict in [("https://www.iana.org/a", "met"), ("https://www.iana.org/b", "violated")]:
        outcome = say("a", {"sources": [url]}).model_copy(update={"citations": (page,)})
        assert only(checked(asked, [outcome]), "check").verdict == verdict


class Own:
    """An integrator of the user's own, with a list of entries and without field rows."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """List what was said, and something that nobody said."""
        entries: list[JsonValue] = [{"brief": o.brief, "item": o.item, "value": o.value} for o in outcomes]
        rows = [LedgerRow(brief=o.brief, item=o.item, disposition="merged") for o in outcomes]
        return Merge(value={"list": [*entries, {"value": "who?"}, 5], "count": 1}, ledger=tuple(rows))


def test_entries_of_your_own_integrator_are_found() -> None:
    """An entry that names its brief and item is an answer; without any, nothing is met."""
    asked = brief(checks=[{"kind": "max_words", "words": 1}])
    row = only(checked(asked, [say("a", "x y")], Own()), "check")
    assert (row.verdict, row.places[0].path, row.checked) == ("violated", "/list/0/value", 1)
    number = Merge(value=3, ledger=(), fields=(FieldRow(path="", winner=3, rule="sum", sources=()),))
    assert {row.verdict for row in check_requirements(number, [say("a", 3)], [asked], Own())} == {"not_checkable"}


def changes(path: str) -> Merge:
    """Return the merge of a change of two files of one path, beside one that nobody changed."""
    source = (Ref(brief="terms", item="a"),)
    rows = [FieldRow(path=f"/files/{at}", winner={"path": path}, rule="kept", sources=source) for at in range(2)]
    return Merge(value={"files": [{"path": path}, {"path": path}, {"path": "x"}]}, ledger=(), fields=tuple(rows))


@pytest.mark.parametrize(
    ("writes", "path", "items", "verdict"),
    [
        pytest.param(("src/*.py",), "src/a.py", ITEMS, "met", id="inside"),
        pytest.param(("src/*.py",), "docs/a.md", (), "violated", id="outside"),
        pytest.param(("src/{key}.py",), "src/a.py", ITEMS, "met", id="of-its-item"),
        pytest.param(("src/{key}.py",), "src/b.py", ITEMS, "violated", id="of-another-item"),
        pytest.param(("src/{key}.py",), "src/a.py", (), "not_checkable", id="of-unknown-items"),
    ],
)
def test_a_merged_change_stays_within_what_its_brief_may_write(
    writes: tuple[str, ...], path: str, items: Sequence[Item], verdict: str
) -> None:
    """Each file is compared with the globs of the briefs whose changes it has."""
    given = brief(writes=writes)
    found = check_requirements(changes(path), [say("a", "done")], [given], MergeBranches(), items=items)
    row = only(found, "scope")
    assert (row.verdict, row.text) == (verdict, f"Changed files match '{writes[0]}'.")
    assert [each.path for each in row.places] == (["/files/0", "/files/1"] if verdict == "violated" else [])
    none = changes(path).model_copy(update={"value": {"files": None}})
    assert only(check_requirements(none, [], [given], MergeBranches()), "scope").verdict == "not_checkable"


LABELS: dict[str, tuple[str, str]] = {
    "Name no price.": ("broken", "It costs 5 euros [1]."),
    "Be fair.": ("kept", ""),
    "Be dark.": ("unclear", ""),
    "Be odd.": ("broken", "It is not there."),
    "Say little.": ("broken", ""),
}


def write_and_judge(ask: Ask) -> JsonValue:
    """Write two sentences, and judge the rules that are known."""
    if ask.brief.name == "judge-rule":
        rule = str(ask.item.value).split("\n")[1].strip()
        if rule not in LABELS:
            raise TerminalError("No such rule.") if "stop" in rule else ValueError(rule)
        label, sentence = LABELS[rule]
        return json.dumps({"label": label, "sentence": sentence})
    if ask.brief.name == "judge-claim":
        return json.dumps({"label": "supported", "sentence": "It costs 5 euros."})
    if ask.brief.output != "text":
        sources: list[JsonValue] = [{"path": path, "ids": [1]} for path in ("/text", "/n")]
        return {"value": {"n": 5, "text": "It costs 5 euros [1]."}, "sources": sources}
    return "It costs 5 euros [1]."


def judged(
    by: Synthesize, constraints: tuple[str, ...], *, scope: str = ""
) -> tuple[list[Requirement], Merge, Sequence[Outcome]]:
    """Write, judge, and compare with a brief of these constraints."""
    asked = brief(constraints=constraints, scope=scope)
    outcomes = [say("a", "It costs 5 euros.")]
    desk = Desk(ScriptedExecutor(write_and_judge))
    merge = by.merge_asking([asked], outcomes, desk)
    return [*check_requirements(merge, outcomes, [asked], by, items=ITEMS, ask=desk)], merge, outcomes


def test_constraints_in_words_go_to_the_judge() -> None:
    """What it calls broken counts with a sentence of the text, which is the place; else there is no verdict."""
    judge = ScriptedExecutor(write_and_judge, fingerprint="judge")
    by = Synthesize(instructions="Sum up.", judge=judge, constraints=("Be fair.", "Spare the {braces}."))
    found, merge, outcomes = judged(by, ("Name no price.", "Be dark.", "Be odd.", "Say little.", "Name {title}."))
    rows = [row for row in found if row.kind == "constraint"]
    assert [(row.brief, row.text, row.verdict) for row in rows] == [
        ("terms", "Name no price.", "violated"),
        ("terms", "Be dark.", "not_checkable"),
        ("terms", "Be odd.", "not_checkable"),
        ("terms", "Say little.", "not_checkable"),
        ("terms", "Name {title}.", "not_checkable"),
        ("", "Be fair.", "met"),
        ("", "Spare the {braces}.", "not_checkable"),
    ]
    [place] = rows[0].places
    assert (place.path, place.message, place.sources) == ("", "It costs 5 euros [1].", (Ref(brief="terms", item="a"),))
    assert [row.note for row in rows[:4]] == [
        "The judge, a model, says 'broken'.",
        "The judge, a model, says 'unclear'.",
        *["The judge, a model, says 'broken', by what is no sentence of the text."] * 2,
    ]
    assert (found[0].verdict, "A model wrote" in found[0].note) == ("not_checkable", True)
    assert by.recompute(merge, outcomes, []) is not None


def test_a_scope_in_words_goes_to_the_judge() -> None:
    """It is put as a rule; one that the judge fails on, or that doesn't fit, has no verdict."""
    judge = ScriptedExecutor(write_and_judge, fingerprint="judge")
    by = Synthesize(instructions="Sum up.", judge=judge)
    found, _, _ = judged(by, ("It is long. " * 3000, "Be fair."), scope="One licence.")
    assert [row.verdict for row in found] == ["not_checkable", "not_checkable", "not_checkable", "met"]
    assert found[1].note.startswith("Not judged: ")
    assert found[2].note == "Not judged: too long for a context of 8192 tokens."
    found, _, _ = judged(by, ("Be fair.", "stop"))
    assert {row.verdict for row in found} == {"not_checkable"}
    assert found[1].note == "Not judged: TerminalError: No such rule."


def test_without_a_judge_nothing_in_words_is_met() -> None:
    """A writer alone is not asked about what it wrote."""
    found, _, _ = judged(Synthesize(instructions="Sum up."), ("Be fair.",))
    assert [row.verdict for row in found] == ["not_checkable"] * 2
    assert BaseIntegrator().judge_rules(Merge(value=1, ledger=()), [], [], Desk(ScriptedExecutor({}))) is None


def test_a_value_that_a_model_wrote_is_judged_leaf_by_leaf() -> None:
    """The place is the leaf with the sentence."""
    judge = ScriptedExecutor(write_and_judge, fingerprint="judge")
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}}
    by = Synthesize(instructions="Sum up.", judge=judge, output=schema)
    found, _, _ = judged(by, ("Name no price.",))
    row = only(found, "constraint")
    assert (row.verdict, [each.path for each in row.places]) == ("violated", ["/value/text"])


@pytest.mark.parametrize("verdict", ["met", "not_checkable"])
def test_what_is_not_violated_needs_no_sentence(verdict: Literal["met", "not_checkable"]) -> None:
    """Only violations are in the message of a run."""
    assert requirement_shortfalls([Requirement(brief="a", kind="scope", text="b", verdict=verdict)]) == ()
    own = Requirement(brief="", kind="constraint", text="b", verdict=verdict)
    assert str(own) == f"{verdict.replace('_', ' ')}: constraint: b"
    assert Flag(path="", kind="schema", text="", message="").sources == ()


def test_votes_of_a_table_conform_to_the_schema_of_its_rows() -> None:
    """A decided label is compared together with the fields that say who voted on what."""
    schema = {
        "type": "object",
        "properties": {"question": {"type": "string"}, "person": {"type": "string"}, "label": {"enum": ["yes", "no"]}},
        "required": ["question", "person", "label"],
    }
    by = Consensus(item="question", voter="person")
    votes = [say(person, {"question": "q", "person": person, "label": "yes"}) for person in ("ann", "bob")]
    assert only(checked(brief(output=schema), votes, by), "output").verdict == "met"
    row = only(checked(brief(output=schema), [say("c", {"question": "q", "person": "c", "label": 7})], by), "output")
    assert [(place.path, place.message) for place in row.places] == [
        ("/answers/0/value", "7 is not one of ['yes', 'no']")
    ]
