"""What is otherwise than before: laws of the comparison, and what is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.cli.console import summary
from prefect_dispatch.models.ledger import LedgerRow, Ref
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import (
    Changes,
    FlowRun,
    KnownAnswer,
    LastRun,
    Report,
    RunSnapshot,
    compare,
    update_known_answers,
)
from prefect_dispatch.reporting.explain import explain
from prefect_dispatch.reporting.markdown import MAX_NAMES, markdown
from prefect_dispatch.serialization.json_text import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

HOSTILE = "x|y\n<img src=x> [a](http://e.example) \x1b[31m"


def outcome(brief: str, item: str, word: str | None) -> Outcome:
    """Return an answer, or a gap where there is no word."""
    if word is None:
        error = Failure(kind="rejected", message="no")
        return Outcome(brief=brief, item=item, status="failed", error=error, fingerprint=digest(item))
    return Outcome(brief=brief, item=item, status="succeeded", value=word, fingerprint=digest(item), origin="asked")


RUNS = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["i1", "i2", "i10", "j"])),
    st.sampled_from([None, "one", "two"]),
).map(lambda run: [outcome(brief, item, word) for (brief, item), word in run.items()])


def names(refs: Sequence[Ref]) -> set[Ref]:
    """Return names as a set, each of which stands once, in the order of every list."""
    assert list(refs) == sorted(set(refs), key=lambda ref: ref.order)
    return set(refs)


@given(first=RUNS, second=RUNS)
def test_each_difference_of_two_runs_is_told_once(first: list[Outcome], second: list[Outcome]) -> None:
    """Against the definition, name by name."""
    was, now = ({Ref.of(each): each.value for each in run} for run in (first, second))
    before = update_known_answers(first)
    found = compare(before, update_known_answers(second, before))
    both = was.keys() & now.keys()
    assert names(found.new) == now.keys() - was.keys()
    assert names(found.gone) == was.keys() - now.keys()
    assert names(found.closed) == {ref for ref in both if was[ref] is None and now[ref] is not None}
    assert names(found.opened) == {ref for ref in both if was[ref] is not None and now[ref] is None}
    changed = {Ref(brief=each.brief, item=each.item): each for each in found.changed}
    assert names(list(changed)) == {ref for ref in both if None not in (was[ref], now[ref]) and was[ref] != now[ref]}
    assert all(each.before.digest == digest(was[ref]) for ref, each in changed.items())
    assert all(each.after.digest == digest(now[ref]) for ref, each in changed.items())
    assert all(set(refs) for refs in found.lists.values())
    assert found == compare(before[::-1], update_known_answers(second[::-1], before))


@given(run=RUNS)
def test_the_same_again_changes_nothing(run: list[Outcome]) -> None:
    """Whatever came of a run."""
    once = update_known_answers(run)
    assert compare(once, update_known_answers(run, once)) == Changes(earlier="found")
    assert str(compare(once, update_known_answers(run, once))) == "nothing changed"


@given(values=st.tuples(*[st.sampled_from(["", "0" * 64, "1" * 64])] * 2), run=RUNS)
def test_a_merged_value_is_compared_where_there_are_two(values: tuple[str, str], run: list[Outcome]) -> None:
    """The same answers may be merged otherwise; a run that has no value changed none."""
    found = compare(update_known_answers(run), update_known_answers(run), values)
    assert found.merged == (set(values) == {"0" * 64, "1" * 64})
    assert str(found) == ("only the merged value changed" if found.merged else "nothing changed")


@pytest.mark.slow
@given(runs=st.lists(RUNS, min_size=1, max_size=6))
def test_the_last_answer_stays_known_while_its_work_is_there(runs: list[list[Outcome]]) -> None:
    """Through any number of gaps, and no longer than that."""
    rows: tuple[KnownAnswer, ...] = ()
    last: dict[Ref, str] = {}
    for run in runs:
        rows = update_known_answers(run, rows)
        last = {
            Ref.of(each): digest(each.value) if each.value is not None else last.get(Ref.of(each), "") for each in run
        }
        assert {Ref(brief=row.brief, item=row.item): row.digest for row in rows} == last
        assert [row.answered for row in rows] == [each.status == "succeeded" for each in run]


@given(run=RUNS)
def test_what_is_remembered_comes_back(run: list[Outcome]) -> None:
    """As JSON and back."""
    ran = LastRun(started="2026-01-01T00:00:00+00:00", flow_run=FlowRun(id="1", name="calm-fox"))
    memory = RunSnapshot(run=ran, work=update_known_answers(run), value=digest("merged"))
    assert RunSnapshot.model_validate_json(memory.model_dump_json()) == memory
    of_old = memory.model_dump(mode="json", exclude={"value"})
    assert RunSnapshot.model_validate(of_old) == memory.model_copy(update={"value": ""})


def report(changes: Changes) -> Report:
    """Return a report with some changes."""
    since: JsonValue = {"started": "2026-01-01T00:00:00+00:00", "flow_run": {"id": "1", "name": "calm-fox"}}
    row = LedgerRow(brief="b", item=HOSTILE, disposition="merged")
    return Report(status="complete", message="All.", changes=changes, run={"since": since}, ledger=(row,))


def test_changes_are_told_wherever_a_report_is() -> None:
    """Counts, then names, as many as fit; what is quoted cannot act."""
    new = tuple(Ref(brief="b", item=f"{n}") for n in range(MAX_NAMES + 2))
    changes = Changes(earlier="found", new=new, closed=(Ref(brief="b", item=HOSTILE),))
    text = markdown(report(changes))
    assert "## Since the last run\n\nCompared with the run calm-fox of 2026-01-01T00:00:00+00:00: new 22, gaps" in text
    assert "- new: b/0, b/1, " in text
    assert "b/19 and 2 more in report.json\n- gaps closed: b/x&#124;y &#60;img" in text
    assert "\x1b" not in text
    assert "Since the last run: new 22, gaps closed 1" in summary(report(changes), None)
    assert "Since the last run: new 22, gaps closed 1" in explain(report(changes))
    assert "since the last run: gaps closed" in explain(report(changes), HOSTILE)


def test_a_run_that_changed_nothing_says_so_and_a_first_one_says_nothing() -> None:
    """One sentence, or none."""
    assert ": nothing changed.\n\n## Numbers" in markdown(report(Changes(earlier="found")))
    for text in (markdown(report(Changes())), summary(report(Changes()), None), explain(report(Changes()))):
        assert "ince the last run" not in text
