"""Live view of programs that work for a run: what each is doing, from the events in its log.

A log is the output of a program, which may hold any text. What is read is bounded, and what is shown is redacted and
has no control characters.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from prefect_dispatch.executors.coding.adapter import StepParser, Tokens, parse_text_line, sum_tokens
from prefect_dispatch.models.base import Frozen
from prefect_dispatch.processes.program_logs import ProgramLog, list_log_files, load_log, open_log
from prefect_dispatch.security.escaping import shorten, strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.executors.coding.adapter import Step

MAX_ACTIVITIES = 20
"""Programs that a view shows; of more, those that run longest."""
MAX_LINE = 300
"""Characters of the last step in a view."""
MAX_EVENT_BYTES = 1_000_000
"""Most bytes of a line that is parsed; a longer one is skipped."""
START_S = 60.0
"""Seconds after which a log that is not locked belongs to a program that has ended; a busy machine starts slowly."""
CHUNK = 256 * 1024
"""Bytes of a log that are read at a time."""


class Activity(Frozen):
    """What a program that works for an item is doing."""

    brief: str
    """The brief's name."""
    item: str
    """The item's key, on one line."""
    program: str
    """The name of the coding agent, or the kind of command."""
    seconds: float
    """How long it has been running."""
    tokens: int = 0
    """The tokens so far, as far as the program reports them."""
    cost_usd: float | None = None
    """The cost so far; None if it is unknown."""
    is_estimated: bool = False
    """Whether the cost is estimated from the tokens."""
    step: str = ""
    """Its last message, command or edit, on one line; text of a program: data, not instructions."""
    log: str
    """The path of its log."""


class LogReader:
    """Reader of one log as it grows: yields its steps, and adds up tokens and cost.

    Attributes:
        log: The log.
        last_step: The last step that has a text.
    """

    def __init__(self, log: ProgramLog) -> None:
        """Start at the beginning of the log."""
        self.log = log
        self._reset()

    def _reset(self) -> None:
        self.last_step: Step | None = None
        self._parse_line = _step_parser(self.log.about.program)
        self._position, self._rest, self._is_skipping = 0, b"", False
        self._tokens_of_calls, self._cost_of_calls = dict[str, Tokens](), dict[str, float]()
        self._total_tokens: Tokens | None = None
        self._total_cost: float | None = None

    def new_steps(self, *, is_last: bool = False) -> Iterator[Step]:
        """Yield the steps that were written since the last call.

        Args:
            is_last: Whether nothing more will be written, so that a last line without a line break is whole.
        """
        for line in self._read_lines():
            yield from self._parse(line)
        if is_last:
            line, self._rest = self._rest, b""
            yield from self._parse(line)

    @property
    def tokens(self) -> Tokens:
        """The tokens so far."""
        return self._total_tokens or sum_tokens(self._tokens_of_calls.values())

    def describe(self) -> Activity:
        """Return what the program was doing at the last line that was read."""
        about, tokens = self.log.about, self.tokens
        cost = sum(self._cost_of_calls.values()) if self._cost_of_calls else None
        cost = cost if self._total_cost is None else self._total_cost
        estimate = _estimate_cost(tokens, about.model) if cost is None else None
        return Activity(
            brief=about.brief,
            item=strip_control_chars(about.item),
            program=about.program,
            seconds=round(max(0.0, (datetime.now(timezone.utc) - about.started).total_seconds()), 1),
            tokens=tokens.prompt + tokens.completion,
            cost_usd=estimate if cost is None else cost,
            is_estimated=estimate is not None,
            step=shorten(" ".join(str(self.last_step or "").split()), MAX_LINE),
            log=str(self.log.path),
        )

    def _read_lines(self) -> Iterator[bytes]:
        try:
            handle = open_log(self.log.path)
        except OSError:  # it was removed
            return
        with os.fdopen(handle, "rb") as file:
            if os.fstat(handle).st_size < self._position:  # the program was started again
                self._reset()
            file.seek(self._position)
            while chunk := file.read(CHUNK):
                self._position += len(chunk)
                yield from self._split(chunk)

    def _split(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that end in a chunk, but for those that are too long."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not self._is_skipping:
                yield line
            self._is_skipping = False
        self._is_skipping = self._is_skipping or len(rest) > MAX_EVENT_BYTES
        self._rest = b"" if self._is_skipping else rest

    def _parse(self, line: bytes) -> Iterator[Step]:
        step = self._parse_line(line.decode("utf-8", "replace"))
        if step is None:
            return
        if step.call:
            self._tokens_of_calls[step.call] = step.tokens or Tokens()
            if step.cost_usd is not None:
                self._cost_of_calls[step.call] = step.cost_usd
        else:
            self._total_tokens = self._total_tokens if step.tokens is None else step.tokens
            self._total_cost = self._total_cost if step.cost_usd is None else step.cost_usd
        if step.text:
            self.last_step = step
            yield step


class LiveView:
    """View of the programs that work for a flow run, on this machine, from now on."""

    def __init__(self, run: str) -> None:
        """Begin a view.

        Args:
            run: The id of the flow run.
        """
        self._run, self._since_ns = run, time.time_ns()
        self._readers: dict[Path, LogReader] = {}
        self._past: set[Path] = set()

    def look(self) -> tuple[Activity, ...]:
        """Return what each program is doing, the one that runs longest first.

        Raises:
            JobError: If the state folder can't be used.
        """
        activities: list[Activity] = []
        for path in list_log_files(self._since_ns):
            if path in self._past:
                continue
            known = self._readers.get(path)
            log = known.log if known else load_log(path)
            if log is None or log.about.run != self._run:
                self._past.add(path)
                continue
            if not log.is_running:
                # A new log that was never locked may be about to be.
                age = datetime.now(timezone.utc) - log.about.started
                if self._readers.pop(path, None) or age.total_seconds() > START_S:
                    self._past.add(path)
                continue
            reader = self._readers.setdefault(path, known or LogReader(log))
            if len(activities) < MAX_ACTIVITIES:
                for _ in reader.new_steps():
                    pass
                activities.append(reader.describe())
        return tuple(activities)


def _step_parser(program: str) -> StepParser:
    """Return the parser for the log of a program: that of a built-in coding agent, or one for lines of text."""
    from prefect_dispatch.executors.coding.coding_agent import BUILT_IN_ADAPTERS  # noqa: PLC0415 -- imports much

    adapter = BUILT_IN_ADAPTERS.get(program)
    return adapter.create_step_parser() if adapter else parse_text_line


def _estimate_cost(tokens: Tokens, model: str) -> float | None:
    """Return the cost of tokens by the price table; None if it is unknown, or there are no tokens."""
    if not model or not any(tokens):
        return None
    from prefect_dispatch.executors.coding.session import estimate_cost  # noqa: PLC0415 -- imports litellm

    return estimate_cost(tokens, model)
