"""Measures the check of texts: balanced accuracy of its doubts on public sets of true and false summaries and claims.

`python -m benchmarks.texts` prints the table. The sets are in the folder of `--data`, and no part of this repository.
A set's documents are split in two by their SHA-256: the rules and their thresholds were chosen on the part "chosen on",
and "held out" was measured at the end. A text counts as doubtful if any of its sentences has a doubt.

`python -m benchmarks.texts --judge MODEL --claims N` has a model judge N claims of each part and set. Which of its
labels counts as a doubt is chosen on the first part, for each model; accuracy is that on the second one.
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
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.integrators.synthesize.answer_index import Source, check_claims, check_prose, number_answers
from prefect_dispatch.integrators.synthesize.check_text import JUDGE_CONTEXT, DirectAsker
from prefect_dispatch.integrators.synthesize.judge import judge_claims, list_claims
from prefect_dispatch.integrators.synthesize.output_format import Part
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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


def print_rules(folder: Path) -> None:
    """Print the balanced accuracy of the rules on each set, beside that of a naive check."""
    rows: list[list[float]] = []
    print(
        "| set | texts | naive | before | rules | of it chosen on | held out | false ones found | true ones doubted |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in SETS:
        texts = read_set(folder, name)
        doubts = [*map(is_doubtful, texts)]
        parts = [
            [(each, doubt) for each, doubt in zip(texts, doubts, strict=True) if each.part == part] for part in PARTS
        ]
        row = [
            balanced_accuracy(texts, map(is_naively_doubtful, texts)),
            BEFORE[name],
            balanced_accuracy(texts, doubts),
            *(balanced_accuracy([each for each, _ in part], [doubt for _, doubt in part]) for part in parts),
            100 * mean(doubt for each, doubt in zip(texts, doubts, strict=True) if not each.is_true),
            100 * mean(doubt for each, doubt in zip(texts, doubts, strict=True) if each.is_true),
        ]
        rows.append(row)
        print(f"| {name} | {len(texts)} | {' | '.join(f'{value:.1f}' for value in row)} |", flush=True)
    means = [mean(column) for column in zip(*rows, strict=True)]
    print(f"| mean | | {' | '.join(f'{value:.1f}' for value in means)} |")


class Judged(NamedTuple):
    """A text with the worst label that a judge gave to one of its sentences."""

    text: Text
    severity: int


def judge_texts(texts: Sequence[Text], asker: DirectAsker) -> list[Judged]:
    """Have the sentences of texts judged."""
    judged: list[Judged] = []
    for each in texts:
        sources = [index_document(each.document)]
        claims = list_claims([Part("", each.text, (1,), [])], 1)
        verdicts = judge_claims(claims, sources, asker, asker.executor, JUDGE_CONTEXT)
        judged.append(Judged(each, max((SEVERITY[verdict.label] for verdict in verdicts), default=0)))
    return judged


def print_judge(folder: Path, asker: DirectAsker, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Calibrate a judge on the first parts of the sets, and print its accuracy on the second ones and its cost.

    Args:
        folder: The folder of the sets.
        asker: Asks the judge.
        count: Number of texts of each part and set: as many true as false ones.
        clock: Returns the time in seconds.
    """
    chosen: dict[str, dict[str, list[Text]]] = {part: defaultdict(list) for part in PARTS}
    for name in SETS:
        for part in PARTS:
            of_part = [each for each in read_set(folder, name) if each.part == part]
            for is_true in (True, False):
                same = [each for each in of_part if each.is_true == is_true]
                chosen[part][name] += same[:: max(1, 2 * len(same) // count)][: count // 2]
    start = clock()
    judged = {part: {name: judge_texts(texts, asker) for name, texts in chosen[part].items()} for part in PARTS}
    seconds = clock() - start

    def accuracy(part: str, least: int, *, with_rules: bool) -> float:
        return mean(
            balanced_accuracy(
                [each.text for each in results],
                [each.severity >= least or (with_rules and is_doubtful(each.text)) for each in results],
            )
            for results in judged[part].values()
        )

    total = sum(len(results) for part in judged.values() for results in part.values())
    for with_rules in (False, True):
        least = max(range(1, 5), key=lambda each: accuracy(PARTS[0], each, with_rules=with_rules))
        label = next((name for name, severity in SEVERITY.items() if severity == least), "none")
        print(
            f"{'judge or rules' if with_rules else 'judge alone'}: a doubt from {label!r} on; balanced accuracy "
            f"{accuracy(PARTS[0], least, with_rules=with_rules):.1f} where it was chosen, "
            f"{accuracy(PARTS[1], least, with_rules=with_rules):.1f} held out"
        )
    cost = asker.usage.cost_usd
    price = "unknown" if cost is None else f"{1000 * cost / total:.4f} US dollars"
    print(
        f"{total} texts, {asker.usage.requests} requests; for 1,000 texts: cost {price}, "
        f"{1000 * seconds / total:,.0f} seconds, {1000 * asker.usage.prompt_tokens // total:,} prompt tokens"
    )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the sets")
    parser.add_argument("--judge", metavar="MODEL", help="a model that judges, such as local/smollm2")
    parser.add_argument("--claims", type=int, default=20, help="texts of each part and set for the judge")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"Skipped: there is no folder {str(arguments.data)!r} with the sets; name it with --data.")
        return
    if arguments.judge:
        print_judge(arguments.data, DirectAsker(LLM(model=arguments.judge)), max(2, arguments.claims))
    else:
        print_rules(arguments.data)


if __name__ == "__main__":
    main()
