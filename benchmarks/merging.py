"""Prints what merge, audit and report cost per answer, for each integrator, in processor time.

Run `python -m benchmarks.merging [ANSWERS] [--integrators NAME …] [--repeat N] [--profile FILE]`. No model is asked and
no server is used: the answers are made here, merged and audited as a run does it, and written as a report to a folder.
Of several repetitions the least of each part is printed. With `--profile`, one more repetition is profiled, and its
figures are written to a file for `pstats`.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import sys
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

if not __package__:  # run as a file: `python benchmarks/merging.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.people import create_people
from benchmarks.phases import Cost, PartTimer
from prefect_dispatch import Brief, Collate, Consensus, Item, MergeRecords, Tournament
from prefect_dispatch.flows.publish import write_files, write_page
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.integrators.run_merge import prepare_integrator
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.outcome import Attempt, Outcome, Usage
from prefect_dispatch.models.report import Report, Spending
from prefect_dispatch.reporting.output_folder import Output
from prefect_dispatch.tasks.integrate import integrate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from benchmarks.people import Person
    from prefect_dispatch.integrators.base import AnyMerger

_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "city": {"type": "string"},
        "family": {"enum": ["permissive", "copyleft"]},
        "year": {"type": "integer"},
        "duties": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "family", "year", "duties"],
    "additionalProperties": False,
}
_WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
_PARTS = {"merge": "tasks.integrate:run_integrator", "audit": "tasks.integrate:audit"}


class Case(NamedTuple):
    """An integrator, and how many briefs give the answers that it merges."""

    integrator: AnyMerger
    briefs: int = 1


def score(value: JsonValue, key: str) -> float:
    """Return a score of a variant; the metric of a tournament."""
    return len(str(value)) + len(key) / 10


CASES = {
    "collate": Case(Collate()),
    "merge_records": Case(MergeRecords(identity=("name", "city"))),
    "match": Case(MergeRecords(identity=("name", "city"), match=Matching())),
    "consensus": Case(Consensus(), briefs=3),
    "tournament": Case(Tournament(metric="benchmarks.merging:score"), briefs=5),
}


def create_answers(count: int, briefs: Sequence[Brief]) -> tuple[list[Item], list[Outcome]]:
    """Return items, and the answers of all briefs to them."""
    people = create_people(count)
    numbers = range(count // len(briefs))
    items = [
        Item(key=f"page {at}", value=f"Page {at}: {people[at].name} lives in {people[at].city}. " * 10)
        for at in numbers
    ]
    usage = Usage(requests=1, prompt_tokens=300, completion_tokens=60, cost_usd=0.0001)
    attempts = (Attempt(model="openai/test", served_model="test", usage=usage, started=_WHEN, seconds=1.0),)
    outcomes = [
        Outcome(
            brief=brief.name,
            item=f"page {at}",
            status="succeeded",
            origin="asked",
            model="openai/test",
            attempts=attempts,
            fingerprint=f"{at:032x}{number:032x}",
            value=_answer(people[at * len(briefs)], people[at * len(briefs) + number * (at % 7 == 0)], at),
        )
        for at in numbers
        for number, brief in enumerate(briefs)
    ]
    return items, sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)


def _answer(named: Person, placed: Person, number: int) -> dict[str, JsonValue]:
    """Return an answer with the name of one person and the city of another one."""
    return {
        "name": named.name,
        "city": placed.city,
        "family": "permissive" if number % 3 else "copyleft",
        "year": 1950 + number % 60,
        "duties": ["keep notices", *["state changes"] * (number % 2)],
    }


def measure_case(case: Case, count: int, timer: PartTimer) -> None:
    """Merge and audit answers, and write their report twice, as a second run finds the files of the first."""
    briefs = [Brief(name=f"page-{number}", instructions="Who?", output=_SCHEMA) for number in range(case.briefs)]
    items, outcomes = create_answers(count, briefs)
    integrator = prepare_integrator(case.integrator, briefs, items, Path.cwd())
    with timer.measure("copies and checks"):
        merge = integrate.fn(briefs, items, outcomes, integrator)
    report = Report(
        status="complete",
        message="All answered.",
        value=merge.value,
        ledger=merge.ledger,
        fields=merge.fields,
        rules=merge.rules,
        proposals=merge.proposals,
        tables=merge.tables,
        usage=Spending.of(outcomes),
        run={"started": _WHEN.isoformat(), "limits": {"concurrency": 500}},
        outcomes=tuple(outcomes),
    )
    with TemporaryDirectory(prefix="merging-") as folder:
        for name in ("files", "files again"):
            with timer.measure(name):
                write_files(report, Output(Path(folder)))
        with timer.measure("page"):
            problem = write_page(report, Output(Path(folder)), briefs, items)
    if problem:
        raise SystemExit(problem)


def main() -> None:
    """Measure the integrators and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="?", type=int, default=10_000)
    parser.add_argument("--integrators", nargs="+", choices=CASES, default=[*CASES], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--profile", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    timer = PartTimer()
    for name, place in _PARTS.items():
        timer.wrap(name, place)
    gc.freeze()  # as a run does
    for name in arguments.integrators:
        runs: list[dict[str, Cost]] = []
        for _ in range(arguments.repeat):
            timer.parts = {}
            measure_case(CASES[name], arguments.answers, timer)
            runs.append(timer.parts)
        least = {part: 1000 * min(run[part].cpu_s for run in runs) / arguments.answers for part in runs[0]}
        least["in all"] = sum(least.values())
        print(name, ", ".join(f"{part} {cost:.3f}" for part, cost in least.items()), "ms an answer", flush=True)
        if arguments.profile:
            profiler = cProfile.Profile()
            profiler.runcall(measure_case, CASES[name], arguments.answers, timer)
            profiler.dump_stats(arguments.profile)


if __name__ == "__main__":
    main()
