"""The command `logs`: what programs that work for runs on this machine are doing, and their logs as readable steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.cli.commands import COMPLETE, INTERRUPTED
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.live_view import LogReader
from prefect_dispatch.processes.program_logs import list_logs
from prefect_dispatch.reporting.progress import format_activity
from prefect_dispatch.security.escaping import join_names, shorten, strip_control_chars

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from prefect_dispatch.processes.program_logs import LogDescription, ProgramLog

POLL_S = 0.5
"""Seconds between two looks at a log that is followed."""
MAX_ENDED = 20
"""Programs that have ended, of which a list shows the latest."""
MAX_NAMES = 10
"""Names that an error lists."""
MAX_NAME = 100
"""Characters of a name in a list."""
RUN_ID = 8
"""Characters of a run's id in a list."""


def show_logs(arguments: argparse.Namespace) -> int:
    """List the programs that run and those that have ended, or print the log of one of them.

    Raises:
        JobError: If there is no log of the run or the item, or the state folder can't be used.
    """
    logs = [*list_logs()]
    if arguments.run is not None:
        logs = _filter_run(logs, arguments.run)
    if arguments.item is not None:
        logs = _filter(logs, arguments.item, _is_item, lambda about: about.ref)
    elif not arguments.follow:
        print("\n".join(_list_programs(logs)))
        return COMPLETE
    try:
        _print_log(_choose(logs), follow=arguments.follow)
    except KeyboardInterrupt:  # the way to end it
        return INTERRUPTED
    return COMPLETE


def _filter_run(logs: list[ProgramLog], run: str) -> list[ProgramLog]:
    """Return the logs of a run, which is named by the beginning of its id, by a brief, or by its job file."""
    briefs = {run}
    if (file := Path(run)).is_file():
        from prefect_dispatch.flows.job_file import load_job  # noqa: PLC0415 -- imports every model

        job = load_job(file)
        briefs = {brief.name for brief in job.spec(file.resolve().parent).briefs}
    return _filter(
        logs,
        run,
        lambda about, name: about.brief in briefs or about.run.startswith(name),
        lambda about: f"{about.run[:RUN_ID] or '-'} ({about.brief})",
    )


def _is_item(about: LogDescription, name: str) -> bool:
    return name in {about.item, about.brief, about.ref}


def _filter(
    logs: list[ProgramLog],
    name: str,
    is_meant: Callable[[LogDescription, str], bool],
    describe: Callable[[LogDescription], str],
) -> list[ProgramLog]:
    """Return the logs that a name means.

    Raises:
        JobError: If there is none; the message lists the latest names that have one.
    """
    if found := [log for log in logs if is_meant(log.about, name)]:
        return found
    names = dict.fromkeys(_shorten(describe(log.about)) for log in reversed(logs))
    known = f"there are logs of {join_names(names, MAX_NAMES)}" if names else "there are no logs"
    raise JobError(f"No program has a log for {_shorten(name)!r}; {known}.")


def _choose(logs: Sequence[ProgramLog]) -> ProgramLog:
    """Return the latest log of a program that runs, else the latest one.

    Raises:
        JobError: If there is none.
    """
    if not logs:
        raise JobError("There are no logs: no program has worked for a run on this machine within the last week.")
    return next((log for log in reversed(logs) if log.is_running), logs[-1])


def _list_programs(logs: Sequence[ProgramLog]) -> Iterator[str]:
    """Yield the lines of the list: the programs that run with what they do, then the latest that have ended."""
    running = [log for log in logs if log.is_running]
    for log in running:
        reader = LogReader(log)
        for _ in reader.new_steps():
            pass
        yield f"running  {_heading(log)}{strip_control_chars(format_activity(reader.describe()))}"
    paths = {log.path for log in running}
    ended = [log for log in logs if log.path not in paths]
    for log in ended[-MAX_ENDED:]:
        yield f"ended    {_heading(log)}{_shorten(log.about.ref)}, started {log.about.started:%Y-%m-%d %H:%M} UTC"
    if len(ended) > MAX_ENDED:
        yield f"and {len(ended) - MAX_ENDED} older ones"
    if not logs:
        yield "No program has worked for a run on this machine within the last week."


def _heading(log: ProgramLog) -> str:
    return f"{_shorten(log.about.run[:RUN_ID]) or '-':<{RUN_ID}}  {_shorten(log.about.program)}  "


def _print_log(log: ProgramLog, *, follow: bool) -> None:
    """Print a log as steps; follow it until its program ends, if that is wanted."""
    reader = LogReader(log)
    print(f"{log.about.ref}, {_shorten(log.about.program)}, log: {log.path}", flush=True)
    while True:
        # Asked before the log is read, so that nothing is missed which was written at the end.
        goes_on = follow and log.is_running
        for step in reader.new_steps(is_last=not goes_on):
            print(step, flush=True)
        if not goes_on:
            return
        time.sleep(POLL_S)


def _shorten(text: str) -> str:
    return shorten(strip_control_chars(text), MAX_NAME)
