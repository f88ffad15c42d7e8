"""Compare the answers of the licence job with known facts.

Run:
    python examples/licenses/score.py report/report.json

Two things are known. ScanCode put each licence into a family. And what the OSI approved may be used
commercially (rule 6 of its definition), so for those licences `commercial_use` must be true. What
has no answer counts as wrong. A question is worth asking a model only where it beats the base rate:
what always giving the commonest answer would score.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

FACTS = Path(__file__).parent / "facts.csv"


class Score(NamedTuple):
    """How one question was answered."""

    question: str
    known: int
    """How many texts the fact is known for."""
    answered: int
    correct: int
    base: int
    """How many the commonest fact would get right."""


def scores(report: Path, facts: Path = FACTS) -> list[Score]:
    """Return the score of each question, over the licences that the report's ledger names.

    Args:
        report: A report.json of the job.
        facts: The known facts: a CSV file with `id`, `family` and `osi_approved`.
    """
    said = json.loads(report.read_text(encoding="utf-8"))
    answers = {Path(entry["item"]).name: entry["value"] for entry in (said["value"] or {"answers": ()})["answers"]}
    asked = {Path(row["item"]).name for row in said["ledger"]}
    with facts.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if f"{row['id']}.txt" in asked]
    known: dict[str, dict[str, object]] = {
        "family": {f"{row['id']}.txt": row["family"] for row in rows},
        "commercial_use": {f"{row['id']}.txt": True for row in rows if row["osi_approved"] == "true"},
    }
    return [
        Score(
            question=question,
            known=len(truth),
            answered=sum(name in answers for name in truth),
            correct=sum(name in answers and answers[name][question] == fact for name, fact in truth.items()),
            base=max(Counter(truth.values()).values(), default=0),
        )
        for question, truth in known.items()
    ]


def table(found: list[Score]) -> str:
    """Return the scores as a table of text."""
    lines = [f"{'question':<16}{'known':>7}{'answered':>10}{'correct':>9}{'accuracy':>10}{'base rate':>11}"]
    for score in found:
        accuracy, base = (f"{part / score.known:.0%}" if score.known else "-" for part in (score.correct, score.base))
        lines.append(
            f"{score.question:<16}{score.known:>7}{score.answered:>10}{score.correct:>9}{accuracy:>10}{base:>11}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 -- the script and one argument
        sys.exit("usage: python examples/licenses/score.py REPORT.json")
    print(table(scores(Path(sys.argv[1]))))
