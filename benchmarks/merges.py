"""Measures how good the merges are, and writes docs/merges.md: `python -m benchmarks.merges`.

Five kinds of merges are measured on public data: votes, records, texts, changes of code, and lies that the audit has to
find (these are generated). `--sections` measures some of them; the rows of the others stay as they were. `--others`
also measures crowd-kit's methods (a quarter of an hour), and `--judge MODEL` a model that judges texts. Each row is
stored in `benchmarks/results` with its day; the page is made of these rows. The data are in the folder of `--data`,
and no part of this repository: what is missing there is skipped with a sentence.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import time
from collections import Counter, defaultdict
from itertools import combinations, product
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import consensus, tampering, texts
from benchmarks.figures import NOTHING, table
from benchmarks.peer_environments import LINKERS, MissingError, prepare_interpreter
from benchmarks.results import Results, circumstances
from benchmarks.subprocesses import ROOT, module_command, run
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.merge_branches.apply import NEAR, NEAR_LINES, Branch, RepositoryBase, overlaps_table
from prefect_dispatch.integrators.merge_branches.three_way import list_differences, merge_trees
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.synthesize.check_text import DirectAsker
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.models.outcome import Outcome
from prefect_dispatch.workspaces.git import Git

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.results import Row

FOLDER = ROOT.parent / "shared" / "data" / "merges"
PAGE = ROOT / "docs" / "merges.md"
TEMPLATE = Template(Path(__file__).with_name("merges_page.md").read_text(encoding="utf-8"))
"""The text around the tables."""

# Votes


def measure_votes(results: Results, folder: Path, methods: Mapping[str, Callable[..., consensus.Scores]]) -> None:
    """Store the share of right labels of each method on each set."""
    for name in consensus.SETS:
        votes, truth = consensus.read_set(folder, name)
        for method, score in methods.items():
            right = consensus.share_right(score(votes), truth)
            results.put("merges-votes", {"way": method, "load": name, "right": right, **circumstances()})


# Records


class EntitySet(NamedTuple):
    """A set of records with pairs of which it is known whether they are the same."""

    records: dict[str, dict[str, Any]]
    """The records by their names."""
    labels: dict[tuple[str, str], bool]
    """Whether two records are the same, by their names in order."""
    identity: tuple[str, ...]
    """The fields that name a thing."""


ENTITY_SETS = {
    "DBLP-ACM": ("structured-dblp-acm", ("title",)),
    "DBLP-ACM, dirty": ("dirty-dblp-acm", ("title",)),
    "Walmart-Amazon": ("structured-walmart-amazon", ("title",)),
    "Walmart-Amazon, dirty": ("dirty-walmart-amazon", ("title",)),
    "Beer": ("structured-beer", ("Beer_Name",)),
}
FEBRL = "FEBRL1"
RECORD_WAYS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "equal identity": lambda _: {},
    "`match: {}`": lambda _: {"match": {}},
    "`match` with all other fields": lambda fields: {"match": {"fields": [*fields]}},
    "**`match: {model: learned}`**": lambda _: {"match": {"model": "learned"}},
}
"""The set-ups that are measured: options of `merge_records` by the fields beside the identity."""


def read_entities(folder: Path, name: str) -> EntitySet:
    """Return a set of records."""
    if name == FEBRL:
        with gzip.open(folder / "febrl1.csv.gz", "rt", encoding="utf-8", newline="") as file:
            rows = [{key.strip(): (value or "").strip() for key, value in row.items()} for row in csv.DictReader(file)]
        records = {row.pop("rec_id"): row for row in rows}
        groups: dict[str, list[str]] = defaultdict(list)
        for key in sorted(records):
            groups[key.split("-")[1]].append(key)
        same = {pair for group in groups.values() for pair in combinations(group, 2)}
        return EntitySet(
            records, {pair: pair in same for pair in combinations(sorted(records), 2)}, ("given_name", "surname")
        )
    file_name, identity = ENTITY_SETS[name]
    data: Any = json.loads(gzip.decompress((folder / f"{file_name}.json.gz").read_bytes()))
    records = {f"{side}{at}": row for side in ("left", "right") for at, row in enumerate(data[side])}
    return EntitySet(
        records, {(f"left{one}", f"right{two}"): bool(label) for one, two, label in data["pairs"]}, identity
    )


def measure_record_set(entities: EntitySet, options: Callable[[Sequence[str]], dict[str, Any]]) -> dict[str, float]:
    """Return F1 of the labelled pairs in per cent, without and with proposals that a person confirms or refuses."""
    fields = sorted({name for row in entities.records.values() for name in row} - {*entities.identity})
    # Null is no value, which an empty text of a set means.
    outcomes = [
        Outcome(
            brief="records",
            item=key,
            status="succeeded",
            value={**{name: value or None for name, value in row.items()}, "keys": [key]},
        )
        for key, row in entities.records.items()
    ]
    by = MergeRecords.model_validate({"identity": entities.identity, "rules": {"keys": "union"}, **options(fields)})
    start = time.perf_counter()
    merge = by.merge([], outcomes)
    seconds = time.perf_counter() - start
    value: Any = merge.value
    merged = {pair for record in value["records"] for pair in combinations(sorted(record["keys"]), 2)}
    proposed = {
        (min(one.item, other.item), max(one.item, other.item))
        for each in merge.proposals
        for one, other in product(each.left_sources, each.right_sources)
    }
    labelled = proposed & entities.labels.keys()
    confirmed = {pair for pair in labelled if entities.labels[pair]}
    return {
        "f1": _f1(entities.labels, merged),
        "f1_confirmed": _f1(entities.labels, merged | confirmed),
        "proposals": len(merge.proposals),
        "per_record": len(merge.proposals) / len(outcomes),
        "true_share": len(confirmed) / len(labelled) if labelled else 1.0,
        "seconds": seconds,
    }


def _f1(labels: Mapping[tuple[str, str], bool], found: set[tuple[str, str]]) -> float:
    """Return F1 in per cent over the labelled pairs."""
    right = sum(is_same and pair in found for pair, is_same in labels.items())
    wrong = sum(not is_same and pair in found for pair, is_same in labels.items())
    return 100 * 2 * right / (right + wrong + sum(labels.values()))


def measure_linker(entities: EntitySet, name: str) -> dict[str, Any]:
    """Return F1 of the labelled pairs that another library finds, in per cent; or why it found none."""
    try:
        python = prepare_interpreter(name)
    except MissingError as missing:
        return {"failed": str(missing)}
    with TemporaryDirectory(prefix="linker-") as place:
        file = Path(place, "records.json")
        file.write_text(json.dumps({"identity": entities.identity, "records": entities.records}), encoding="utf-8")
        start = time.perf_counter()
        found = run(module_command(f"peers.{LINKERS[name].module}", str(file), python=str(python)))
    if "failed" in found:
        return found
    return {
        "f1": _f1(entities.labels, {(one, two) for one, two in found["pairs"]}),
        "seconds": time.perf_counter() - start,
    }


def measure_records(results: Results, folder: Path, *, others: bool = False) -> None:
    """Store F1 of each set-up on each set, and of other libraries."""
    for name in (*ENTITY_SETS, FEBRL):
        entities = read_entities(folder, name)
        for way, options in RECORD_WAYS.items():
            row = {"way": way, "load": name, **measure_record_set(entities, options), **circumstances()}
            results.put("merges-records", row)
        for linker in LINKERS if others else ():
            [pin] = LINKERS[linker].pins
            row = {"way": pin.replace("==", " "), "load": name, **measure_linker(entities, linker), **circumstances()}
            results.put("merges-records", row)


# Texts


def measure_texts(results: Results, folder: Path) -> None:
    """Store the balanced accuracy of the rules on each set."""
    for row in texts.measure_rules(folder):
        for way in ("naive", "before", "rules", "held_out", "found", "accused"):
            figures = {"texts": row.texts, "accuracy": getattr(row, way)}
            results.put("merges-texts", {"way": way, "load": row.name, **figures, **circumstances()})


def measure_judge(
    results: Results, folder: Path, model: str, asker: DirectAsker, count: int, minutes: float = 10
) -> None:
    """Store accuracy and cost of a judge, with the threshold that was chosen for it."""
    found = texts.measure_judge(folder, asker, count, minutes=minutes)
    texts.print_judge(found)
    row = {
        "way": model,
        "load": f"{found.texts} texts",
        "claims": found.claims,
        "judged": found.judged,
        "threshold": found.threshold[False],
        "accuracy": found.held_out[False],
        "with_rules": found.held_out[True],
        "cost_usd": None if found.cost_usd is None else 1000 * found.cost_usd / found.claims,
        "seconds": 1000 * found.seconds / found.claims,
        "prompt_tokens": 1000 * found.prompt_tokens / found.claims,
    }
    results.put("merges-judges", {**row, **circumstances()})


# Lies


def measure_lies(results: Results, cases: int, honest: int) -> None:
    """Store how many lies about random merges the audit finds, by kind and by integrator."""
    found = tampering.measure(cases, honest=honest)
    for position, way in ((0, "kind"), (1, "integrator")):
        for name in sorted({key[position] for key in found.told}):
            caught, told = found.rate(name, None) if way == "kind" else found.rate(None, name)
            results.put("merges-lies", {"way": way, "load": name, "found": caught, "told": told, **circumstances()})
    caught, told = found.rate()
    results.put("merges-lies", {"way": "all", "load": "all", "found": caught, "told": told, **circumstances()})
    accused = {"found": len(found.accused), "told": found.honest}
    results.put("merges-lies", {"way": "honest", "load": "all", **accused, **circumstances()})


# Changes of code

_CONFLICT = "<<<<<<<"


class CodeCase(NamedTuple):
    """Two changes of a file, and what people expect of their merge."""

    name: str
    base: str
    ours: str
    theirs: str
    expected: str

    @property
    def is_conflict(self) -> bool:
        """Whether a conflict is expected."""
        return _CONFLICT in self.expected


def read_code(folder: Path) -> list[CodeCase]:
    """Return the cases."""
    with gzip.open(folder / "mergiraf.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [CodeCase(row["name"], row["base"], row["left"], row["right"], row["expected"]) for row in rows]


def measure_code(results: Results, folder: Path) -> None:
    """Store what becomes of each case: ours, and what git makes of it."""
    cases = read_code(folder)
    with TemporaryDirectory() as place:
        git = Git(Path(place))
        git.output("init", "--quiet")
        ways: dict[str, Callable[[CodeCase], tuple[str | None, bool]]] = {
            "git": lambda case: _merge_by_git(git, case),
            "merge_branches": lambda case: _merge_ours(git, case),
        }
        for way, merge in ways.items():
            counts = Counter(_judge_case(case, *merge(case)) for case in cases)
            for kind in ("right", "conflict"):
                found = {end: counts[kind, end] for end in ENDS}
                results.put("merges-code", {"way": way, "load": kind, **found, **circumstances()})


ENDS = ("exact", "white space", "exact, flagged", "reported", "wrong", "wrong, flagged")
"""What becomes of a case: merged as expected, but for white space, a conflict is reported, or merged otherwise."""


def _judge_case(case: CodeCase, merged: str | None, is_flagged: bool) -> tuple[str, str]:  # noqa: FBT001 -- a result
    """Return what is expected of a case, and what became of it."""
    kind = "conflict" if case.is_conflict else "right"
    if merged is None:
        return kind, "reported"
    if merged == case.expected:
        return kind, "exact, flagged" if is_flagged else "exact"
    if "".join(merged.split()) == "".join(case.expected.split()):
        return kind, "white space"
    return kind, "wrong, flagged" if is_flagged else "wrong"


def _write_tree(git: Git, case: CodeCase, text: str) -> str:
    blob = git.output("hash-object", "-w", "--stdin", stdin=text.encode())
    return git.output("mktree", "-z", stdin=f"100644 blob {blob}\t{case.name}\0".encode())


def _merge_ours(git: Git, case: CodeCase) -> tuple[str | None, bool]:
    """Return the merged file, None for a conflict, and whether it would be flagged."""
    base, ours, theirs = (_write_tree(git, case, text) for text in (case.base, case.ours, case.theirs))
    merge = merge_trees(git, base, ours, theirs)
    if merge.conflicts:
        return None, True
    is_flagged = bool(merge.doubts) or _is_near(git, base, ours, theirs)
    return git.output_bytes("cat-file", "blob", f"{merge.tree}:{case.name}").decode(), is_flagged


def _is_near(git: Git, base: str, ours: str, theirs: str) -> bool:
    """Return whether the changes touch lines that are near each other."""
    sides = (("ours", ours), ("theirs", theirs))
    unused: Any = None
    branches = [
        Branch(Ref(brief=name, item="case"), unused, tree, list_differences(git, base, tree)) for name, tree in sides
    ]
    return any(row["how"] == NEAR for row in overlaps_table(RepositoryBase(git, base, base, ""), branches).rows)


def _merge_by_git(git: Git, case: CodeCase) -> tuple[str | None, bool]:
    """Return the file that `git merge-tree` makes, or None for a conflict; it flags nothing."""
    base, ours, theirs = (_write_tree(git, case, text) for text in (case.base, case.ours, case.theirs))
    identity = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "benchmark"), ("EMAIL", "benchmark@example.org"), ("DATE", "@1 +0000"))
    }
    root = git.output("commit-tree", base, stdin=b"base", env=identity)
    one, other = (git.output("commit-tree", each, "-p", root, stdin=b"side", env=identity) for each in (ours, theirs))
    code, output = git.run("merge-tree", "--write-tree", "--name-only", "--no-messages", one, other)
    if code:
        return None, False
    tree = output.decode().split()[0]
    return git.output_bytes("cat-file", "blob", f"{tree}:{case.name}").decode(), False


# The page

VOTERS = {
    "majority": "`majority`",
    "weighted (learned)": "`weighted`, learned by crowd-kit's Wawa",
    "dawid_skene": "`dawid_skene`, by crowd-kit",
    "auto": "**`auto`**",
}
"""Names of the methods of votes."""
KINDS = {
    "naive": "naive check",
    "before": "figures, dates, quotations alone",
    "rules": "**the rules**",
    "held_out": "of that, held out",
    "found": "false texts with a doubt",
    "accused": "true texts with a doubt",
}
"""Names of what is measured on texts."""


def create_page(results: Results) -> str:
    """Return the page that the stored rows make."""
    return TEMPLATE.substitute(
        votes=_votes_table(results),
        votes_day=_days(results, "merges-votes"),
        records=_records_table(results),
        records_day=_days(results, "merges-records"),
        texts=_texts_table(results),
        texts_day=_days(results, "merges-texts"),
        judges=_judges_table(results),
        lies=_lies_table(results),
        lies_day=_days(results, "merges-lies"),
        code=_code_table(results),
        code_day=_days(results, "merges-code"),
        machine=results.machine("merges-votes") or "Not measured yet.",
        near=NEAR_LINES,
    )


def _days(results: Results, section: str) -> str:
    """Return when a section was measured."""
    days = sorted({row["day"] for row in results.rows(section)})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "not measured yet"


def _figures_table(head: str, rows: Sequence[Row], figure: str, names: Mapping[str, str]) -> str:
    """Return a table with a line for each way, a column for each load, and the mean."""
    ways, loads = (list(dict.fromkeys(str(row[name]) for row in rows)) for name in ("way", "load"))
    cells: dict[tuple[str, str], float] = {(row["way"], row["load"]): row[figure] for row in rows if figure in row}

    def line(way: str) -> list[str]:
        known = [cells[way, load] for load in loads if (way, load) in cells]
        figures = [f"{cells[way, load]:.1f}" if (way, load) in cells else NOTHING for load in loads]
        return [
            names.get(way) or way,
            *figures,
            f"{statistics.mean(known):.1f}" if len(known) == len(loads) else NOTHING,
        ]

    return table((head, *loads, "mean"), map(line, ways)) if rows else "Not measured yet."


def _votes_table(results: Results) -> str:
    return _figures_table("method", results.rows("merges-votes"), "right", VOTERS)


def _records_table(results: Results) -> str:
    rows = results.rows("merges-records")
    if not rows:
        return "Not measured yet."
    notes: list[str] = []
    proposing = [row for row in rows if "proposals" in row]
    for way in dict.fromkeys(row["way"] for row in proposing):
        own = [row for row in proposing if row["way"] == way]
        most = max(row["per_record"] for row in own)
        share = statistics.mean(row["true_share"] for row in own)
        notes.append(f"{way}: at most {most:.2f} proposals for each record, {share:.0%} of the labelled ones true")
    return "\n\n".join(
        (
            "F1 of the labelled pairs, without proposals:",
            _figures_table("set-up", rows, "f1", {}),
            "F1 if a person confirms or refuses each proposal:",
            _figures_table("set-up", proposing, "f1_confirmed", {}),
            f"Proposals: {'; '.join(notes)}.",
        )
    )


def _texts_table(results: Results) -> str:
    rows = [row for row in results.rows("merges-texts") if row["load"] != "mean"]
    return _figures_table("in per cent", rows, "accuracy", KINDS)


def _judges_table(results: Results) -> str:
    heads = ("judge", "texts", "claims", "with a verdict", "doubtful from", "held out", "with the rules")
    costs = ("US dollars", "seconds", "prompt tokens", "measured")
    rows = [
        [
            f"`{row['way']}`",
            row["load"].removesuffix(" texts"),
            str(row["claims"]),
            str(row["judged"]),
            row["threshold"].replace("_", " "),
            f"{row['accuracy']:.1f}",
            f"{row['with_rules']:.1f}",
            NOTHING if row["cost_usd"] is None else f"{row['cost_usd']:.2f}",
            f"{row['seconds']:,.0f}",
            f"{row['prompt_tokens']:,.0f}",
            row["day"],
        ]
        for row in results.rows("merges-judges")
    ]
    return table((*heads, *costs), rows) if rows else "No judge was measured yet."


def _lies_table(results: Results) -> str:
    rows = results.rows("merges-lies")

    def line(row: Row) -> list[str]:
        name = {"all": "**all lies**", "honest": "honest merges that are accused"}.get(row["way"]) or str(row["load"])
        return [name, f"{row['told']:,}", f"{row['found']:,}", f"{row['found'] / row['told']:.1%}"]

    parts = [
        table((way, "told", "found", "rate"), [line(row) for row in rows if row["way"] in shown])
        for way, shown in (("lies about", ("kind",)), ("lies by", ("integrator", "all", "honest")))
    ]
    return "\n\n".join(parts) if rows else "Not measured yet."


def _code_table(results: Results) -> str:
    heads = ("merge", "", *ENDS)
    titles = {"right": "should merge", "conflict": "should conflict"}
    rows = [
        [f"`{row['way']}`", titles[row["load"]], *(str(row[end]) for end in ENDS)]
        for row in results.rows("merges-code")
    ]
    return table(heads, rows) if rows else "Not measured yet."


SECTIONS = {"votes": "truth", "records": "entities", "texts": "prose", "lies": "", "code": "code"}
"""The sections, each with the folder of its data."""


def main() -> None:
    """Measure what the arguments ask for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", choices=[*SECTIONS], default=[*SECTIONS], metavar="NAME")
    parser.add_argument("--data", type=Path, default=FOLDER, help="the folder of the data")
    parser.add_argument("--others", action="store_true", help="measure other libraries, too")
    parser.add_argument("--judge", metavar="MODEL", help="measure a model that judges texts")
    parser.add_argument("--claims", type=int, default=6, help="texts of each part and set for the judge")
    parser.add_argument("--minutes", type=float, default=10, help="time limit of the judge")
    parser.add_argument("--lies", type=int, default=3600, help="number of lies")
    parser.add_argument("--results", type=Path, help="another folder for the rows; then no page is written")
    arguments = parser.parse_args()
    results = Results(arguments.results) if arguments.results else Results()
    methods = {name: consensus.METHODS[name] for name in ("majority", "weighted (learned)", "dawid_skene", "auto")}
    measures: dict[str, Callable[[Path], None]] = {
        "votes": lambda folder: measure_votes(
            results, folder, {**methods, **(consensus.CROWD_KIT if arguments.others else {})}
        ),
        "records": lambda folder: measure_records(results, folder, others=arguments.others),
        "texts": lambda folder: measure_texts(results, folder),
        "lies": lambda _: measure_lies(results, arguments.lies, arguments.lies // 8),
        "code": lambda folder: measure_code(results, folder),
    }
    for name in arguments.sections:
        folder = arguments.data / SECTIONS[name]
        if not folder.is_dir():
            print(f"Skipped: {name}, as there is no folder {str(folder)!r}.")
            continue
        start = time.perf_counter()
        measures[name](folder)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if arguments.judge:
        asker, count = DirectAsker(LLM(model=arguments.judge)), max(2, arguments.claims)
        measure_judge(results, arguments.data / "prose", arguments.judge, asker, count, arguments.minutes)
    if arguments.results is None:
        PAGE.write_text(create_page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
