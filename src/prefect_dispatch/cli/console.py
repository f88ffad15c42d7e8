"""Console output of the command line: the progress of a run, its summary, and the table of a plan."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from prefect_dispatch.executors.llm.local_model import SMOLLM2
from prefect_dispatch.models.ledger import ACCURACY
from prefect_dispatch.reporting.html.document import missing_library
from prefect_dispatch.reporting.markdown import TITLES, TO_DECIDE
from prefect_dispatch.reporting.progress import format_usd, on_wait, progress_listener, run_issues
from prefect_dispatch.security.escaping import strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from prefect_dispatch.models.report import Report, Spending
    from prefect_dispatch.reporting.progress import Progress
    from prefect_dispatch.tasks.plan import Plan

LINE_EVERY_S = 5.0
"""Seconds between two progress lines where there is no terminal."""
TOY = (
    "Answers are from SmolLM2-135M, a toy: it shows how a run works, not how good answers are. Name another model with "
    "--model."
)
"""Hint of a run whose answers are from the small model on this machine."""


@contextmanager
def show_progress() -> Generator[Callable[[str], None]]:
    """Show the progress of a run on standard error: a bar on a terminal, otherwise a line every few seconds.

    Yields:
        A function that shows a message without breaking the bar.
    """
    console = Console(stderr=True)

    def show(message: str) -> None:
        # The console prints a line above the bar and redraws the bar below it.
        console.print(strip_control_chars(message), markup=False, highlight=False, soft_wrap=True)

    token = on_wait.set(show)
    try:
        if not console.is_terminal:
            with _listener(_line_printer()):
                yield show
            return
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
        with Bar(*columns, console=console) as bar:
            task = bar.add_task("starting", total=None)

            def on_progress(progress: Progress) -> None:
                bar.update(task, total=progress.total, completed=progress.done, description=str(progress))

            with _listener(on_progress):
                yield show
    finally:
        on_wait.reset(token)


@contextmanager
def _listener(on_progress: Callable[[Progress], None]) -> Generator[None]:
    token = progress_listener.set(on_progress)
    try:
        yield
    finally:
        progress_listener.reset(token)


def _line_printer() -> Callable[[Progress], None]:
    """Return a listener that prints a line every few seconds, and at the end."""
    printed = time.monotonic()

    def on_progress(progress: Progress) -> None:
        nonlocal printed
        if progress.done == progress.total or time.monotonic() - printed >= LINE_EVERY_S:
            printed = time.monotonic()
            print(f"{progress.done}/{progress.total} {progress}", file=sys.stderr, flush=True)

    return on_progress


def summary(report: Report, out: Path | None) -> str:
    """Return the summary of a run: verdict, open points, spending, files."""
    message = report.message.removeprefix("Failed: ")
    lines = [f"{TITLES[report.status]}: {strip_control_chars(message)}"]
    if isinstance(found := report.run.get("review"), dict):
        place = str(out / TO_DECIDE) if out else f"the run's artifacts; --out DIR writes them to {TO_DECIDE}"
        decisions = strip_control_chars(str(found["decisions"]))
        lines.append(f"Decide in {decisions} (lines for it: {place}), and run the same command again.")
    lines += [f"Shortfall: {strip_control_chars(each)}" for each in report.shortfalls if each not in message]
    if report.changes.earlier != "none":
        lines.append(f"Since the last run: {report.changes}")
    lines += [f"Right answers: {strip_control_chars(each.note)}" for each in report.tables if each.name == ACCURACY]
    if look := _open_points(report):
        lines.append(f"To look at: {look}")
    lines.append(", ".join([*_usage_parts(report.usage), f"{report.run.get('seconds')} s"]))
    if went := run_issues(report):
        lines.append(f"How it went: {', '.join(map(str, went))}")
    if (own := report.integration).asked + own.cached + own.shared:
        lines.append(f"of that the integrator: {', '.join(_usage_parts(own))}")
    if out is not None:
        names = ["report.html"] if (out / "report.html").exists() else []
        if not names:
            lines.append(f"No report.html: {missing_library() or 'the log of the run says why.'}")
        names += ["report.md", *(each.name for each in report.documents), "report.json", "outcomes.jsonl"]
        names += [f"{table.name}.csv" for table in report.tables] + ["questions.jsonl"] * bool(report.asked)
        lines.append("Report: " + ", ".join(str(out / name) for name in names))
    if any(each.asked == SMOLLM2 for each in report.models):
        lines.append(TOY)
    return "\n".join(lines)


def _open_points(report: Report) -> str:
    flagged = [flag.path for flag in report.flags if flag.kind == "conflict"]  # one file may have several
    flagged_paths = frozenset(flagged)
    counts = {
        "flag": len(report.flags) - len(flagged),
        "proposal": len(report.proposals),
        "conflict": len(flagged) + sum(bool(row.losers) and row.path not in flagged_paths for row in report.fields),
    }
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count)


def _usage_parts(usage: Spending) -> list[str]:
    return [
        f"asked {usage.asked}",
        f"from the store {usage.cached}",
        *([f"shared {usage.shared}"] if usage.shared else []),
        f"requests {usage.requests}",
        f"tokens {usage.tokens}",
        f"cost {format_usd(usage.cost_usd)}",
    ]


def plan_table(plan: Plan) -> str:
    """Return a plan as lines of text."""
    rows = (
        ("work", f"{plan.work} ({plan.briefs} briefs x {plan.items} items)"),
        ("stored already", plan.stored),
        ("shared", plan.shared),
        ("to ask", f"{plan.to_ask}, {plan.parts} of them parts of what is too long" if plan.parts else plan.to_ask),
        ("prompt tokens", "unknown" if plan.prompt_tokens is None else plan.prompt_tokens),
        ("completion tokens", "unknown" if plan.completion_tokens is None else plan.completion_tokens),
        ("cost", format_usd(plan.cost_usd)),
        ("time in turn", f"{plan.seconds_in_turn:g} s"),
        ("time in parallel", f"{plan.seconds_in_parallel:g} s"),
        ("basis", plan.basis),
    )
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {figure}" for name, figure in rows]
    return "\n".join([*lines, plan.advice, *filter(None, [plan.integrator]), *plan.notes])
