"""What a command's report files are taken for: never for less than they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import RejectedError, TransientError
from prefect_dispatch.executors import shell
from prefect_dispatch.executors.shell import read_test_run, require_success, stamp_files
from prefect_dispatch.models.brief import Command
from prefect_dispatch.processes.runner import CapturedOutput, CompletedProgram

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.models.test_run import TestRun

GREEN = "<testsuite name='s'><testcase name='a'/></testsuite>"
COMMAND = Command(run="true", report=("**/junit*.xml",))


def run_of(folder: Path, before: shell.FileStamps | None = None) -> TestRun:
    """Return what the reports in a folder say of a command that ended well."""
    nothing = CapturedOutput(head=b"", tail=b"", size=0)
    ran = CompletedProgram(exit=0, signal=None, stopped="", seconds=1.0, stdout=nothing, stderr=nothing)
    return read_test_run(ran, COMMAND, {folder: before or {}}, str(folder), folder / "log")


def test_an_exit_code_that_nobody_has(tmp_path: Path) -> None:
    """Something else in this process waited for the command: whether it passed is not known, and tried again."""
    nothing = CapturedOutput(head=b"", tail=b"", size=0)
    ran = CompletedProgram(exit=None, signal=None, stopped="", seconds=1.0, stdout=nothing, stderr=nothing)
    with pytest.raises(TransientError, match="something else in this process took its exit code") as caught:
        require_success(ran, COMMAND, tmp_path / "log")
    assert caught.value.kind == "lost"


def test_a_report_of_before(tmp_path: Path) -> None:
    """A report that was there before, and that nobody has written since, is none; touched or rewritten it is."""
    old = tmp_path / "junit.xml"
    old.write_text(GREEN, encoding="utf-8")
    before = stamp_files(COMMAND.report, tmp_path)
    assert run_of(tmp_path, before).problems == ("There is no report.",)
    old.unlink()
    old.write_text(GREEN.replace("'a'", "'b'"), encoding="utf-8")
    assert run_of(tmp_path, before).verdict == "passed"


def test_links_are_no_reports(tmp_path: Path) -> None:
    """A link could lead to any file of the machine: none is followed, and one that may be red leaves no result."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "junit.xml").write_text(GREEN, encoding="utf-8")
    room = tmp_path / "room"
    room.mkdir()
    (room / "reports").symlink_to("../elsewhere")
    assert run_of(room).problems == ("There is no report.",)
    (room / "junit.xml").write_text(GREEN, encoding="utf-8")
    (room / "junit-red.xml").symlink_to("../elsewhere/junit.xml")
    with pytest.raises(RejectedError, match=r"The report 'junit-red\.xml' is no plain file") as caught:
        run_of(room)
    assert caught.value.kind == "report"
    assert run_of(room, stamp_files(COMMAND.report, room)).problems == ("There is no report.",)


def test_several_reports(tmp_path: Path) -> None:
    """All files that a glob means are one run: one that is red, cut or empty makes it red."""
    for name, text in {"junit.xml": GREEN, "a/junit-1.xml": GREEN.replace("'a'", "'b'")}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert run_of(tmp_path).verdict == "passed"
    assert run_of(tmp_path).reports == ("a/junit-1.xml", "junit.xml")
    (tmp_path / "junit-2.xml").write_text("", encoding="utf-8")
    assert run_of(tmp_path).verdict == "failed"


def test_reports_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is passed over for its size, as what is in it could be red: then there is no result."""
    monkeypatch.setattr(shell, "MAX_REPORT_BYTES", len(GREEN) + 10)
    (tmp_path / "junit.xml").write_text(GREEN, encoding="utf-8")
    assert run_of(tmp_path).verdict == "passed"
    (tmp_path / "junit-red.xml").write_text(GREEN.replace("/>", "><failure/></testcase>"), encoding="utf-8")
    with pytest.raises(RejectedError, match="more than 62 bytes together") as error:
        run_of(tmp_path)
    assert error.value.kind == "too_large"
