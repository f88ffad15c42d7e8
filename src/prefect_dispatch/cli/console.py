"""Console output of the command line: the progress of a run, its summary, and the table of a plan."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from prefect_dispatch.executors.coding.questions import TO_ANSWER
from prefect_dispatch.executors.llm.local_model import SMOLLM2
from prefect_dispatch.models.ledger import ACCURACY, TO_DECIDE
from prefect_dispatch.reporting.costs import describe_bill
from prefect_dispatch.reporting.html.document import missing_library
from prefect_dispatch.reporting.markdown import TITLES
from prefect_dispatch.reporting.progress import (
    format_activity,
    format_rate,
    format_usd,
    on_question,
    on_wait,
    progress_listener,
    run_issues,
)
from prefect_dispatch.reporting.table_files import csv_files
from prefect_dispatch.security.escaping import count_noun, strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from prefect_dispatch.models.report import Report, Spending
    from prefect_dispatch.reporting.output_folder import Output
    from prefect_dispatch.reporting.progress import Progress
    from prefect_dispatch.tasks.plan import Plan

T = TypeVar("T")

REFRESH_S = 0.25
"""Seconds between two redraws of the live display."""
MIN_BAR, MAX_BAR = 5, 40
"""Characters of its bar; a terminal with less room gets none."""
RESERVED_LINES = 8
"""Lines of the terminal that are left for everything but the programs that work."""
LINE_EVERY_S = 5.0
"""Seconds between two progress lines where there is no terminal."""
TOY = (
    "Answers are from SmolLM2-135M, a toy: it shows how a run works, not how good answers are. Name another model with "
    "--model."
)
"""Hint of a run whose answers are from the small model on this machine."""


@contextmanager
def show_progress() -> Generator[Callable[[str], None]]:
    """Show the progress of a run on standard error: a live display on a terminal, otherwise a line every few seconds.

    A display that fails, such as on a terminal that is gone, ends silently; the run goes on.

    Yields:
        A function that shows a message without breaking the display.
    """
    console = Console(stderr=True)

    def print_message(message: str) -> None:
        # The console prints a line above the display and redraws the display below it.
        console.print(strip_control_chars(message), markup=False, highlight=False, soft_wrap=True)

    show = _ignore_errors(print_message)
    token = on_wait.set(show)
    try:
        if not console.is_terminal or console.is_dumb_terminal:
            with _listener(_ignore_errors(_line_printer())):
                yield show
            return
        display = _Display(console)
        answering = on_question.set(display.ask) if sys.stdin.isatty() else None
        with _listener(display.update):
            display.start()
            try:
                yield show
            finally:
                display.stop()
                if answering:
                    on_question.reset(answering)
    finally:
        on_wait.reset(token)


class _Display:
    """Live display of a run on a terminal: bar and rate, counts and cost, the last failures."""

    def __init__(self, console: Console) -> None:
        """Create the display; nothing is drawn before `start`."""
        self._console = console
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self._first = 0.0
        self._ended, self._asking = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="prefect-dispatch-display", daemon=True)
        self._live = Live(console=console, get_renderable=self._render, auto_refresh=False)

    def start(self) -> None:
        """Draw the display, and redraw it repeatedly."""
        with suppress(Exception):
            self._live.start()
            self._thread.start()

    def update(self, progress: Progress) -> None:
        """Show another progress at the next redraw."""
        if self._progress is None:
            self._first = time.monotonic()
        self._progress = progress

    def stop(self) -> None:
        """Draw the last state, and leave the cursor below it."""
        self._ended.set()
        try:
            with suppress(Exception):
                self._thread.join()
        finally:  # after another Ctrl-C, too: the cursor is hidden until then
            with suppress(Exception):
                self._live.stop()

    def ask(self, text: str) -> bool:
        """Show a text in place of the display, and return whether the person at the terminal goes on.

        Anything but yes, and the end of input, is no: going on costs money.
        """
        self._asking.set()
        with suppress(Exception):
            self._live.stop()
        try:
            for line in text.splitlines():
                self._console.print(strip_control_chars(line), markup=False, highlight=False, soft_wrap=True)
            return self._console.input("Ask the rest? [y/N] ", markup=False).strip().lower() in {"y", "yes"}
        except EOFError:
            return False
        finally:
            with suppress(Exception):
                self._live.start()
            self._asking.clear()

    def _refresh(self) -> None:
        with suppress(Exception):
            while not self._ended.wait(REFRESH_S):
                if not self._asking.is_set():
                    self._live.refresh()

    def _render(self) -> Group:
        progress, now = self._progress, time.monotonic()
        seconds = str(timedelta(seconds=int(now - self._started)))
        if progress is None:
            return Group(Text(f"starting {seconds}"))
        # 1. The bar takes the room that the numbers leave.
        parts = [f"{progress.done}/{progress.total}", seconds]
        if progress.asked and now > self._first:
            parts.append(format_rate(progress.asked, now - self._first))
        numbers = Text(" ".join(parts), no_wrap=True, overflow="ellipsis")
        head = Table.grid(padding=(0, 1))
        room = min(MAX_BAR, self._console.width - numbers.cell_len - 2)
        if room >= MIN_BAR:
            head.add_row(ProgressBar(total=progress.total, completed=progress.done, width=room), numbers)
        else:
            head.add_row(numbers)
        # 2. Keys and errors hold text of others: no markup, no control characters, one line each.
        failures = [
            Text(strip_control_chars(f"failed: {each}"), style="red", no_wrap=True, overflow="ellipsis")
            for each in progress.failures
        ]
        return Group(head, Text(str(progress)), *self._render_working(progress), *failures)

    def _render_working(self, progress: Progress) -> Iterator[Text]:
        """Yield a line for each program that works; the item is a link to its log."""
        room = max(1, self._console.height - RESERVED_LINES)
        for each in progress.working[:room]:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(each.program, style=Style(dim=True, link=Path(each.log).as_uri()))
            yield line.append(f" {strip_control_chars(format_activity(each))}")
        if len(progress.working) > room:
            yield Text(f"and {len(progress.working) - room} more")
        if progress.working:
            yield Text("read along: prefect-dispatch logs", style="dim", no_wrap=True, overflow="ellipsis")


def _ignore_errors(call: Callable[[T], None]) -> Callable[[T], None]:
    """Return a function that shows something; once that has failed, it does nothing."""
    failed = False

    def show(value: T) -> None:
        nonlocal failed
        if failed:
            return
        try:
            call(value)
        except Exception:  # noqa: BLE001 -- a display must not fail the run
            failed = True

    return show


@contextmanager
def _listener(show: Callable[[Progress], None]) -> Generator[None]:
    """Show the progress within the body, beside the listener that is set already."""
    before = progress_listener.get()

    def on_progress(progress: Progress) -> None:
        if before:
            before(progress)
        show(progress)

    token = progress_listener.set(on_progress)
    try:
        yield
    finally:
        progress_listener.reset(token)


def _line_printer() -> Callable[[Progress], None]:
    """Return a listener that prints a line every few seconds, and at the end."""
    printed, logs = time.monotonic(), set[str]()

    def on_progress(progress: Progress) -> None:
        nonlocal printed
        if progress.done == progress.total or time.monotonic() - printed >= LINE_EVERY_S:
            printed = time.monotonic()
            lines = [f"{progress.done}/{progress.total} {progress}"]
            for each in progress.working:
                lines.append(f"  {each.program} {strip_control_chars(format_activity(each))}")
                if each.log not in logs:  # once, as it is the same until the program ends
                    logs.add(each.log)
                    lines.append(f"    log: {each.log}")
            print("\n".join(lines), file=sys.stderr, flush=True)

    return on_progress


def summary(report: Report, output: Output | None) -> str:
    """Return the summary of a run: verdict, open points, spending, files."""
    message = report.message.removeprefix("Failed: ")
    lines = [f"{TITLES[report.status]}: {strip_control_chars(message)}"]
    if isinstance(found := report.run.get("review"), dict):
        place = output.place(TO_DECIDE) if output else f"the run's artifacts; --out DIR writes them to {TO_DECIDE}"
        decisions = strip_control_chars(str(found["decisions"]))
        lines.append(f"Decide in {decisions} (lines for it: {place}), and run the same command again.")
    if any(each.name == TO_ANSWER for each in report.documents):
        place = output.place(TO_ANSWER) if output else f"the run's artifacts; --out DIR writes them to {TO_ANSWER}"
        lines.append(
            f"Agents ask: write answers into the file of executor.answers (lines for it: {place}), and run again."
        )
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
    lines += describe_bill(report.bill)
    if output is not None:
        folder, requested = output
        is_written = (folder / "report.html").exists() if isinstance(folder, Path) else not missing_library()
        names = ["report.html"] if is_written else []
        if not names:
            lines.append(f"No report.html: {missing_library() or 'the log of the run says why.'}")
        names += ["report.md", *(each.name for each in report.documents), "report.json", "outcomes.jsonl"]
        names += [*csv_files(report.value, report.tables), *["questions.jsonl"] * bool(report.asked)]
        names = [requested] * bool(requested) + [name for name in names if name != requested]
        lines.append("Report: " + ", ".join(map(output.place, names)))
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
        f"tokens {usage.tokens}" + (f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""),
        f"cost {format_usd(usage.cost_usd)}",
    ]


def plan_table(plan: Plan) -> str:
    """Return a plan as lines of text."""
    rows = (
        ("work", f"{plan.work} ({count_noun(plan.briefs, 'brief')} x {count_noun(plan.items, 'item')})"),
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
    from prefect_dispatch.tasks.plan import describe_modes  # noqa: PLC0415 -- imports every model

    sentences = filter(None, [plan.advice, describe_modes(plan.modes), plan.integrator])
    return "\n".join([*lines, *sentences, *plan.notes])
