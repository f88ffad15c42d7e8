"""What an integrator asks an agent: stored, counted, asked once, and the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect.exceptions import ParameterTypeError

from prefect_dispatch import Brief, Item, Limits, Merge, dispatch, plan
from prefect_dispatch.errors import DispatchFailed, JobError, TerminalError
from prefect_dispatch.integrators.base import AskingIntegrator, Integrator, Question, unanswered
from prefect_dispatch.models.ledger import LedgerRow
from prefect_dispatch.tasks.integrate import integrate
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.integrators.base import Asker
    from prefect_dispatch.models.outcome import Outcome

pytestmark = pytest.mark.usefixtures("store")

WORDS = Brief(name="words", instructions="Say a word.")
SUM = Brief(name="sum", instructions="Put the words together.")
QUICK = Limits(retries=0, reasks=0)


def ledger(outcomes: Sequence[Outcome]) -> tuple[LedgerRow, ...]:
    """Return a ledger in which every answer was merged."""
    return tuple(unanswered(o) or LedgerRow(brief=o.brief, item=o.item, disposition="merged") for o in outcomes)


class Writer:
    """Has an agent put all answers together, in halves and then as a whole."""

    def __init__(self, *, sort: bool = True, executor: ScriptedExecutor | None = None) -> None:
        """Keep whether the questions depend on the order of the outcomes, and who else is asked."""
        self.sort, self.executor = sort, executor

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Merge with two rounds of questions; the first asks one thing twice."""
        words = [str(outcome.value) for outcome in outcomes if outcome.status == "succeeded"]
        first = Question(brief=SUM, item=Item(key="1", value=" ".join(sorted(words) if self.sort else words)))
        answers = ask([first, first])
        assert answers[0] == answers[1] == ask([first])[0]
        whole = Question(brief=SUM, item=Item(key="whole", value=f"<{answers[0].value}>"))
        [told] = ask([whole], self.executor or ask.executor)
        value: JsonValue = told.value if told.status == "succeeded" else None
        return Merge(value=value, ledger=ledger(outcomes), shortfalls=() if value else ("Nothing was written.",))


def shout(ask: Ask) -> JsonValue:
    """Answer in capitals."""
    return str(ask.item.value).upper()


def test_the_protocols_tell_who_asks() -> None:
    """An integrator either merges or asks."""
    assert isinstance(Writer(), AskingIntegrator)
    assert not isinstance(Writer(), Integrator)


@pytest.mark.slow
def test_questions_are_asked_once_and_counted() -> None:
    """Two items and two different questions: four requests, the integrator's two of them; the next run asks nobody."""
    scripted = ScriptedExecutor(shout)
    report = dispatch([WORDS], ["a", "b"], executor=scripted, integrator=Writer(), limits=QUICK)
    assert report.value == "<A B>"
    assert (report.status, scripted.calls) == ("complete", 4)
    assert (report.usage.asked, report.usage.requests) == (4, 4)
    assert (report.integration.asked, report.integration.requests) == (2, 2)
    assert [outcome.item for outcome in report.asked] == ["1", "whole"]
    again = dispatch([WORDS], ["b", "a"], executor=scripted, integrator=Writer(), limits=QUICK)
    assert (again.value, scripted.calls) == (report.value, 4)
    assert (again.integration.asked, again.integration.cached) == (0, 2)


@pytest.mark.slow
def test_refresh_reaches_the_questions() -> None:
    """Asking again means the integrator's own questions, too."""
    scripted = ScriptedExecutor(shout)
    for refresh in (False, True):
        dispatch([WORDS], ["a"], executor=scripted, integrator=Writer(), limits=QUICK, refresh=refresh)
    assert scripted.calls == 6


@pytest.mark.slow
def test_somebody_else_may_be_asked() -> None:
    """A call may name another executor; its answer is stored as that one's."""
    judge = ScriptedExecutor(lambda ask: "judged", fingerprint="judge")
    report = dispatch([WORDS], ["a"], executor=ScriptedExecutor(shout), integrator=Writer(executor=judge), limits=QUICK)
    assert (report.value, judge.calls) == ("judged", 1)


@pytest.mark.slow
def test_a_failed_question_is_the_integrators_to_tell() -> None:
    """What the integrator could not do makes a run end with gaps, although each item was answered."""

    def fail_whole(ask: Ask) -> JsonValue:
        if ask.item.key == "whole":
            raise ValueError("no")
        return shout(ask)

    report = dispatch([WORDS], ["a"], executor=ScriptedExecutor(fail_whole), integrator=Writer(), limits=QUICK)
    assert (report.status, report.gaps) == ("gaps", ())
    assert report.message == "1 of 1 answered. Nothing was written."
    assert [outcome.status for outcome in report.asked] == ["succeeded", "failed"]
    whole = ScriptedExecutor(shout)
    again = dispatch([WORDS], ["a"], executor=whole, integrator=Writer(), limits=QUICK)
    assert (again.status, [ask.item.key for ask in whole.asks]) == ("complete", ["whole"])


@pytest.mark.slow
def test_an_agent_that_cannot_be_asked_fails_the_run() -> None:
    """A wrong key met while merging: the run fails, says so, and what was asked is counted."""

    def expired(ask: Ask) -> JsonValue:
        if ask.brief.name == "sum":
            raise TerminalError("The key is wrong.")
        return shout(ask)

    with pytest.raises(DispatchFailed, match="The key is wrong") as caught:
        dispatch([WORDS], ["a"], executor=ScriptedExecutor(expired), integrator=Writer(), limits=QUICK)
    report = caught.value.report
    assert report.value is None
    assert [outcome.status for outcome in report.asked] == ["failed"]
    assert [row.disposition for row in report.ledger] == []


@pytest.mark.slow
def test_questions_that_depend_on_the_order_are_found_out() -> None:
    """Merged once more in another order, it would ask something new: the audit says so, and nobody is asked."""
    scripted = ScriptedExecutor(shout)
    with pytest.raises(DispatchFailed, match="asked something new: sum/1") as caught:
        dispatch([WORDS], ["a", "b"], executor=scripted, integrator=Writer(sort=False), limits=QUICK)
    assert scripted.calls == 4
    [violation] = caught.value.report.violations
    assert violation.law == "idempotence"
    assert len(caught.value.report.asked) == 2
    with pytest.raises(DispatchFailed):
        dispatch([WORDS], ["a", "b"], executor=scripted, integrator=Writer(sort=False), limits=QUICK)
    assert scripted.calls == 4  # what was answered was stored at once, whatever became of the merge


class Mean:
    """Asks, and returns a mean of nothing."""

    def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:
        """Return a number that JSON has not."""
        ask([Question(brief=SUM, item=Item(key="1", value="words"))])
        return Merge(value={"mean": float("nan")}, ledger=ledger(outcomes))


@pytest.mark.slow
def test_an_integrator_that_returns_what_cannot_be_kept_fails_the_run() -> None:
    """The run names it, the place and the way out; what was answered is stored, its own questions included."""
    scripted = ScriptedExecutor(shout)
    for asked in ((1, 1), (0, 0)):
        with pytest.raises(
            DispatchFailed, match="The integrator Mean returned a merge whose 'value' holds NaN"
        ) as caught:
            dispatch([WORDS], ["a"], executor=scripted, integrator=Mean(), limits=QUICK)
        report = caught.value.report
        assert (report.usage.asked - report.integration.asked, report.integration.asked) == asked
    assert scripted.calls == 2


class Later(Mean):
    """Merges some time."""

    async def merge_asking(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome], ask: Asker) -> Merge:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a coroutine."""
        return Merge(value=None, ledger=())


@pytest.mark.parametrize(
    ("integrator", "problem"),
    [
        pytest.param(Mean, "Mean is a class, not an integrator: pass an object of it", id="class"),
        pytest.param(Later(), "Later is not an integrator: its method 'merge_asking' must return at once", id="async"),
    ],
)
def test_what_cannot_merge_is_refused_before_anything_is_spent(integrator: Any, problem: str) -> None:  # noqa: ANN401 -- what a caller passes by mistake
    """By the flow, by a plan, and by the task that merges."""
    scripted = ScriptedExecutor(shout)
    with pytest.raises(ParameterTypeError, match=problem):
        dispatch([WORDS], ["a"], executor=scripted, integrator=integrator)
    with pytest.raises(JobError, match=problem):
        plan([WORDS], ["a"], scripted, integrator=integrator)
    with pytest.raises(JobError, match=problem):
        integrate.fn([WORDS], [], [], integrator)
    assert scripted.calls == 0


class Backwards:
    """Depends on the order of the outcomes."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Any:  # noqa: ANN401 -- a Merge
        """Return the answers in the order in which they came."""
        return Merge(value=[outcome.value for outcome in outcomes], ledger=ledger(outcomes))


def test_an_integrator_that_depends_on_the_order_is_found_out() -> None:
    """Whoever wrote it."""
    with pytest.raises(DispatchFailed, match="merged again in another order, its 'value' differs"):
        dispatch([WORDS], ["a", "b"], executor=ScriptedExecutor(shout), integrator=Backwards(), limits=QUICK)
