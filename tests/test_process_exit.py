"""The end of the command line's process: within its time, whatever still waits."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.cli import commands
from prefect_dispatch.cli.commands import ExitGuard, interruptible
from prefect_dispatch.reporting.progress import on_interrupted
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def codes() -> list[int]:
    """The exit statuses with which a process would have ended."""
    return []


@pytest.fixture
def guard(codes: list[int]) -> ExitGuard:
    """A guard that ends nothing."""
    return ExitGuard(codes.append)


def test_the_earliest_time_counts(guard: ExitGuard, codes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """With its status, and what is to be said."""
    guard.arm(600, 1, "late")
    guard.arm(0.3, 0, "The API did not take it.", summary="3 of 3 answered")
    guard.arm(300, 2, "later")
    wait_until(lambda: bool(codes), "the process has ended")
    assert codes == [0]
    assert capsys.readouterr() == ("3 of 3 answered\n", "The API did not take it.\n")


def test_a_command_that_has_ended_says_nothing_more(
    guard: ExitGuard, codes: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of its process is ended with its own status."""
    monkeypatch.setattr(commands, "EXIT_S", 0.1)
    guard.arm(600, 1, "late", summary="early")
    guard.finish(3)
    wait_until(lambda: bool(codes), "the process has ended")
    assert (codes, capsys.readouterr()) == ([3], ("", ""))


def test_the_cursor_of_a_terminal_is_shown_again(
    guard: ExitGuard, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A display that is ended with the process has hidden it; no server was started, so none is ended."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "__stderr__", terminal)
    monkeypatch.delitem(sys.modules, "prefect_dispatch.processes.ephemeral_server", raising=False)
    guard.arm(0.1, 1)
    wait_until(lambda: bool(codes), "the process has ended")
    assert terminal.getvalue() == commands.SHOW_CURSOR


def test_the_process_of_a_caller_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits for it."""
    monkeypatch.setattr(commands, "EXIT_S", 0.0)
    before = threading.active_count()
    ExitGuard(None).finish(0)
    assert threading.active_count() == before


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little time to end."""
    monkeypatch.setattr(commands, "INTERRUPTED_S", 0.1)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("short")
def test_ctrl_c_ends_the_process_soon(guard: ExitGuard, codes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Even if what it interrupts goes on for ever."""
    with interruptible(guard, 0.1, 130):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: bool(codes), "the process has ended")
    assert codes == [130]
    assert capsys.readouterr().err == f"{commands.INTERRUPTED_MESSAGE}\n"


@pytest.mark.usefixtures("short")
def test_so_does_a_run_that_was_interrupted_otherwise(guard: ExitGuard, codes: list[int]) -> None:
    """By SIGTERM, or in Prefect's UI; the run says so when its work has ended."""

    def elsewhere() -> None:
        with interruptible(guard, 600, 130):
            notify = on_interrupted.get()
            assert notify
            notify()
            wait_until(lambda: bool(codes), "the process has ended")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert codes == [130]
