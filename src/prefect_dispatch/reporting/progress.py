"""Progress of a run, and its issues: passed to callbacks that are registered in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.executors.live_view import Activity
from prefect_dispatch.models.base import Frozen
from prefect_dispatch.models.outcome import ItemState, Outcome, Usage
from prefect_dispatch.security.escaping import markdown_table, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.calls.budget import Budget
    from prefect_dispatch.models.report import Report


MAX_FAILURES = 3
"""Number of failed items that a progress names."""
MAX_ERROR = 200
"""Characters of each of their errors."""


class Progress(Frozen):
    """Progress of a run."""

    total: int
    """Number of (brief, item) pairs."""
    done: int = 0
    """Number of pairs with an outcome."""
    cached: int = 0
    """How many of them came from the store."""
    failed: int = 0
    """How many of them failed."""
    skipped: int = 0
    """How many of them were skipped: no model was asked."""
    asked: int = 0
    """How many of them were sent to an agent."""
    in_flight: int = 0
    """Number of task runs in flight."""
    usage: Usage = Usage()
    """Usage so far."""
    seconds_left: float | None = None
    """Seconds until all have an outcome, at the speed so far; empty while there is no estimate."""
    failures: tuple[str, ...] = ()
    """The last items that failed, each with its error; the latest is last."""
    note: str = ""
    """What the run waits for, where that is no answer, such as a worker; it stands in place of the time left."""
    working: tuple[Activity, ...] = ()
    """What each program that works for the run on this machine is doing, as far as it is known."""

    def plus(self, *outcomes: Outcome) -> Progress:
        """Return the progress after some more outcomes."""
        states = Counter(outcome.state for outcome in outcomes)
        failed = [
            f"{outcome.brief}/{outcome.item}: {shorten(outcome.error.message, MAX_ERROR)}"
            for outcome in outcomes[-MAX_FAILURES:]
            if outcome.state is ItemState.FAILED and outcome.error
        ]
        return self.model_copy(
            update={
                "done": self.done + len(outcomes),
                "cached": self.cached + states[ItemState.CACHED],
                "failed": self.failed + states[ItemState.FAILED],
                "skipped": self.skipped + states[ItemState.SKIPPED],
                "asked": self.asked + sum(outcome.origin == "asked" for outcome in outcomes),
                "failures": (*self.failures, *failed)[-MAX_FAILURES:],
                "usage": sum((outcome.usage for outcome in outcomes if outcome.spent), self.usage),
            }
        )

    def __str__(self) -> str:
        """Return the progress beyond the count, in words.

        Example:
            >>> print(Progress(total=40, done=12, cached=2, asked=10, in_flight=8, seconds_left=95))
            2 from the store, 8 in flight, 0 tokens, cost $0.0000, about 1 min 35 s left
        """
        counts = {"from the store": self.cached, "failed": self.failed, "skipped": self.skipped}
        parts = [f"{count} {name}" for name, count in {**counts, "in flight": self.in_flight}.items() if count]
        parts += [f"{self.usage.tokens} tokens", f"cost {format_usd(self.usage.cost_usd)}"]
        if self.note:
            parts.append(self.note)
        elif self.done < self.total and self.seconds_left is not None:
            parts.append(f"about {format_duration(self.seconds_left)} left")
        return ", ".join(parts)


def estimate_seconds_left(progress: Progress, asks: int, seconds: float) -> float | None:
    """Return the estimated seconds that a fan-out still takes, at the speed so far.

    Args:
        progress: The progress so far.
        asks: Number of pairs that are sent to an agent in all.
        seconds: Seconds since the first of them was sent.

    Returns:
        None until as many were answered as are in flight: the first wave alone allows no estimate.
    """
    if not progress.asked or progress.asked < progress.in_flight:
        return None
    return seconds * max(asks - progress.asked, progress.in_flight) / progress.asked


def format_rate(count: int, seconds: float) -> str:
    """Return how many items are answered per second, or per minute where that is less than one.

    Example:
        >>> format_rate(30, 10.0), format_rate(3, 60.0)
        ('3.0/s', '3.0/min')
    """
    rate = count / seconds
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def format_activity(activity: Activity) -> str:
    """Return what a program is doing, on one line.

    Example:
        >>> about = {"brief": "hints", "item": "lexer", "program": "claude", "log": "1.log"}
        >>> print(format_activity(Activity(**about, seconds=125, tokens=9000, cost_usd=0.1, step="$ pytest -q")))
        hints/lexer: 2 min 5 s, 9000 tokens, cost $0.1000: $ pytest -q
        >>> print(format_activity(Activity(**about, seconds=4)))
        hints/lexer: 4 s
    """
    figures = [format_duration(activity.seconds)]
    if activity.tokens:
        figures.append(f"{activity.tokens} tokens")
    if activity.cost_usd is not None:
        figures.append(f"cost {_format_cost(activity)}")
    step = f": {activity.step}" if activity.step else ""
    return f"{activity.brief}/{activity.item}: {', '.join(figures)}{step}"


def activity_table(working: Sequence[Activity]) -> str:
    """Return what programs are doing as a Markdown table; empty if there are none."""
    if not working:
        return ""
    header = ("item", "program", "time", "tokens", "cost", "last step", "log")
    rows = [
        (
            f"{each.brief}/{each.item}",
            each.program,
            format_duration(each.seconds),
            each.tokens,
            "" if each.cost_usd is None else _format_cost(each),
            each.step,
            each.log,
        )
        for each in working
    ]
    return markdown_table(header, rows)


def _format_cost(activity: Activity) -> str:
    return ("about " if activity.is_estimated else "") + format_usd(activity.cost_usd)


def format_usd(cost: float | None) -> str:
    """Return an amount in US dollars as text."""
    return "unknown" if cost is None else f"${cost:.4f}"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as text.

    Example:
        >>> format_duration(4.2), format_duration(95), format_duration(2 * 3600 + 170)
        ('4 s', '1 min 35 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:  # noqa: PLR2004 -- minutes of an hour
        return f"{minutes} min {rest} s"
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


Listener = Callable[[Progress], None]

progress_listener: ContextVar[Listener | None] = ContextVar("prefect-dispatch-progress", default=None)
"""Callback for the progress of a run, set before its flow is called; called with each outcome, and once for all cached
ones."""

on_interrupted: ContextVar[Callable[[], None] | None] = ContextVar("prefect-dispatch-interrupted", default=None)
"""Callback for an interrupted run, set before its flow is called; called when the run's work has ended."""

on_report: ContextVar[Callable[[Report], None] | None] = ContextVar("prefect-dispatch-finished", default=None)
"""Callback for the report, set before the flow is called; called when it is written, before Prefect has the state."""

on_outcomes: ContextVar[Callable[[Sequence[Outcome]], None] | None] = ContextVar(
    "prefect-dispatch-outcomes", default=None
)
"""Callback for outcomes as they arrive, set before its flow is called: each (brief, item) is passed once."""

on_budget: ContextVar[Callable[[Budget], None] | None] = ContextVar("prefect-dispatch-budget", default=None)
"""Callback for the budget of a run, set before its flow is called; called before anything is spent."""

on_wait: ContextVar[Callable[[str], None] | None] = ContextVar("prefect-dispatch-announce", default=None)
"""Callback for what a run waits for, in a sentence; set before its flow is called."""

on_question: ContextVar[Callable[[str], bool] | None] = ContextVar("prefect-dispatch-question", default=None)
"""Callback that shows a person a text, and returns whether the run may go on; None: no person can be asked."""


class RunIssue(NamedTuple):
    """An issue of a run: waits, retries, re-asks and the like, with their count."""

    what: str
    times: int
    why: str = ""

    def __str__(self) -> str:
        """Return the issue with its count, and the reasons in parentheses."""
        return f"{self.what} {self.times}" + (f" ({self.why})" if self.why else "")


def run_issues(report: Report) -> list[RunIssue]:
    """Return the issues of a run: waits, retries, re-asks, escalations, unsettled calls and damaged records.

    Example:
        >>> from prefect_dispatch.models.report import Report, Spending
        >>> usage = Spending(reasks=2, retried={"timeout": 1, "connection": 3})
        >>> [str(each) for each in run_issues(Report(status="complete", message="All.", usage=usage, run={"waits": 1}))]
        ['waits for a busy provider 1', 'retries 4 (3 connection, 1 timeout)', 're-asks 2']
    """
    usage, run = report.usage, report.run
    waits: Any = run.get("waits", 0)
    waited: Any = run.get("waited_s", 0)
    damaged: Any = run.get("damaged", 0)
    issues = (
        RunIssue("waits for a busy provider", waits),
        RunIssue("seconds waited, all calls together", round(waited)),
        RunIssue("retries", sum(usage.retried.values()), _by_class(usage.retried)),
        RunIssue("re-asks", usage.reasks),
        RunIssue("escalations to the next model", sum(usage.escalated.values()), _by_class(usage.escalated)),
        RunIssue("calls of unknown cost", usage.unsettled),
        RunIssue("damaged answers in the store, asked again", damaged),
    )
    return [each for each in issues if each.times]


def _by_class(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{times} {kind}" for kind, times in sorted(counts.items(), key=lambda each: (-each[1], each[0])))
