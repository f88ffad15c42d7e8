"""Measures the check of texts: balanced accuracy of its doubts on public sets of true and false summaries and claims.

`python -m benchmarks.texts` prints the table. The sets are in the folder of `--data`, and no part of this repository.
A set's documents are split in two by their SHA-256: the rules and their thresholds were chosen on the part "chosen on",
and "held out" was measured at the end. A text counts as doubtful if any of its sentences has a doubt.

`python -m benchmarks.texts --judge MODEL --claims N [--minutes M]` has a model judge N texts of each part and set, in
turn. Which of its labels counts as a doubt is chosen on the first part, for each model; accuracy is that on the second.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import time
from collections import defaultdict
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.synthesize.answer_index import Source, number_answers
from prefect_dispatch.integrators.synthesize.check_text import JUDGE_CONTEXT, DirectAsker
from prefect_dispatch.integrators.synthesize.findings import check_claims, check_prose
from prefect_dispatch.integrators.synthesize.judge import judge_claims, list_claims
from prefect_dispatch.integrators.synthesize.output_format import Part
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

DATA = Path("../shared/data/merges/prose")
SETS = {
    "SummEdits news": "summedits-news",
    "SummEdits samsum": "summedits-samsum",
    "SummEdits scitldr": "summedits-scitldr",
    "SummEdits sales_email": "summedits-sales_email",
    "AttributionBench dev": "attribution-dev",
}
BEFORE = {
    "SummEdits news": 53.8,
    "SummEdits samsum": 49.1,
    "SummEdits scitldr": 50.0,
    "SummEdits sales_email": 63.0,
    "AttributionBench dev": 56.9,
}
"""Balanced accuracy in per cent on all of each set when figures, dates and quotations alone were compared."""
PARTS = ("chosen on", "held out")
_CITATION = re.compile(r"\s?\[\d+\]")
_NAIVE = re.compile(r"\d[\d.,]*\d|\d|(?<!^)(?<![.!?]\s)\b[A-Z]\w+")
SEVERITY = {"supported": 0, "not_judged": 1, "not_found": 2, "contradicted": 3}
"""Order of a judge's labels; the calibration chooses from which one on a label is a doubt."""


class Text(NamedTuple):
    """A text with its document."""

    document: str
    text: str
    is_true: bool
    part: str


def read_set(folder: Path, name: str) -> list[Text]:
    """Return the texts of a set; the label 1 means that the document supports the text."""
    data: Any = json.loads(gzip.decompress((folder / f"{SETS[name]}.json.gz").read_bytes()))
    return [
        Text(document, _CITATION.sub("", text), label == 1, PARTS[hashlib.sha256(document.encode()).digest()[0] % 2])
        for at, text, label in data["rows"]
        for document in [data["docs"][at]]
    ]


@lru_cache(maxsize=2000)
def index_document(document: str) -> Source:
    """Return a document as a source."""
    [source] = number_answers([Outcome(brief="document", item="1", status="succeeded", value=document)])
    return source


def is_doubtful(each: Text) -> bool:
    """Return whether the rules find a doubt."""
    sources = [index_document(each.document)]
    return bool(check_prose(each.text, sources, [1]) or check_claims(each.text, sources, [1]))


def is_naively_doubtful(each: Text) -> bool:
    """Return whether a number or a capitalised word within a sentence doesn't occur in the document."""
    return any(found not in each.document for found in _NAIVE.findall(each.text))


def balanced_accuracy(texts: Sequence[Text], doubtful: Iterable[bool]) -> float:
    """Return the mean of the shares of true texts without and of false texts with a doubt, in per cent."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for each, doubt in zip(texts, doubtful, strict=True):
        right[each.is_true].append(doubt != each.is_true)
    return 100 * mean(mean(shares) for shares in right.values() if shares)


class RuleRow(NamedTuple):
    """What the rules find in a set, in per cent."""

    name: str
    texts: int
    naive: float
    """Balanced accuracy of a check that every number and capitalised word occurs in the document."""
    before: float
    """Balanced accuracy when figures, dates and quotations alone were compared."""
    rules: float
    """Balanced accuracy of the rules."""
    chosen_on: float
    """That on the part on which the rules were chosen."""
    held_out: float
    """That on the other part."""
    found: float
    """Share of the false texts with a doubt."""
    accused: float
    """Share of the true texts with a doubt."""


def measure_rules(folder: Path) -> Iterator[RuleRow]:
    """Yield what the rules find in each set, and the means over the sets at last."""
    rows: list[RuleRow] = []
    for name in SETS:
        texts = read_set(folder, name)
        doubts = [*map(is_doubtful, texts)]
        parts = [
            [(each, doubt) for each, doubt in zip(texts, doubts, strict=True) if each.part == part] for part in PARTS
        ]
        chosen_on, held_out = (
            balanced_accuracy([each for each, _ in part], [doubt for _, doubt in part]) for part in parts
        )
        rows.append(
            RuleRow(
                name,
                len(texts),
                balanced_accuracy(texts, map(is_naively_doubtful, texts)),
                BEFORE[name],
                balanced_accuracy(texts, doubts),
                chosen_on,
                held_out,
                100 * mean(doubt for each, doubt in zip(texts, doubts, strict=True) if not each.is_true),
                100 * mean(doubt for each, doubt in zip(texts, doubts, strict=True) if each.is_true),
            )
        )
        yield rows[-1]
    means = {name: mean(getattr(row, name) for row in rows) for name in RuleRow._fields[2:]}
    yield RuleRow(name="mean", texts=sum(row.texts for row in rows), **means)


def print_rules(folder: Path) -> None:
    """Print the balanced accuracy of the rules on each set, beside that of a naive check."""
    heads = ("set", "texts", "naive", "before", "rules", "of it chosen on", "held out", "false ones found")
    print(f"| {' | '.join(heads)} | true ones doubted |")
    print("|" + "---|" * (len(heads) + 1))
    for row in measure_rules(folder):
        print(f"| {row.name} | {row.texts} | {' | '.join(f'{value:.1f}' for value in row[2:])} |", flush=True)


class Judged(NamedTuple):
    """A text with the worst label that a judge gave to one of its claims."""

    name: str
    """The set."""
    text: Text
    severity: int
    claims: int
    """Number of its claims."""
    judged: int
    """Number of those with a verdict."""


class JudgeResult(NamedTuple):
    """What a judge found, with the threshold that was chosen for it."""

    threshold: dict[bool, str]
    """The label from which on a text is doubtful; without and with the doubts of the rules."""
    chosen_on: dict[bool, float]
    """Balanced accuracy in per cent where it was chosen."""
    held_out: dict[bool, float]
    """Balanced accuracy on the other texts."""
    texts: int
    claims: int
    judged: int
    """Number of claims with a verdict."""
    requests: int
    cost_usd: float | None
    """Cost of all claims; None where a price is unknown."""
    seconds: float
    prompt_tokens: int


def judge_text(name: str, each: Text, asker: DirectAsker) -> Judged:
    """Have the claims of a text judged."""
    sources = [index_document(each.document)]
    claims = list_claims([Part("", each.text, (1,), [])], 1)
    verdicts = judge_claims(claims, sources, asker, asker.executor, JUDGE_CONTEXT)
    return Judged(
        name,
        each,
        max((SEVERITY[verdict.label] for verdict in verdicts), default=0),
        len(claims),
        sum(verdict.label != "not_judged" for verdict in verdicts),
    )


def select_texts(folder: Path, count: int) -> Iterator[tuple[str, Text]]:
    """Yield texts of all sets in turn, so that a measurement that is cut short has some of each.

    Args:
        folder: The folder of the sets.
        count: Number of texts of each part and set: as many true as false ones.
    """
    chosen: list[list[tuple[str, Text]]] = []
    for name in SETS:
        texts = read_set(folder, name)
        for part in PARTS:
            for is_true in (True, False):
                same = [each for each in texts if (each.part, each.is_true) == (part, is_true)]
                chosen.append([(name, each) for each in same[:: max(1, 2 * len(same) // count)][: count // 2]])
    for of_each in zip_longest(*chosen):
        yield from filter(None, of_each)


def measure_judge(
    folder: Path,
    asker: DirectAsker,
    count: int,
    *,
    minutes: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> JudgeResult:
    """Judge texts of the sets, choose the threshold of this judge on their first parts, and measure it on the second.

    Args:
        folder: The folder of the sets.
        asker: Asks the judge.
        count: Number of texts of each part and set.
        minutes: Time after which no further text is judged, once there are some of each kind.
        clock: Returns the time in seconds.
    """
    start = clock()
    judged: list[Judged] = []
    for name, text in select_texts(folder, count):
        if clock() - start > 60 * minutes and len(judged) >= 2 * len(PARTS) * len(SETS):
            break  # there is a true and a false text of each part and set
        judged.append(judge_text(name, text, asker))
    seconds = clock() - start

    def accuracy(part: str, least: int, *, with_rules: bool) -> float:
        by_set: dict[str, list[Judged]] = defaultdict(list)
        for each in judged:
            if each.text.part == part:
                by_set[each.name].append(each)
        return mean(
            balanced_accuracy(
                [each.text for each in results],
                [each.severity >= least or (with_rules and is_doubtful(each.text)) for each in results],
            )
            for results in by_set.values()
        )

    least = {
        with_rules: max(range(1, 5), key=lambda each: accuracy(PARTS[0], each, with_rules=with_rules))
        for with_rules in (False, True)
    }
    return JudgeResult(
        {key: next((name for name, of in SEVERITY.items() if of == each), "none") for key, each in least.items()},
        {key: accuracy(PARTS[0], each, with_rules=key) for key, each in least.items()},
        {key: accuracy(PARTS[1], each, with_rules=key) for key, each in least.items()},
        len(judged),
        sum(each.claims for each in judged),
        sum(each.judged for each in judged),
        asker.usage.requests,
        asker.usage.cost_usd,
        seconds,
        asker.usage.prompt_tokens,
    )


def print_judge(result: JudgeResult) -> None:
    """Print the accuracy of a judge, and its cost."""
    for with_rules, title in ((False, "judge alone"), (True, "judge or rules")):
        print(
            f"{title}: a doubt from {result.threshold[with_rules]!r} on; balanced accuracy "
            f"{result.chosen_on[with_rules]:.1f} where it was chosen, {result.held_out[with_rules]:.1f} held out"
        )
    price = "unknown" if result.cost_usd is None else f"{1000 * result.cost_usd / result.claims:.4f} US dollars"
    print(
        f"{result.texts} texts with {result.claims} claims, of which {result.judged} have a verdict, "
        f"{result.requests} requests; for 1,000 claims: cost {price}, "
        f"{1000 * result.seconds / result.claims:,.0f} seconds, "
        f"{1000 * result.prompt_tokens // result.claims:,} prompt tokens"
    )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the sets")
    parser.add_argument("--judge", metavar="MODEL", help="a model that judges, such as local/smollm2")
    parser.add_argument("--claims", type=int, default=20, help="texts of each part and set for the judge")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit of the judge")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"Skipped: there is no folder {str(arguments.data)!r} with the sets; name it with --data.")
        return
    if arguments.judge:
        asker = DirectAsker(LLM(model=arguments.judge))
        print_judge(measure_judge(arguments.data, asker, max(2, arguments.claims), minutes=arguments.minutes))
    else:
        print_rules(arguments.data)


if __name__ == "__main__":
    main()
