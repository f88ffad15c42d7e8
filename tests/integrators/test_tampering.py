"""No tampering with a tournament passes its audit: not with the value, the figures, the ledger, nor the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.tournament.tournament import Tournament
from tests.integrators.judges import Bench
from tests.integrators.said import miss, say
from tests.integrators.test_tournament import table, with_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome

JUDGED = Tournament(criterion="Good.")


def length(value: JsonValue, key: str) -> int:
    """Measure a variant."""
    return len(repr(value))


MEASURED = Tournament(metric=length)


def fickle(first: object, second: object) -> str | None:
    """Judge by content, in no good order, failing at times."""
    return ("first", "second", "tie", "first", "second", None)[sum(map(ord, f"{first!r}|{second!r}")) % 6]


VALUES: st.SearchStrategy[Any] = st.sampled_from(["a", "bb", "ccc", 1, 1.0, ["x"]])


@st.composite
def said(draw: st.DrawFn) -> list[Outcome]:
    """Return answers of up to four briefs to up to two items, some equal, some missing."""
    found: list[Outcome] = []
    for item in ("mug", "pen")[: draw(st.integers(1, 2))]:
        for at in range(draw(st.integers(3, 4))):
            value = draw(VALUES)
            lost = draw(st.integers(0, 6)) == 0
            found.append(miss(item, brief=f"b{at}") if lost else say(item, value, brief=f"b{at}"))
    return found


def merged(tournament: Tournament, outcomes: Sequence[Outcome]) -> Merge:
    """Return the merge."""
    try:
        return tournament.merge_asking([], outcomes, Bench(fickle))
    except Exception:
        assume(False)  # noqa: FBT003 -- hypothesis' own way to pass an example over
        raise


def change(merge: Merge, **parts: Any) -> Merge:  # noqa: ANN401 -- whatever stands in a value
    """Return a merge with other parts of its value."""
    return merge.model_copy(update={"value": {**cast("dict[str, Any]", merge.value), **parts}})


def pick(data: st.DataObject, rows: Sequence[Any]) -> int:
    """Return the place of some row."""
    assume(rows)
    return data.draw(st.sampled_from(range(len(rows))))


def drop_variant(data: st.DataObject, merge: Merge) -> Merge:
    """Drop a variant, and every trace of it but the ledger's."""
    value: Any = merge.value
    at = pick(data, value["ranking"])
    fields = [row for row in merge.fields if not row.path.startswith(f"/ranking/{at}/")]
    moved = [row.model_copy(update={"path": _up(row.path, at)}) for row in fields]
    left = value["ranking"][:at] + value["ranking"][at + 1 :]
    return change(merge, ranking=left).model_copy(update={"fields": tuple(moved)})


def _up(path: str, gone: int) -> str:
    _, name, at, *rest = path.split("/")
    return "/".join(["", name, str(int(at) - (name == "ranking" and int(at) > gone)), *rest])


def swap_ranks(data: st.DataObject, merge: Merge) -> Merge:
    """Let two variants change their ranks, in the value and its rows."""
    rows: Any = cast("Any", merge.value)["ranking"]
    one, two = pick(data, rows), pick(data, rows)
    assume(rows[one]["rank"] != rows[two]["rank"])
    return _with_figures(merge, {one: {"rank": rows[two]["rank"]}, two: {"rank": rows[one]["rank"]}})


def swap_values(data: st.DataObject, merge: Merge) -> Merge:
    """Put one variant in another's place, with its names."""
    rows: Any = cast("Any", merge.value)["ranking"]
    one, two = pick(data, rows), pick(data, rows)
    assume(one != two)
    who = [{name: row[name] for name in ("brief", "item", "value")} for row in rows]
    who[one], who[two] = who[two], who[one]
    return change(merge, ranking=[{**row, **names} for row, names in zip(rows, who, strict=True)])


def change_figure(data: st.DataObject, merge: Merge) -> Merge:
    """Change one figure, in the value and its row."""
    rows: Any = cast("Any", merge.value)["ranking"]
    at = pick(data, rows)
    name = data.draw(st.sampled_from([name for name in rows[at] if name not in ("brief", "item", "value")]))
    return _with_figures(merge, {at: {name: 0.123 if rows[at][name] != 0.123 else 0.5}})


def _with_figures(merge: Merge, new: dict[int, dict[str, Any]]) -> Merge:
    rows: Any = cast("Any", merge.value)["ranking"]
    paths = {f"/ranking/{at}/{name}": figure for at, figures in new.items() for name, figure in figures.items()}
    fields = tuple(
        row.model_copy(update={"winner": paths[row.path]}) if row.path in paths else row for row in merge.fields
    )
    changed = [{**row, **new.get(at, {})} for at, row in enumerate(rows)]
    return change(merge, ranking=changed).model_copy(update={"fields": fields})


def rank_the_unranked(data: st.DataObject, merge: Merge) -> Merge:
    """Hide that a variant isn't ranked."""
    value: Any = merge.value
    at = pick(data, value["unranked"])
    return change(merge, unranked=value["unranked"][:at] + value["unranked"][at + 1 :])


def excuse_otherwise(data: st.DataObject, merge: Merge) -> Merge:
    """Give another reason why a variant isn't ranked."""
    value: Any = merge.value
    at = pick(data, value["unranked"])
    rows = [{**row, "reason": "it declined"} if place == at else row for place, row in enumerate(value["unranked"])]
    return change(merge, unranked=rows)


def drop_gap(data: st.DataObject, merge: Merge) -> Merge:
    """Hide that an outcome has no answer."""
    value: Any = merge.value
    at = pick(data, value["gaps"])
    return change(merge, gaps=value["gaps"][:at] + value["gaps"][at + 1 :])


def drop_ledger_row(data: st.DataObject, merge: Merge) -> Merge:
    """Forget an outcome."""
    at = pick(data, merge.ledger)
    return merge.model_copy(update={"ledger": merge.ledger[:at] + merge.ledger[at + 1 :]})


def change_ledger_reason(data: st.DataObject, merge: Merge) -> Merge:
    """Say of an outcome that it ended elsewhere in the ranking."""
    at = pick(data, merge.ledger)
    row = merge.ledger[at].model_copy(update={"reason": "rank 1 of 99"})
    return merge.model_copy(update={"ledger": (*merge.ledger[:at], row, *merge.ledger[at + 1 :])})


def drop_field_row(data: st.DataObject, merge: Merge) -> Merge:
    """Leave a part of the value untraced."""
    at = pick(data, merge.fields)
    return merge.model_copy(update={"fields": merge.fields[:at] + merge.fields[at + 1 :]})


def drop_all_field_rows(data: st.DataObject, merge: Merge) -> Merge:
    """Leave all of it untraced, as an integrator of anybody's may."""
    assume(merge.fields)
    return merge.model_copy(update={"fields": ()})


def change_export(data: st.DataObject, merge: Merge) -> Merge:
    """Hand something else to the A/B tool."""
    rows = list(table(merge, "ab-test"))
    at = pick(data, rows)
    name = data.draw(st.sampled_from(sorted(rows[at])))
    rows[at] = {**rows[at], name: "never said"}
    return with_rows(merge, "ab-test", rows)


def drop_flag(data: st.DataObject, merge: Merge) -> Merge:
    """Keep a doubt to oneself."""
    at = pick(data, merge.flags)
    return merge.model_copy(update={"flags": merge.flags[:at] + merge.flags[at + 1 :]})


def drop_shortfall(data: st.DataObject, merge: Merge) -> Merge:
    """Look complete."""
    at = pick(data, merge.shortfalls)
    return merge.model_copy(update={"shortfalls": merge.shortfalls[:at] + merge.shortfalls[at + 1 :]})


def change_rules(data: st.DataObject, merge: Merge) -> Merge:
    """Claim other rules."""
    return merge.model_copy(update={"rules": "The best one won."})


def change_verdict(data: st.DataObject, merge: Merge) -> Merge:
    """Let the judge have said something else in one order of one match."""
    rows = list(table(merge, "matches"))
    at = pick(data, rows)
    assume(rows[at]["winner"] != "not judged")  # else nothing follows from it
    order = data.draw(st.sampled_from(["one_first", "two_first"]))
    words = {"first", "second", "tie", "failed"} - {rows[at][order]}
    other = data.draw(st.sampled_from(sorted(words)))
    rows[at] = {**rows[at], order: other}
    return with_rows(merge, "matches", rows)


def drop_match(data: st.DataObject, merge: Merge) -> Merge:
    """Forget a match."""
    rows = list(table(merge, "matches"))
    at = pick(data, rows)
    return with_rows(merge, "matches", rows[:at] + rows[at + 1 :])


def repeat_match(data: st.DataObject, merge: Merge) -> Merge:
    """Count a match twice."""
    rows = list(table(merge, "matches"))
    return with_rows(merge, "matches", [*rows, rows[pick(data, rows)]])


def invent_match(data: st.DataObject, merge: Merge) -> Merge:
    """Let a variant win against one that isn't there."""
    rows = list(table(merge, "matches"))
    at = pick(data, rows)
    name = data.draw(st.sampled_from(["key_one", "key_two", "contest"]))
    return with_rows(merge, "matches", [*rows, {**rows[at], name: "nobody"}])


def change_reason(data: st.DataObject, merge: Merge) -> Merge:
    """Put a reason into the judge's mouth: only the judge's own answers can show that."""
    rows = list(table(merge, "matches"))
    at = pick(data, rows)
    rows[at] = {**rows[at], "reason_one_first": "never said"}
    return with_rows(merge, "matches", rows)


def change_half_a_match(data: st.DataObject, merge: Merge) -> Merge:
    """Change what was said in one order of a match that failed in the other: nothing follows from it."""
    rows = list(table(merge, "matches"))
    at = pick(data, rows)
    words = [rows[at]["one_first"], rows[at]["two_first"]]
    assume(words.count("failed") == 1)
    order, word = ("one_first", words[0]) if words[1] == "failed" else ("two_first", words[1])
    rows[at] = {**rows[at], order: "first" if word != "first" else "second"}
    return with_rows(merge, "matches", rows)


def bend_all_the_way(data: st.DataObject, merge: Merge) -> Merge:
    """Change a verdict and everything that follows from it: only the judge's own answers can show that."""
    bent = change_verdict(data, merge)
    try:
        return cast("Merge", JUDGED.recompute(bent, LAST, []))
    except Exception:
        assume(False)  # noqa: FBT003 -- hypothesis' own way to pass an example over
        raise


def drop_table(data: st.DataObject, merge: Merge) -> Merge:
    """Leave a table out."""
    at = pick(data, merge.tables)
    return merge.model_copy(update={"tables": merge.tables[:at] + merge.tables[at + 1 :]})


LAST: list[Outcome] = []
"""What the example at hand is made of."""

ANYWHERE = [
    drop_variant,
    swap_ranks,
    swap_values,
    change_figure,
    rank_the_unranked,
    excuse_otherwise,
    drop_gap,
    drop_ledger_row,
    change_ledger_reason,
    drop_field_row,
    drop_all_field_rows,
    change_export,
    drop_flag,
    drop_shortfall,
    change_rules,
    drop_table,
]
IN_EVIDENCE = [change_verdict, drop_match, repeat_match, invent_match]
BEHIND_EVIDENCE = [change_reason, change_half_a_match, bend_all_the_way]


@pytest.mark.slow
@given(st.data(), st.sampled_from([*ANYWHERE, *IN_EVIDENCE]), said())
@settings(deadline=None, max_examples=150)
def test_the_evidence_alone_shows_tampering(
    data: st.DataObject, tamper: Callable[[st.DataObject, Merge], Merge], outcomes: list[Outcome]
) -> None:
    """Whatever is bent, it no longer follows from the evidence in the merge, without a word from the judge."""
    merge = merged(JUDGED, outcomes)
    assert audit(merge, outcomes, [], JUDGED) == ()
    assert audit(tamper(data, merge), outcomes, [], JUDGED)


@pytest.mark.slow
@given(st.data(), st.sampled_from(BEHIND_EVIDENCE), said())
@settings(deadline=None, max_examples=100)
def test_the_judges_answers_show_what_the_evidence_cannot(
    data: st.DataObject, tamper: Callable[[st.DataObject, Merge], Merge], outcomes: list[Outcome]
) -> None:
    """Evidence that was bent with all that follows from it is found out by merging again."""
    merge = merged(JUDGED, outcomes)
    LAST[:] = outcomes
    bent = tamper(data, merge)
    assert audit(bent, outcomes, [], JUDGED, again=lambda once: JUDGED.merge_asking([], once, Bench(fickle)))


@pytest.mark.slow
@given(st.data(), st.sampled_from(ANYWHERE), said())
@settings(deadline=None, max_examples=60)
def test_tampering_with_what_a_function_ranked(
    data: st.DataObject, tamper: Callable[[st.DataObject, Merge], Merge], outcomes: list[Outcome]
) -> None:
    """Scores of a function are computed once more, and nothing bent passes."""
    merge = merged(MEASURED, outcomes)
    assert audit(merge, outcomes, [], MEASURED) == ()
    assert audit(tamper(data, merge), outcomes, [], MEASURED)


def test_a_bent_figure_is_named() -> None:
    """The violation says where something else should stand."""
    outcomes = [say("mug", value, brief=value) for value in ("a", "bb")]
    merge = MEASURED.merge_asking([], outcomes, Bench(fickle))
    [first, *_] = audit(_with_figures(merge, {0: {"score": 9.0}}), outcomes, [], MEASURED)
    assert str(first) == "precision at /: recomputed from the evidence, its 'fields' differs."
    found = audit(_with_figures(merge, {0: {"score": 9.0}}), outcomes, [], MEASURED)
    assert "precision at /ranking/0/score: recomputed from the evidence, it differs." in map(str, found)


@pytest.mark.parametrize("value", [None, [], {"ranking": []}, "text"])
def test_a_value_of_another_form(value: JsonValue) -> None:
    """A value that isn't one of a tournament at all is no crash of the audit."""
    outcomes = [say("mug", value, brief=value) for value in ("a", "bb")]
    merge = MEASURED.merge_asking([], outcomes, Bench(fickle)).model_copy(update={"value": value})
    assert audit(merge, outcomes, [], MEASURED)
