"""Measures the merge of many records: time with the audit, memory, precision and recall of the record linkage.

Run `python -m benchmarks.merge_records [SIZE … | --sets] [--model] [--data FOLDER]`.

**Generated people** (no option): each size is measured in a separate process, by similar names or, with `--model`, by
`match: {model: learned}`.

**Public sets** (`--sets`): records spelt differently, with labelled pairs, from `../shared/data/merges/entities`: F1 of
the labelled pairs in one merged record; the same if a reviewer confirms the proposals that are true, or all of them;
the number of proposals, and how many of those that are labelled are true.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.people import create_people
from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SETS = {
    "structured-dblp-acm": ("title",),
    "dirty-dblp-acm": ("title",),
    "structured-walmart-amazon": ("title",),
    "dirty-walmart-amazon": ("title",),
    "structured-beer": ("Beer_Name",),
    "febrl1": ("given_name", "surname"),
}
"""Names of the public sets, and the fields that identify a record."""
FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "merges" / "entities"
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
PLOT = Path(__file__).with_suffix(".png")

Pair = tuple[int, int]


class EntitySet(NamedTuple):
    """Records of a public set."""

    records: list[dict[str, str]]
    same: set[Pair]
    """The pairs that are the same."""
    labelled: set[Pair] | None
    """The pairs of which that is known; None: all."""


def read_set(path: Path) -> EntitySet:
    """Return a public set: two lists of records with labelled pairs, or a table whose `rec_id` names the entity."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        if path.name.endswith(".json.gz"):
            data: Any = json.load(file)
            shift = len(data["left"])
            labels = {(left, shift + right): label for left, right, label in data["pairs"]}
            same = {pair for pair, label in labels.items() if label}
            return EntitySet([*data["left"], *data["right"]], same, set(labels))
        rows = [
            {name: value.strip() for name, value in row.items()} for row in csv.DictReader(file, skipinitialspace=True)
        ]
    entities: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        entities[row.pop("rec_id").split("-")[1]].append(at)
    return EntitySet(rows, _pairs(entities.values()), None)


def score_set(name: str, path: Path, match: Any) -> dict[str, Any]:  # noqa: ANN401 -- options of an integrator
    """Merge a public set, and return how well."""
    data = read_set(path)
    outcomes = [
        Outcome(brief="set", item=str(at), status="succeeded", value={**record})
        for at, record in enumerate(data.records)
    ]
    integrator = MergeRecords.model_validate({"identity": SETS[name], "match": match})
    start = time.perf_counter()
    merge = integrator.merge([], outcomes)
    if violations := audit(merge, outcomes, [], integrator):
        raise SystemExit("\n".join(map(str, violations[:10])))
    seconds = time.perf_counter() - start
    groups = integrator.scopes(outcomes).groups()
    merged = _pairs(sorted({int(part.source.item) for part in group.parts}) for group in groups)
    proposed = {
        _pair(int(left.item), int(right.item))
        for each in merge.proposals
        for left in each.left_sources
        for right in each.right_sources
        if left != right
    }
    judged = proposed if data.labelled is None else proposed & data.labelled
    return {
        "set": name,
        "records": len(data.records),
        "F1": _f1(merged, data),
        "true confirmed": _f1(merged | (proposed & data.same), data),
        "all confirmed": _f1(merged | proposed, data),
        "proposals": len(merge.proposals),
        "judged": len(judged),
        "true": len(judged & data.same),
        "seconds": round(seconds, 1),
    }


def _f1(found: set[Pair], data: EntitySet) -> float:
    """Return the F1 score of pairs in per cent, among those that are labelled."""
    known = found if data.labelled is None else found & data.labelled
    return round(200 * len(known & data.same) / max(1, len(known) + len(data.same)), 1)


def print_sets(folder: Path) -> None:
    """Print the scores of the public sets, for each way of matching."""
    if not folder.is_dir():
        print(f"The public sets are not in {folder}; --data names another folder.")
        return
    for title, match in (
        ("equal identity", None),
        ("match: {}", {}),
        ("match: {model: learned}", {"model": "learned"}),
    ):
        rows = [score_set(name, folder / path.name, match) for name in SETS for path in folder.glob(f"{name}.*")]
        print(f"\n{title}\n\n|", " | ".join(rows[0]), "|\n|", "---|" * len(rows[0]))
        for row in rows:
            print("|", " | ".join(map(str, row.values())), "|")
        means = {key: round(math.fsum(row[key] for row in rows) / len(rows), 1) for key in ("F1", "true confirmed")}
        print(
            f"Mean: {means}; true proposals: {sum(r['true'] for r in rows)} of {sum(r['judged'] for r in rows)} judged."
        )


def measure(size: int, match: Any) -> dict[str, Any]:  # noqa: ANN401 -- options of an integrator
    """Merge a number of records; return time, memory, precision and recall."""
    made = create_people(size)
    outcomes = [
        Outcome(
            brief="people",
            item=f"page {at}",
            status="succeeded",
            value={"name": each.name, "city": each.city, "pages": [at], "year": 1950 + each.entity % 50},
        )
        for at, each in enumerate(made)
    ]
    integrator = MergeRecords.model_validate(
        {"identity": ["name", "city"], "rules": {"pages": "union"}, "match": match}
    )
    start, cpu = time.perf_counter(), time.process_time()
    merge = integrator.merge([], outcomes)
    merged = time.perf_counter()
    violations = audit(merge, outcomes, [], integrator)
    audited, cpu = time.perf_counter(), time.process_time() - cpu
    if violations:
        raise SystemExit("\n".join(map(str, violations[:10])))
    value: Any = merge.value
    fused = _pairs(record["pages"] for record in value["records"])
    places = {f"page {at}": at for at in range(size)}
    proposed = {
        _pair(places[left.item], places[right.item])
        for each in merge.proposals
        for left in each.left_sources
        for right in each.right_sources
    }
    entities: dict[int, list[int]] = defaultdict(list)
    for at, each in enumerate(made):
        entities[each.entity].append(at)
    true = _pairs(entities.values())
    found, noise = true & fused, [max(made[a].noise, made[b].noise) for a, b in sorted(true)]
    seen = Counter(max(made[a].noise, made[b].noise) for a, b in found)
    return {
        "records": size,
        "seconds": round(audited - start, 2),
        "cpu": round(cpu, 2),
        "merge": round(merged - start, 2),
        "audit": round(audited - merged, 2),
        "megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "precision": round(len(found) / max(1, len(fused)), 4),
        "recall": round(len(found) / max(1, len(true)), 4),
        "proposed": len(merge.proposals),
        "recall_with_proposals": round(len(true & (fused | proposed)) / max(1, len(true)), 4),
        "recall_by_noise": {name: round(seen[name] / count, 3) for name, count in sorted(Counter(noise).items())},
    }


def exponent(rows: Sequence[dict[str, Any]], clock: str = "cpu") -> float:
    """Return the exponent with which a time grows with the number of records: the slope of a log-log regression.

    Example:
        >>> exponent([{"records": 10, "cpu": 1}, {"records": 100, "cpu": 100}])
        2.0
    """
    points = [(math.log(row["records"]), math.log(max(row[clock], 1e-3))) for row in rows]
    x, y = (math.fsum(axis) / len(points) for axis in zip(*points, strict=True))
    return round(math.fsum((a - x) * (b - y) for a, b in points) / math.fsum((a - x) ** 2 for a, _ in points), 3)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot processor seconds over records, with n log n through the first point."""
    from matplotlib.figure import Figure  # noqa: PLC0415 -- only what draws needs it

    sizes = [row["records"] for row in rows]
    scale = rows[0]["cpu"] / (sizes[0] * math.log(sizes[0]))
    figure: Any = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.loglog(sizes, [row["cpu"] for row in rows], "o-", label=f"merge and audit (n^{exponent(rows)})")
    axes.loglog(sizes, [scale * size * math.log(size) for size in sizes], ":", label="n log n")
    axes.set(xlabel="records", ylabel="seconds of processor time", title="MergeRecords with matching")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure each size in a separate process, print a table and plot it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="how many records")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", action="store_true", help="let a model learn from the records")
    parser.add_argument("--sets", action="store_true", help="measure the public sets instead")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the public sets")
    arguments = parser.parse_args()
    if arguments.sets:
        print_sets(arguments.data)
        return
    if arguments.one:
        print(json.dumps(measure(arguments.one, {"model": "learned", "fields": ["year"]} if arguments.model else {})))
        return
    rows: list[dict[str, Any]] = []
    names = (
        "seconds",
        "cpu",
        "merge",
        "audit",
        "megabytes",
        "precision",
        "recall",
        "recall_with_proposals",
        "proposed",
    )
    print("| records |", " | ".join(names), "|\n|", "---|" * (len(names) + 1))
    for size in arguments.sizes:
        command = [sys.executable, "-m", "benchmarks.merge_records", "--one", str(size)]
        command += ["--model"] if arguments.model else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 -- this file
        rows.append(json.loads(done.stdout))
        print(f"| {size:,} |", " | ".join(f"{rows[-1][name]:,}" for name in names), "|", flush=True)
    print("\nRecall by what was done to the name:", json.dumps(rows[-1]["recall_by_noise"]))
    if len(rows) > 1:
        print(f"Processor time grows as n^{exponent(rows)}, seconds on the clock as n^{exponent(rows, 'seconds')}.")
        if not arguments.model:
            draw(rows, PLOT)


def _pairs(groups: Iterable[Sequence[int]]) -> set[Pair]:
    return {_pair(*pair) for group in groups for pair in combinations(group, 2)}


def _pair(one: int, other: int) -> Pair:
    return (min(one, other), max(one, other))


if __name__ == "__main__":
    main()
