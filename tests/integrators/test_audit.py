"""The audit, on merges that are wrong in one way each."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.integrators.audit.coverage import Trace
from prefect_dispatch.integrators.audit.laws import audit, is_traced
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Loser, Merge, Ref, Violation
from tests.integrators.said import entries, miss, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

A, B = Ref(brief="terms", item="a"), Ref(brief="terms", item="b")
SAID = [say("a", {"x": 1, "y": 2}), say("b", {"x": 3}), miss("c")]


def row(item: str, disposition: str, by: Ref | None = None) -> dict[str, Any]:
    """Return a ledger row."""
    return {"brief": "terms", "item": item, "disposition": disposition, "by": by}


FINE = [row("a", "merged"), row("b", "overridden", A), row("c", "failed")]
FIELDS = [
    FieldRow(path="/x", winner=1, losers=(Loser(value=3, sources=(B,)),), rule="max", sources=(A,)),
    FieldRow(path="/y", winner=2, rule="max", sources=(A,)),
]


def found(merge: Merge, said: list[Outcome] = SAID) -> list[str]:
    """Return what the audit finds, as it is shown."""
    return [*map(str, audit(merge, said, []))]


def by_itself(measure: Callable[[Any], int], of: object) -> int:
    """Return what is measured in a process of its own, since memory and garbage are those of all threads of one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, of).result()


def room(copies: int) -> int:
    """Return by how many bytes the most an audit takes is less than what it audits."""
    said = [say(f"item {at}", [f"answer {at} {copy}" for copy in range(copies)]) for at in range(2000)]
    tracemalloc.start()
    merge = Collate().merge([], said)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert not list(Trace(merge, said, Collate()).violations())
    _, most = tracemalloc.get_traced_memory()
    return held - (most - held)


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 20])
def test_an_audit_takes_less_room_than_what_it_audits(copies: int) -> None:
    """It looks into one outcome after another: what all of them say, indexed, took more than a whole run."""
    assert by_itself(room, copies) > 0


def test_a_traced_merge_of_anybody_passes() -> None:
    """A user's own integrator that traces its value passes."""
    assert found(Merge.model_validate({"value": {"x": 1, "y": 2}, "ledger": FINE, "fields": FIELDS})) == []


@pytest.mark.parametrize(
    ("ledger", "message"),
    [
        pytest.param(FINE[:2], "conservation at terms/c: it has no ledger row.", id="missing"),
        pytest.param([*FINE, FINE[0]], "conservation at terms/a: it has 2 ledger rows.", id="repeated"),
        pytest.param([*FINE, row("z", "merged")], "conservation at terms/z: it has a ledger row, but", id="unknown"),
        pytest.param([*FINE[:2], row("c", "merged")], "it failed, but its ledger row says 'merged'", id="failed"),
        pytest.param(
            [*FINE[:2], row("c", "skipped")], "it failed, but its ledger row says 'skipped'", id="not-skipped"
        ),
        pytest.param([*FINE[1:], row("a", "failed")], "it succeeded, but its ledger row says 'failed'", id="succeeded"),
        pytest.param([FINE[0], FINE[2], row("b", "overridden")], "is 'overridden' by nothing", id="by-nothing"),
        pytest.param(
            [FINE[0], FINE[2], row("b", "duplicate_of", B)], "by 'terms/b', which is no other", id="by-itself"
        ),
        pytest.param(
            [FINE[0], FINE[2], row("b", "overridden", Ref(brief="terms", item="c"))], "by 'terms/c'", id="by-a-failure"
        ),
        pytest.param([row("a", "merged", B), *FINE[1:]], "it is 'merged', yet by 'terms/b'", id="merged-by"),
        pytest.param([row("a", "duplicate_of", B), *FINE[1:]], "at terms/a: the outcome that replaces", id="circle"),
    ],
)
def test_each_outcome_has_one_fitting_row(ledger: list[dict[str, Any]], message: str) -> None:
    """Conservation: whatever is wrong with the ledger is named, once."""
    [violation] = found(Merge.model_validate({"value": {"x": 1, "y": 2}, "ledger": ledger, "fields": FIELDS}))
    assert message in violation


INVENTED: dict[str, JsonValue] = {"x": 1, "y": 2, "z": [{}]}
NOBODY = Ref(brief="terms", item="nobody")
FAILED = Ref(brief="terms", item="c")


@pytest.mark.parametrize(
    ("value", "change", "messages"),
    [
        pytest.param({"x": 1, "y": 2, "z": 9}, {}, ["precision at /z: 9 has no field row"], id="new"),
        pytest.param(INVENTED, {}, ["precision at /z/0: {} has no field row"], id="new-and-empty"),
        pytest.param({"x": 7, "y": 2}, {}, ["precision at /x: it is 7, not the winner 1."], id="not-the-winner"),
        pytest.param({"y": 2}, {}, ["has nothing there", "recall at terms/a: it says 1", "terms/b"], id="missing"),
        pytest.param({"x": 7, "y": 2}, {"winner": 7}, ["'terms/a' doesn't say 7", "recall at terms/a"], id="unsaid"),
        pytest.param(
            {"x": 2, "y": 2}, {"winner": 2}, ["'terms/a' doesn't say 2", "says 1 in 'x'"], id="of-another-field"
        ),
        pytest.param({"x": 1, "y": 2}, {"sources": ()}, ["has no source", "recall at terms/a"], id="no-source"),
        pytest.param(
            {"x": 1, "y": 2}, {"sources": (A, NOBODY)}, ["'terms/nobody' doesn't", "has no answer"], id="unknown-source"
        ),
        pytest.param(
            {"x": 1, "y": 2}, {"sources": (A, FAILED)}, ["'terms/c' doesn't", "has no answer"], id="failed-source"
        ),
        pytest.param({"x": 1, "y": 2}, {"sources": (B,)}, ["'terms/b' doesn't", "recall at terms/a"], id="swapped"),
        pytest.param({"x": 1, "y": 2}, {"losers": ()}, ["recall at terms/b: it says 3 in 'x', which"], id="no-loser"),
        pytest.param({"x": 7, "y": 2}, {"winner": 7, "rule": "own:mean"}, ["recall at terms/a"], id="computed"),
        pytest.param({"x": [1], "y": 2}, {"winner": [1], "rule": "union"}, [], id="gathered"),
        pytest.param(
            {"x": [1, 8], "y": 2}, {"winner": [1, 8], "rule": "union"}, ["none of its sources says 8"], id="too-many"
        ),
        pytest.param(
            {"x": [1], "y": 2},
            {"winner": [1], "rule": "union", "sources": (A, B)},
            ["'terms/b' says none of its elements"],
            id="idle-source",
        ),
        pytest.param(
            {"x": 1, "y": 2}, {"path": "x"}, ["at /x: 1 has no", "at x: a field row", "terms/a", "terms/b"], id="path"
        ),
        pytest.param({"x": 1, "y": 2}, {"path": "/~x"}, ["at /x: 1", "at /~x", "terms/a", "terms/b"], id="bad-escape"),
        pytest.param(
            {"x": 1, "y": 2},
            {"path": "/y"},
            [
                "at /x: 1 has no",
                "it is 2, not",
                "two field rows",
                "'terms/a' doesn't say 1",
            ],
            id="twice",
        ),
    ],
)
def test_value_and_rows_agree_with_what_was_said(value: Any, change: dict[str, Any], messages: list[str]) -> None:  # noqa: ANN401 -- any JSON value
    """Precision and recall: whatever differs is named."""
    fields = [FIELDS[0].model_copy(update=change), FIELDS[1]]
    violations = found(Merge.model_validate({"value": value, "ledger": FINE, "fields": fields}))
    assert len(violations) == len(messages)
    for message in messages:
        assert any(message in violation for violation in violations), violations


def test_a_duplicate_is_vouched_for_by_what_it_duplicates() -> None:
    """What a duplicate says need not be traced to it, if the other outcome says it."""
    said = [say("a", {"x": 1}), say("b", {"x": 1})]
    fields = [FieldRow(path="/x", winner=1, rule="first", sources=(A,))]
    data = {"value": {"x": 1}, "fields": fields}
    assert (
        found(Merge.model_validate({**data, "ledger": [row("a", "merged"), row("b", "duplicate_of", A)]}), said) == []
    )
    [lost] = found(Merge.model_validate({**data, "ledger": [row("a", "merged"), row("b", "merged")]}), said)
    assert lost.startswith("recall at terms/b: it says 1 in 'x'")


def test_fields_may_be_renamed_and_objects_put_together() -> None:
    """Anybody's integrator may rename fields and build objects of what one outcome says."""
    said = [say("a", {"x": 1, "deep": {"y": "text"}, "none": []})]
    fields = [FieldRow(path="/all", winner={"x": 1, "z": "text"}, rule="mine", sources=(A,))]
    merge = Merge.model_validate({"value": {"all": {"x": 1, "z": "text"}}, "ledger": FINE[:1], "fields": fields})
    assert found(merge, said) == []


def test_an_untraced_merge_is_held_to_conservation() -> None:
    """A user's own number has no sources; the built-in integrators must name theirs."""
    merge = Merge.model_validate({"value": 4, "ledger": FINE})
    assert not is_traced(merge)
    assert found(merge) == []
    laws = {violation.law for violation in audit(merge, SAID, [], MergeRecords(identity=("x",)))}
    assert laws == {"conservation", "idempotence", "precision", "recall"}


def test_a_long_value_is_cut_in_messages() -> None:
    """A message stays a sentence however long the value is."""
    said = [say("a", "word " * 1000)]
    merge = Merge(value={"records": [], "gaps": []}, ledger=Collate().merge([], said).ledger)
    [violation] = [found for found in audit(merge, said, [], MergeRecords(identity=("x",))) if found.law == "recall"]
    assert "…" in violation.message
    assert len(violation.message) < 250


VALUE: dict[str, JsonValue] = {"records": [{"x": 1}], "gaps": []}


def test_rows_of_a_records_merge_lead_into_records() -> None:
    """A row about the whole value of merged records is no trace."""
    said = [say("a", {"x": 1})]
    merge = Merge(
        value=VALUE,
        ledger=(LedgerRow(brief="terms", item="a", disposition="merged"),),
        fields=(FieldRow(path="", winner=VALUE, rule="all", sources=(A,)),),
    )
    found = audit(merge, said, [], MergeRecords(identity=("x",)))
    assert {violation.law for violation in found} == {"precision", "recall"}


RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "x": {"type": "integer"}},
    "required": ["name"],
    "maxProperties": 2,
}


REST: dict[str, JsonValue] = {"l": [], "name": "n"}


def brief(output: Any, name: str = "terms") -> Brief:  # noqa: ANN401 -- any form of an output
    """Return a brief that asks for an output."""
    return Brief.model_validate({"name": name, "instructions": "Read.", "output": output})


@pytest.mark.parametrize(
    ("output", "value", "paths"),
    [
        pytest.param("text", "fine", [], id="text"),
        pytest.param("text", 5, ["/answers/0/value"], id="no-text"),
        pytest.param({"type": "string"}, "fine", [], id="a-string-is-no-json-text"),
        pytest.param(RECORD, {"name": "n", "x": "1"}, ["/answers/0/value/x"], id="type"),
        pytest.param("shapes:Licence", 5, [], id="not-loaded-yet"),
    ],
)
def test_collated_answers_keep_their_form(output: object, value: Any, paths: list[str]) -> None:  # noqa: ANN401 -- any JSON value
    """Schema: each collated answer is held to its brief's schema."""
    said = [say("a", value)]
    violations = audit(Collate().merge([], said), said, [brief(output)], Collate())
    assert [(violation.law, violation.where) for violation in violations] == [("schema", path) for path in paths]


@pytest.mark.parametrize(
    ("output", "answers", "options", "paths"),
    [
        pytest.param(RECORD, [{"name": "n", "x": 1}], {}, [], id="record"),
        pytest.param(RECORD, [{"name": "n", "x": "1"}], {}, ["/records/0/x"], id="record-type"),
        pytest.param({"items": RECORD}, [[{"name": "n", "x": "1"}]], {}, ["/records/0/x"], id="list"),
        pytest.param(
            {"properties": {"l": {"items": RECORD}}, "required": ["z"]},
            [{"l": [{"name": "n", "x": "1"}]}],
            {"records": "l"},
            ["/records/0/x"],
            id="path",
        ),
        pytest.param(RECORD, [{"name": "n", "x": 1}, {"name": "n", "x": 2}], {"default": "union"}, [], id="loose"),
        pytest.param(
            {"anyOf": [RECORD, {"type": "null"}]}, [{"name": "n", "x": 1}], {"default": "union"}, [], id="loose-any-of"
        ),
        pytest.param(RECORD, [{"name": "n", "x": 1}, {"name": "n", "y": 2}], {}, [], id="flagged-when-merged"),
        pytest.param({"properties": {"l": {"items": RECORD}}}, [REST], {"records": "l"}, [], id="rest"),
        pytest.param(
            {"items": RECORD},
            [[{"name": "n", "x": "1"}, {"name": "m", "x": "2"}]],
            {},
            ["/records/0/x", "/records/1/x"],
            id="two",
        ),
        pytest.param("shapes:Licence", [{"name": "n", "x": "1"}], {}, [], id="not-loaded-yet"),
    ],
)
def test_merged_records_keep_their_form(
    output: object, answers: list[Any], options: dict[str, Any], paths: list[str]
) -> None:
    """Schema: merged records are held to the schema of a record, where the rules preserve types."""
    said = [say(str(at), answer) for at, answer in enumerate(answers)]
    integrator = MergeRecords.model_validate({"identity": ["name"], **options})
    violations = audit(integrator.merge([brief(output)], said), said, [brief(output)], integrator)
    assert [(violation.law, violation.where) for violation in violations] == [("schema", path) for path in paths]


def test_records_of_different_schemas_are_not_held_to_either() -> None:
    """A record made of two briefs' answers has the form of neither."""
    said = [say("a", {"name": "n"}), say("a", {"name": "n", "y": 1, "z": 2}, brief="facts")]
    integrator = MergeRecords(identity=("name",))
    briefs = [brief(RECORD), brief({"required": ["z"]}, "facts")]
    assert audit(integrator.merge([], said), said, briefs, integrator) == ()


def test_an_answer_without_an_entry_of_its_own_is_found() -> None:
    """That another item has the same answer doesn't make up for it."""
    said = [say("a", "text"), say("b", "text")]
    merge = Collate().merge([], said)
    (first, second), value = merge.fields, {"answers": entries(merge)[:1], "gaps": []}
    both = first.model_copy(update={"sources": (*first.sources, *second.sources)})
    for fields, lost in (((first,), ["terms/b"]), ((both,), []), ((both, first), ["terms/a"])):
        violations = audit(merge.model_copy(update={"value": value, "fields": fields}), said, [], Collate())
        message = "it has no entry, or more than one."
        assert [found.where for found in violations if found.message == message] == lost
        assert "recomputed from the evidence, its 'fields' differs." in {found.message for found in violations}


def test_a_collated_entry_that_is_none_is_found() -> None:
    """An entry that isn't an answer with its name is no part of a collation."""
    said = [say("a", "text")]
    merge = Collate().merge([], said)
    bent = merge.model_copy(update={"value": {"answers": [*entries(merge), 5], "gaps": []}})
    violations = audit(bent, said, [brief("text")], Collate())
    assert {(violation.law, violation.where) for violation in violations} == {
        ("idempotence", "/"),
        ("precision", "/answers"),
        ("precision", "/answers/1"),
    }


def test_large_merges_are_audited() -> None:
    """Answers that gather into one field don't make the audit quadratic."""
    said = [say(str(at), {"name": "n", "tags": [at, at + 1]}) for at in range(1000)]
    integrator = MergeRecords.model_validate({"identity": ["name"], "default": "union"})
    assert audit(integrator.merge([], said), said, [], integrator) == ()


class Odd:
    """An integrator of somebody's, which is wrong in one way."""

    def __init__(self, *values: JsonValue, restated: Any = None) -> None:  # noqa: ANN401 -- outcomes or an error
        """Keep the values that it returns one after another, and what it says of its value again."""
        self.values, self.again = list(values), restated

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return the next value; raise when there is none, and exit where that is the value."""
        rows = [LedgerRow(brief=o.brief, item=o.item, disposition="merged") for o in outcomes]
        if (value := self.values.pop(0)) == "exit":
            sys.exit(0)
        return Merge(value=value, ledger=tuple(rows))

    def as_outcomes(self, merge: Merge) -> list[Outcome] | None:
        """Return the outcomes that were given, or raise."""
        if isinstance(self.again, BaseException):
            raise self.again
        said: list[Outcome] | None = self.again
        return said


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        pytest.param(Odd(1, 1), None, id="nothing-promised"),
        pytest.param(Odd(1, 1.0), "its 'value' differs", id="another-value"),
        pytest.param(Odd(1), "it raised IndexError", id="raises"),
        pytest.param(Odd(1, "exit"), "it raised SystemExit: 0", id="exits"),
        pytest.param(Odd(1, 1, 1, restated=[]), None, id="steady"),
        pytest.param(Odd(1, 1, 2, restated=[]), "merging the merged value again changes it", id="grows"),
        pytest.param(Odd(1, 1, restated=KeyError("x")), "can't be merged again (KeyError)", id="not-taken-in"),
        pytest.param(Odd(1, 1, restated=SystemExit(0)), "can't be merged again (SystemExit)", id="exits-on-itself"),
        pytest.param(Odd(1, 1, restated=[]), "merging the merged value again raised IndexError", id="raises-on-itself"),
    ],
)
def test_merging_once_more_changes_nothing(odd: Odd, message: str | None) -> None:
    """Idempotence: in another order, and of its own value, a merge is the same."""
    said = [say("a", 1)]
    violations = audit(odd.merge([], said), said, [], odd)
    assert [violation.law for violation in violations] == ["idempotence"] * (message is not None)
    assert all(str(message) in violation.message for violation in violations)


class Keeping(Odd):
    """An integrator of somebody's that promises more than the laws ask of any."""

    def verify(self, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
        """Yield a value that isn't small; raise where there is none."""
        said: Any = outcomes[0].value
        said["x"] = 0
        value: Any = merge.value
        if value["x"] > 1:
            yield Violation(law="schema", where="/x", message="it is not small.")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param({"x": 1}, {("precision", "/x")}, id="traced-without-rows"),
        pytest.param({"x": 2}, {("precision", "/x"), ("schema", "/x")}, id="broken"),
        pytest.param({}, {("precision", "/")}, id="raises"),
    ],
)
def test_anybody_may_promise_more(value: dict[str, JsonValue], expected: set[tuple[str, str]]) -> None:
    """What an integrator promises itself is looked at, too; nothing that it does to what it is shown is kept."""
    said, keeping = [say("a", {"x": 1})], Keeping(value, value)
    found = {(each.law, each.where) for each in audit(keeping.merge([], said), said, [], keeping)}
    assert found == {("recall", "terms/a"), *expected}
    assert said[0].value == {"x": 1}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        pytest.param({"sources": [NOBODY]}, ["'terms/nobody' doesn't say", "has no answer", "recall at"], id="nobody"),
        pytest.param({"winner": "other"}, ['doesn\'t say "other"', "recall at terms/a"], id="another-record"),
    ],
)
def test_a_record_that_nobody_said_is_held_to_no_schema(change: dict[str, Any], messages: list[str]) -> None:
    """Whose record it isn't, their brief's schema says nothing about it; that nobody said it is what is wrong."""
    brief = Brief.model_validate({"name": "terms", "instructions": "Read.", "output": {"required": ["missing"]}})
    said = [say("a", {"name": "n"})]
    merge = MergeRecords(identity=("name",)).merge([], said)
    row = FieldRow.model_validate({**merge.fields[0].model_dump(), **change})
    bent = merge.model_copy(update={"value": {"records": [{"name": row.winner}], "gaps": []}, "fields": (row,)})
    found = [*map(str, audit(bent, said, [brief], MergeRecords(identity=("name",))))]
    assert not any("schema" in each for each in found)
    for message in messages:
        assert any(message in each for each in found), found


PEOPLE: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"people": {"type": "array", "items": RECORD}, "summary": {"type": "string"}},
}


def test_what_stands_beside_the_list_is_no_record_of_its_schema() -> None:
    """A summary beside the records is kept as it is, and not held to the schema of a record."""
    said = [say("a", {"people": [{"name": "Ada"}], "summary": "One person."})]
    integrator = MergeRecords(identity=("name",), records="people")
    assert audit(integrator.merge([], said), said, [brief(PEOPLE)], integrator) == ()
    wrong = [say("a", {"people": [{"name": "Ada", "x": "1"}], "summary": "One person."})]
    [violation] = audit(integrator.merge([], wrong), wrong, [brief(PEOPLE)], integrator)
    assert violation.where == "/records/0/x"


def test_parts_that_are_gathered_promise_nothing_of_their_own_value() -> None:
    """Where one record has no object, another's parts aren't gathered; taken in again they would be."""
    said = [say("a", {"name": "n", "to": {"lines": ["b", "a"]}}, brief_first=1), say("b", {"name": "n", "to": "web"})]
    integrator = MergeRecords.model_validate({"identity": ["name"], "rules": {"to.lines": "union"}})
    assert audit(integrator.merge([], said), said, [], integrator) == ()


def garbage(integrator: Any) -> int:  # noqa: ANN401 -- any integrator
    """Return how many objects of a merge and its audit only the collector finds."""
    said = [
        say(
            f"i{at}",
            {"name": f"name {at}", "n": at % 5, "tags": ["a", str(part)], "in": {"it": [{"x": 1}]}},
            brief=brief,
        )
        for at in range(20)
        for part, brief in enumerate(("one", "two"))
    ]
    gc.collect()
    gc.disable()
    assert audit(integrator.merge([], said), said, [], integrator) == ()
    return gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize(
    "integrator",
    [
        pytest.param(Collate(), id="collate"),
        pytest.param(MergeRecords(identity=("name",)), id="records"),
        pytest.param(MergeRecords.model_validate({"identity": ["name"], "match": {}}), id="linked"),
        pytest.param(
            MergeRecords.model_validate(
                {"identity": ["name"], "rules": {"in.it": {"rule": "union", "identity": ["x"]}}}
            ),
            id="elements",
        ),
        pytest.param(Consensus(), id="consensus"),
    ],
)
def test_a_merge_and_its_audit_make_no_cycles(integrator: Any) -> None:  # noqa: ANN401 -- any integrator
    """Garbage that only the collector finds would all be kept, as it is paused: several times what was said."""
    assert by_itself(garbage, integrator) == 0
