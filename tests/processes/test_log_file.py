"""The log of a program: whole lines, no secret, however it is cut, and an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dispatch.processes import runner
from prefect_dispatch.processes.runner import MAX_PENDING_BYTES, CapturedOutput, CompletedProgram, LogFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECRET = "correct-horse-battery"  # noqa: S105 -- nobody's
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA\n" * 40 + "-----END RSA PRIVATE KEY-----\n"


def ran(stdout: bytes = b"", stderr: bytes = b"") -> CompletedProgram:
    """Return what came of a program that printed something."""
    return CompletedProgram(
        0, None, CapturedOutput(stdout, b"", len(stdout)), CapturedOutput(stderr, b"", len(stderr)), 0.0
    )


def written(path: Path, chunks: Sequence[tuple[str, bytes]]) -> str:
    """Return what a log holds after some chunks."""
    log = LogFile(path)
    whole = {"stdout": b"", "stderr": b""}
    for stream, chunk in chunks:
        log.write(stream, chunk)
        whole[stream] += chunk
    log.finish(ran(**whole))
    log.close()
    return path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with a secret in it."""
    monkeypatch.setenv("DEPLOY_TOKEN", SECRET)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.booleans())
def test_however_it_comes_no_secret_is_in_it(tmp_path: Path, cuts: list[int], several: bool) -> None:  # noqa: FBT001 -- drawn
    """Cut anywhere, of two streams at once: secrets are hidden, and all the rest is there."""
    text = f"begin {SECRET} go on\n{KEY}é {SECRET}\nend".encode()
    chunks: list[tuple[str, bytes]] = []
    place = 0
    for number, cut in enumerate(cuts):
        chunks.append(("stdout", text[place : place + cut]))
        place += cut
        if several:
            chunks.append(("stderr", f"{number} {SECRET}\n".encode()))
    chunks.append(("stdout", text[place:]))
    log = written(tmp_path / "log", chunks)
    assert "horse" not in log
    assert "MIIEpA" not in log
    lines = log.splitlines()
    assert [line for line in lines if not line[:1].isdecimal()] == ["begin *** go on", "***", "é ***", "end"]
    assert sum(line.endswith(" ***") for line in lines if line[:1].isdecimal()) == len(cuts) * several


def test_a_line_without_an_end_is_cut_where_no_secret_is(tmp_path: Path) -> None:
    """What waits for its end is bounded."""
    words = b"word " * (MAX_PENDING_BYTES // 5 + 10)
    log = LogFile(tmp_path / "log")
    log.write("stdout", words + SECRET.encode())
    assert (tmp_path / "log").read_bytes() == words
    log.write("stdout", b" x" * MAX_PENDING_BYTES)
    log.close()
    assert "horse" not in (tmp_path / "log").read_text()


def test_a_key_without_an_end_waits(tmp_path: Path) -> None:
    """Its lines are whole, and still nobody's to read."""
    log = LogFile(tmp_path / "log")
    log.write("stderr", b"a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n")
    assert (tmp_path / "log").read_text() == "a\n"
    log.write("stderr", b"-----END RSA PRIVATE KEY-----\nb\n")
    assert (tmp_path / "log").read_text() == "a\n***\nb\n"
    log.close()


def test_a_full_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends follow, and how much is missing."""
    monkeypatch.setattr(runner, "MAX_LOG_BYTES", 1000)
    log = written(tmp_path / "log", [("stdout", b"line\n" * 200), ("stdout", b"more\n" * 10), ("stderr", b"why\n")])
    assert log.startswith("line\n" * 200 + "\n… 54 bytes left out, as a log holds 1,000. How the streams end …\n")
    assert log.endswith("more\n\nwhy\n")


def test_what_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    """Bytes that mean nothing don't end it."""
    assert written(tmp_path / "log", [("stdout", b"a\xff\n"), ("stderr", b"\x80")]) == "a\ufffd\n\ufffd"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever put it there means something else."""
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        LogFile(tmp_path / "log")
