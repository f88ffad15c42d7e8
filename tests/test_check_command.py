"""`prefect-dispatch check`: files in, a verdict for each sentence out, and an exit status for scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.cli.commands import COMPLETE, GAPS, UNUSABLE, main
from tests.integrators.said import miss, say

if TYPE_CHECKING:
    from pathlib import Path

BANK = "The client paid 1,234,567 euros in the fourth quarter."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sources, of which the second comes first by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_text(BANK, encoding="utf-8")
    (tmp_path / "a.json").write_text('{"name": "Bosch", "weeks": 5}', encoding="utf-8")
    return tmp_path


def test_a_clean_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sources are numbered as they are given; nothing is doubtful, so the status is 0."""
    (folder / "text.md").write_text("The client paid in Q4 [1]. Bosch takes 5 weeks [2].", encoding="utf-8")
    assert main(["check", "text.md", "b.txt", "a.json"]) == COMPLETE
    assert capsys.readouterr().out.splitlines() == [
        "supported     The client paid in Q4 [1].",
        "supported     Bosch takes 5 weeks [2].",
        "0 doubts in 2 sentences, compared with 2 sources.",
    ]


def test_a_doubtful_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each doubt is below its sentence; control characters of a text never reach the terminal."""
    (folder / "text.md").write_text("The client\x1b paid 9 euros [1].", encoding="utf-8")
    assert main(["check", "text.md", "b.txt", "a.json"]) == GAPS
    out = capsys.readouterr().out
    assert out.splitlines()[1:] == [
        "              - number: '9' doesn't stand in [1], which the sentence cites.",
        "source        No sentence cites [2] (file/2 a.json).",
        "2 doubts in 1 sentence, compared with 2 sources.",
    ]
    assert "\x1b" not in out
    assert main(["check", "text.md", "b.txt", "--json"]) == GAPS
    found = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in found["sentences"]] == ["doubtful"]
    assert found["sentences"][0]["reasons"][0]["kind"] == "number"


def test_the_answers_of_a_report_are_sources(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report, its folder and its outcomes are the same: each answer, numbered as in the report."""
    report = folder / "report"
    report.mkdir()
    outcomes = [say("b", BANK), say("a", "Bosch delivers."), miss("c")]
    lines = "".join(f"{each.model_dump_json()}\n" for each in outcomes)
    (report / "outcomes.jsonl").write_text(lines, encoding="utf-8")
    (folder / "text.md").write_text("Bosch delivers [1]. The client paid [2].", encoding="utf-8")
    for source in ("report", "report/report.json", "report/outcomes.jsonl"):
        assert main(["check", "text.md", source]) == COMPLETE
    capsys.readouterr()
    assert main(["check", "text.md", "report", "b.txt"]) == UNUSABLE
    assert "has to be the only source" in capsys.readouterr().err
    (report / "outcomes.jsonl").write_text(f"{miss('c').model_dump_json()}\n", encoding="utf-8")
    assert main(["check", "text.md", "report"]) == UNUSABLE
    assert "has no answer to compare the text with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.txt", "'missing.txt' can't be read: No such file or directory."),
        (b" \n", "x.txt", "'x.txt' is empty."),
        (b"a\0b", "x.txt", "'x.txt' is not text: it holds NUL bytes."),
        (b"%PDF-1.4\nThe client paid.", "x.txt", "'x.txt' is not text: it is a binary file."),
        (b"\x89PNG\r\n\x1a\x05\xff\xfe\x01\x02", "x.txt", "'x.txt' is not text:"),
        (b"\x01\x02\x03 a", "x.txt", "'x.txt' is not text: it is a binary file."),
        (b"caf\xe9 \x02", "x.txt", "'x.txt' is not text: it is a binary file."),
        (b"{", "x.json", "'x.json' is no JSON:"),
        (b" {}", "x.json", "'x.json' is empty: it holds {}."),
        (b"[ ]", "x.json", "'x.json' is empty: it holds [ ]."),
        (b"a" * 20_000_001, "x.txt", "'x.txt' is too long: 20,000,000 bytes at most."),
        (None, "report.json", "'outcomes.jsonl' can't be read"),
    ],
    ids=[
        "missing",
        "empty",
        "binary",
        "pdf",
        "image",
        "controls",
        "guessed",
        "no-json",
        "object",
        "list",
        "too-long",
        "no-report",
    ],
)
def test_what_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, name: str, message: str
) -> None:
    """The status is 2, and the message names the file."""
    (folder / "text.md").write_text("The client paid [1].", encoding="utf-8")
    if content is not None:
        (folder / name).write_bytes(content)
    assert main(["check", "text.md", name]) == UNUSABLE
    assert message in capsys.readouterr().err
