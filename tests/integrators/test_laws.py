"""The laws that no merge may break: order-free, idempotent, nothing lost, nothing invented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Merge, Ref
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.serialization.json_values import content_text, exact_text
from tests.integrators.said import entries
from tests.integrators.strategies import JSON, integrators, outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

ANY = st.just(Collate()) | integrators()
NEW: list[JsonValue] = ["new", {"name": "new"}, {}]
SURE = settings(deadline=None, max_examples=50)


@given(st.data(), ANY, outcomes())
@SURE
def test_order_does_not_matter(data: st.DataObject, integrator: Collate | MergeRecords, said: list[Outcome]) -> None:
    """However the outcomes are shuffled, the merge is the same, byte for byte."""
    shuffled = data.draw(st.permutations(said))
    assert integrator.merge([], shuffled).model_dump_json() == integrator.merge([], said).model_dump_json()


@given(integrators(computing=False), outcomes())
@SURE
def test_merging_twice_changes_nothing(integrator: MergeRecords, said: list[Outcome]) -> None:
    """What was merged, merged again as one answer, is the same value, byte for byte."""
    records = entries(integrator.merge([], said))
    again = integrator.merge([], [Outcome(brief="terms", item="all", status="succeeded", value=records)])
    assert exact_text(entries(again)) == exact_text(records)


@given(ANY, outcomes())
@SURE
def test_an_honest_merge_passes_its_audit(integrator: Collate | MergeRecords, said: list[Outcome]) -> None:
    """What the built-in integrators return has no violation, whoever they say they are."""
    merge = integrator.merge([], said)
    assert audit(merge, said, [], integrator) == ()
    assert audit(merge, said, []) == ()


@given(integrators(), outcomes())
@SURE
def test_inputs_are_left_alone(integrator: MergeRecords, said: list[Outcome]) -> None:
    """A merge changes none of the answers that it is given."""
    before = [outcome.model_dump_json() for outcome in said]
    integrator.merge([], said)
    assert [outcome.model_dump_json() for outcome in said] == before


def drop_ledger_row(data: st.DataObject, merge: Merge) -> Merge:
    """Forget an outcome."""
    assume(merge.ledger)
    gone = data.draw(st.sampled_from(range(len(merge.ledger))))
    return merge.model_copy(update={"ledger": merge.ledger[:gone] + merge.ledger[gone + 1 :]})


def repeat_ledger_row(data: st.DataObject, merge: Merge) -> Merge:
    """Count an outcome twice."""
    assume(merge.ledger)
    return merge.model_copy(update={"ledger": (*merge.ledger, data.draw(st.sampled_from(merge.ledger)))})


def invent_ledger_row(data: st.DataObject, merge: Merge) -> Merge:
    """Count an outcome that isn't there."""
    row = LedgerRow(brief="terms", item=data.draw(st.sampled_from(["x", "y"])), disposition="merged")
    return merge.model_copy(update={"ledger": (*merge.ledger, row)})


def swap_disposition(data: st.DataObject, merge: Merge) -> Merge:
    """Call a failure merged, or an answer failed."""
    assume(merge.ledger)
    at = data.draw(st.sampled_from(range(len(merge.ledger))))
    row = merge.ledger[at]
    other = "merged" if row.disposition in ("failed", "skipped") else data.draw(st.sampled_from(["failed", "skipped"]))
    changed = row.model_copy(update={"disposition": other, "by": None})
    return merge.model_copy(update={"ledger": (*merge.ledger[:at], changed, *merge.ledger[at + 1 :])})


def drop_field_row(data: st.DataObject, merge: Merge) -> Merge:
    """Leave a part of the value untraced."""
    assume(merge.fields)
    gone = data.draw(st.sampled_from(range(len(merge.fields))))
    return merge.model_copy(update={"fields": merge.fields[:gone] + merge.fields[gone + 1 :]})


def repeat_field_row(data: st.DataObject, merge: Merge) -> Merge:
    """Trace a part of the value twice."""
    assume(merge.fields)
    return merge.model_copy(update={"fields": (*merge.fields, data.draw(st.sampled_from(merge.fields)))})


def drop_record(data: st.DataObject, merge: Merge) -> Merge:
    """Drop an entry from the value alone."""
    value = _entries(merge)
    gone = data.draw(st.sampled_from(range(len(value))))
    return _with(merge, value[:gone] + value[gone + 1 :])


def drop_record_and_rows(data: st.DataObject, merge: Merge) -> Merge:
    """Drop an entry, its rows, and every trace of both."""
    value = _entries(merge)
    gone = data.draw(st.sampled_from(range(len(value))))
    # Of equal entries one is enough, so the others must go, too.
    assume(sum(content_text(entry) == content_text(value[gone]) for entry in value) == 1)
    left: list[FieldRow] = []
    for row in merge.fields:
        _, name, at, *rest = row.path.split("/")
        if int(at) != gone:
            moved = "/".join(["", name, str(int(at) - (int(at) > gone)), *rest])
            left.append(row.model_copy(update={"path": moved}))
    return _with(merge, value[:gone] + value[gone + 1 :], left)


def invent_record(data: st.DataObject, merge: Merge) -> Merge:
    """Add an entry that nobody said."""
    new = data.draw(st.sampled_from(NEW))
    return _with(merge, [*entries(merge), new])


def invent_field(data: st.DataObject, merge: Merge) -> Merge:
    """Add a field that nobody said, with a row that says somebody did."""
    value = _entries(merge)
    objects = [at for at, entry in enumerate(value) if isinstance(entry, dict)]
    assume(objects)
    at = data.draw(st.sampled_from(objects))
    value[at] = {**cast("dict[str, JsonValue]", value[at]), "invented": "new"}
    head = merge.fields[0].path.split("/")[1]
    row = FieldRow(path=f"/{head}/{at}/invented", winner="new", rule="priority", sources=merge.fields[0].sources)
    return _with(merge, value, [*merge.fields, row])


def change_value(data: st.DataObject, merge: Merge) -> Merge:
    """Change a value and its row alike."""
    rows = [row for row in merge.fields if ":" not in row.rule]
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in row.path.split("/")[1:]]
    value = _set(merge.value, tokens, "never said")
    fields = tuple(
        other.model_copy(update={"winner": "never said"}) if other is row else other for other in merge.fields
    )
    return merge.model_copy(update={"value": value, "fields": fields})


def change_value_alone(data: st.DataObject, merge: Merge) -> Merge:
    """Change a value, not its row."""
    assume(merge.fields)
    row = data.draw(st.sampled_from(merge.fields))
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in row.path.split("/")[1:]]
    return merge.model_copy(update={"value": _set(merge.value, tokens, "never said")})


def swap_sources(data: st.DataObject, merge: Merge) -> Merge:
    """Name the sources of one field as those of another."""
    rows = [row for row in merge.fields if ":" not in row.rule]
    assume(len(rows) > 1)
    one, two = data.draw(st.lists(st.sampled_from(rows), min_size=2, max_size=2, unique_by=lambda row: row.path))
    assume(one.sources != two.sources)
    # Two outcomes that say the same without an identity are interchangeable.
    assume(not (one.rule == two.rule == "kept" and content_text(one.winner) == content_text(two.winner)))
    assume(not (one.rule == two.rule == "collate" and content_text(one.winner) == content_text(two.winner)))
    other = {id(one): two, id(two): one}
    fields = tuple(
        row.model_copy(update={"sources": other[id(row)].sources}) if id(row) in other else row for row in merge.fields
    )
    return merge.model_copy(update={"fields": fields})


def forget_sources(data: st.DataObject, merge: Merge) -> Merge:
    """Name nobody as the source of a field."""
    assume(merge.fields)
    gone = data.draw(st.sampled_from(merge.fields))
    fields = tuple(row.model_copy(update={"sources": ()}) if row is gone else row for row in merge.fields)
    return merge.model_copy(update={"fields": fields})


def change_loser(data: st.DataObject, merge: Merge) -> Merge:
    """Let an outcome have said what it didn't."""
    rows = [row for row in merge.fields if row.losers]
    assume(rows)
    bent = data.draw(st.sampled_from(rows))
    losers = (bent.losers[0].model_copy(update={"value": "never said"}), *bent.losers[1:])
    fields = tuple(row.model_copy(update={"losers": losers}) if row is bent else row for row in merge.fields)
    return merge.model_copy(update={"fields": fields})


def drop_gap(data: st.DataObject, merge: Merge) -> Merge:
    """Hide, in the value, that an outcome has no answer."""
    whole = cast("dict[str, Any]", merge.value)
    assume(whole["gaps"])
    gone = data.draw(st.sampled_from(range(len(whole["gaps"]))))
    left = whole["gaps"][:gone] + whole["gaps"][gone + 1 :]
    return merge.model_copy(update={"value": {**whole, "gaps": left}})


MUTATIONS = [
    drop_gap,
    drop_ledger_row,
    repeat_ledger_row,
    invent_ledger_row,
    swap_disposition,
    drop_field_row,
    repeat_field_row,
    drop_record,
    drop_record_and_rows,
    invent_record,
    invent_field,
    change_value,
    change_value_alone,
    swap_sources,
    forget_sources,
    change_loser,
]


@pytest.mark.slow
@given(st.data(), st.sampled_from(MUTATIONS), ANY, outcomes())
@settings(deadline=None, max_examples=200)
def test_no_tampering_passes_the_audit(
    data: st.DataObject,
    mutate: Callable[[st.DataObject, Merge], Merge],
    integrator: Collate | MergeRecords,
    said: list[Outcome],
) -> None:
    """A merge in which anything was dropped, repeated, invented or bent is found out."""
    merge = integrator.merge([], said)
    bent = mutate(data, merge)
    assert audit(bent, said, [], integrator)


@given(outcomes(JSON))
@SURE
def test_the_ledger_names_each_outcome_once(said: list[Outcome]) -> None:
    """Whatever the answers look like, each outcome has one row, in the order of every list."""
    ledger = MergeRecords(identity=("a",)).merge([], said).ledger
    assert [Ref.of(row) for row in ledger] == sorted(map(Ref.of, said), key=lambda ref: ref.order)


def _entries(merge: Merge) -> list[JsonValue]:
    value = entries(merge)
    assume(value)
    return value


def _with(merge: Merge, value: list[JsonValue], fields: Sequence[FieldRow] | None = None) -> Merge:
    whole = cast("dict[str, JsonValue]", merge.value)
    [name] = whole.keys() - {"gaps"}
    changed = {"value": {name: value, "gaps": whole["gaps"]}}
    return merge.model_copy(update=changed if fields is None else {**changed, "fields": tuple(fields)})


def _set(value: JsonValue, tokens: list[str], new: JsonValue) -> JsonValue:
    if not tokens:
        return new
    if isinstance(value, list):
        return [_set(part, tokens[1:], new) if at == int(tokens[0]) else part for at, part in enumerate(value)]
    parts = cast("dict[str, JsonValue]", value)
    return {name: _set(part, tokens[1:], new) if name == tokens[0] else part for name, part in parts.items()}
