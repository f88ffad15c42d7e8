"""Measures the accuracy of consensus rules on crowd labels with known ground truth.

Run `python -m benchmarks.consensus [--sets | --numbers] [--data FOLDER]`.

**Crowds** (`--sets`): the labels of eight public sets from `../shared/data/merges/truth`, decided by each method, by
the models of `auto` one by one, and with `--crowd-kit` by crowd-kit's methods as well (a quarter of an hour). A tie
counts as the share of the tied labels that are right, so that chance has no effect.

**Numbers** (`--numbers`): generated ones, of 3 to 10 voters on 600 items, for several kinds of noise.

**Bluebirds** (no option; the data are fetched once and stored in the folder): 39 people labelled 108 pictures as
an indigo bunting or a blue grosbeak (Welinder, Branson, Belongie and Perona, The Multidimensional Wisdom of Crowds,
NIPS 2010). Many of them can't distinguish the two species, so the majority is wrong about a quarter. The files come
with the authors' code under the Clear BSD licence; they aren't copied into this repository.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus import voter_models
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.consensus.number_rules import mean, median, robust_mean, screened_mean
from prefect_dispatch.integrators.crowdkit_adapter import Vote, dawid_skene, encode_votes, wawa
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from prefect_dispatch.models.ledger import Merge

SOURCE = "https://raw.githubusercontent.com/welinder/cubam/fe5ba700f1adbb489c69af311558d64370d73d36/demo/bluebirds/"
FILES = {
    "gt.yaml": "c9eb769c845ca99495a07b5c28c4290c78436fd8eac65c0747736c4ef8126340",
    "labels.yaml": "8b1b28e4b869b19bb03beac476c7073149cef784f9524ebe17380a1292a6126c",
}
SETS = ("CF", "CF_amt", "MS", "SP", "SP_amt", "dog", "web", "sentiment")
"""Names of the public sets, of which the means in ARCHITECTURE.md are."""
FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "merges" / "truth"
Scores = Mapping[str, Mapping[str, float]]
"""The score of each label of each item."""

PUBLISHED = {"consensus: majority": 24.07, "consensus: dawid_skene": 11.11}
"""Errors in per cent: Zhang, Chen, Zhou and Jordan, Spectral Methods Meet EM, JMLR 17 (2016), `Bird`, from majority."""

RULES: dict[str, Consensus | MergeRecords] = {
    "consensus: auto": Consensus(),
    "consensus: majority": Consensus(method="majority"),
    "consensus: weighted (learned)": Consensus(method="weighted"),
    "consensus: dawid_skene": Consensus(method="dawid_skene"),
    "merge_records: majority": MergeRecords.model_validate({"identity": ["image"], "default": {"rule": "majority"}}),
    "merge_records: trust": MergeRecords.model_validate(
        {"identity": ["image"], "default": {"rule": "trust", "of": "brief"}}
    ),
}


def fetch_data(folder: Path) -> Path:
    """Fetch the files that a folder lacks, compare all with their SHA-256 and return the folder.

    Raises:
        SystemExit: If they can't be fetched, or have another SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in FILES.items():
        path = folder / name
        try:
            data = path.read_bytes() if path.exists() else _download(SOURCE + name)
        except URLError as error:
            raise SystemExit(f"{SOURCE + name} can't be fetched ({error.reason}); put it into {folder}.") from None
        if hashlib.sha256(data).hexdigest() != wanted:
            raise SystemExit(f"{path} is not the expected file: its SHA-256 differs.")
        path.write_bytes(data)
    return folder


def measure(rule: str, folder: Path) -> dict[str, Any]:
    """Return the number of images that a rule labels correctly, and the seconds of merge and audit.

    Raises:
        SystemExit: If the merge doesn't pass its audit.
    """
    truth: dict[int, bool] = yaml.safe_load((folder / "gt.yaml").read_text(encoding="utf-8"))
    labels: dict[int, dict[int, bool]] = yaml.safe_load((folder / "labels.yaml").read_text(encoding="utf-8"))
    outcomes = [
        Outcome(
            brief=f"person-{person}",
            item=str(image),
            status="succeeded",
            value={"image": image, "bunting": label},
        )
        for person, labelled in labels.items()
        for image, label in labelled.items()
    ]
    integrator = RULES[rule]
    start = time.perf_counter()
    merge = integrator.merge([], outcomes)
    merged = time.perf_counter()
    if violations := audit(merge, outcomes, [], integrator):
        raise SystemExit("\n".join(map(str, violations[:10])))
    found = read_answers(merge)
    right = sum(found[image] == known for image, known in truth.items())
    seconds = (round(merged - start, 2), round(time.perf_counter() - merged, 2))
    return {"rule": rule, "right": right, "of": len(truth), "votes": len(outcomes), "seconds": seconds}


def read_answers(merge: Merge) -> dict[int, bool]:
    """Return the merged label of each image."""
    value: Any = merge.value
    records = [entry["value"] for entry in value["answers"]] if "answers" in value else value["records"]
    return {record["image"]: record["bunting"] for record in records}


def _download(address: str) -> bytes:
    with urlopen(address, timeout=60) as response:  # noqa: S310 -- a fixed address, and the content is compared
        data: bytes = response.read()
    return data


def read_set(folder: Path, name: str) -> tuple[list[Vote], dict[str, str]]:
    """Return the votes of a public set, and the right labels."""

    def read(kind: str) -> list[list[str]]:
        with gzip.open(folder / f"{name}.{kind}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            return list(csv.reader(file))[1:]

    return [Vote(*row) for row in read("labels")], dict(read("gold"))


def count_votes(votes: list[Vote]) -> Scores:
    """Return the number of votes for each label."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        counts[vote.item][vote.opinion] += 1
    return counts


def keep_given(scores: Scores, votes: list[Vote]) -> Scores:
    """Return the scores of labels that have a vote; a consensus elects no others."""
    return {item: {label: scores[item][label] for label in counts} for item, counts in count_votes(votes).items()}


def estimate(votes: list[Vote]) -> Scores:
    """Return the scores of the method `auto`."""
    found = voter_models.estimate_truth(votes)
    return found.scores if found else count_votes(votes)


def fit_alone(fit: Callable[[Any], Any]) -> Callable[[list[Vote]], Scores]:
    """Return a method that goes by one of the models of `auto` alone."""

    def score(votes: list[Vote]) -> Scores:
        items, agents, labels, codes = encode_votes(votes)
        truth = fit(voter_models.to_arrays(codes, len(items), len(agents), len(labels))).tolist()
        scores = {item: dict(zip(labels, row, strict=True)) for item, row in zip(items, truth, strict=True)}
        return keep_given(scores, votes)

    return score


def run_crowd_kit(name: str, **options: object) -> Callable[[list[Vote]], Scores]:
    """Return a method of crowd-kit."""

    def score(votes: list[Vote]) -> Scores:
        frame = import_module("pandas").DataFrame(votes, columns=["task", "worker", "label"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = getattr(import_module("crowdkit.aggregation"), name)(**options).fit_predict(frame)
        return {item: {label: 1.0} for item, label in labels.items()}

    return score


METHODS: dict[str, Callable[[list[Vote]], Scores]] = {
    "majority": count_votes,
    "weighted (learned)": lambda votes: wawa(votes).scores,
    "dawid_skene": lambda votes: keep_given(dawid_skene(votes).scores, votes),
    "auto": estimate,
    "auto: one coin alone": fit_alone(voter_models.fit_one_coin),
    "auto: spammers alone": fit_alone(voter_models.fit_spammers),
    "auto: confusion alone": fit_alone(voter_models.fit_confusion),
}
CROWD_KIT: dict[str, Callable[[list[Vote]], Scores]] = {
    "crowd-kit: OneCoinDawidSkene": run_crowd_kit("OneCoinDawidSkene"),
    "crowd-kit: MMSR": run_crowd_kit("MMSR", random_state=0),
    "crowd-kit: GLAD": run_crowd_kit("GLAD"),
    "crowd-kit: MACE": run_crowd_kit("MACE", random_state=0),
}


def share_right(scores: Scores, truth: Mapping[str, str]) -> float:
    """Return the share of right labels in per cent; a tie counts as the share of its labels that are right."""
    total = 0.0
    for item, right in truth.items():
        rounded = {label: round(score, 9) for label, score in scores.get(item, {}).items()}
        best = [label for label, score in rounded.items() if score == max(rounded.values())]
        total += (right in best) / max(len(best), 1)
    return 100 * total / len(truth)


def print_sets(methods: Mapping[str, Callable[[list[Vote]], Scores]], folder: Path = FOLDER) -> None:
    """Print a row for each method: its accuracy on each set, the mean, and the worst difference from the majority."""
    if not folder.is_dir():
        print(f"The public sets are not measured: there is no folder {folder}.")
        return
    sets = [read_set(folder, name) for name in SETS]
    usual = [share_right(count_votes(votes), truth) for votes, truth in sets]
    print("| method |", " | ".join(SETS), "| mean | worst against majority | s |")
    print("|---" * (len(SETS) + 4) + "|")
    for name, method in methods.items():
        start = time.perf_counter()
        row = [share_right(method(votes), truth) for votes, truth in sets]
        worst = min(one - other for one, other in zip(row, usual, strict=True))
        figures = " | ".join(f"{figure:.2f}" for figure in (*row, statistics.mean(row)))
        print(f"| {name} | {figures} | {worst:+.2f} | {time.perf_counter() - start:.1f} |", flush=True)


STATISTICS: dict[str, Callable[[Any], float]] = {
    "mean": mean,
    "median": median,
    "robust mean": robust_mean,
    "default": screened_mean,
}


def generate_numbers(noise: str, chance: Any, truth: Any, voters: int) -> Any:  # noqa: ANN401 -- arrays of numpy
    """Return the numbers that voters give for items: a row for each item."""
    numpy = import_module("numpy")
    shape, centre = (len(truth), voters), truth[:, None]
    kinds: dict[str, Callable[[], Any]] = {
        "normal": lambda: centre + chance.normal(0, 10, shape),
        "normal, voters differ": lambda: centre + chance.normal(0, 1, shape) * chance.gamma(1.5, 8, voters),
        "Laplace": lambda: centre + chance.laplace(0, 10, shape),
        "Student, 3 degrees": lambda: centre + 8 * chance.standard_t(3, shape),
        "log-normal": lambda: centre * numpy.exp(chance.normal(-0.08, 0.4, shape)),
        "rounded to tens": lambda: numpy.round((centre + chance.normal(0, 8, shape)) / 10) * 10,
        "scale of 0 to 5": lambda: numpy.clip(numpy.round(centre / 20 + chance.normal(0, 0.8, shape)), 0, 5) * 20,
        "many zeros": lambda: numpy.where(chance.random(shape) < 0.4, 0, centre / 0.6 + chance.normal(0, 8, shape)),
        "15 % at random": lambda: numpy.where(
            chance.random(shape) < 0.15, chance.uniform(0, 100, shape), centre + chance.normal(0, 6, shape)
        ),
        "8 % a digit too many": lambda: (
            (centre + chance.normal(0, 3, shape)) * numpy.where(chance.random(shape) < 0.08, 10, 1)
        ),
        "exact, 8 % wrong unit": lambda: (
            numpy.round(centre + 1) * numpy.where(chance.random(shape) < 0.08, chance.choice([0.01, 100], shape), 1)
        ),
    }
    return kinds[noise]()


NOISES = (
    "normal",
    "normal, voters differ",
    "Laplace",
    "Student, 3 degrees",
    "log-normal",
    "rounded to tens",
    "scale of 0 to 5",
    "many zeros",
    "15 % at random",
    "8 % a digit too many",
    "exact, 8 % wrong unit",
)


def measure_numbers(noise: str) -> dict[str, float]:
    """Return the root of the mean squared error of each statistic, as a multiple of that of the mean."""
    numpy = import_module("numpy")
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for voters in (3, 4, 5, 7, 10):
        chance = numpy.random.default_rng(voters)
        truth = chance.uniform(0, 100, 600)
        rows = generate_numbers(noise, chance, truth, voters).tolist()
        errors = {
            name: float(numpy.sqrt(numpy.mean((numpy.array([rule(row) for row in rows]) - truth) ** 2)))
            for name, rule in STATISTICS.items()
        }
        for name, error in errors.items():
            ratios[name].append(error / errors["mean"])
    return {name: statistics.mean(each) for name, each in ratios.items()}


def print_numbers() -> None:
    """Print a row for each kind of noise: the error of each statistic as a multiple of that of the mean."""
    print("| noise |", " | ".join(STATISTICS), "|")
    print("|---" * (len(STATISTICS) + 1) + "|")
    for noise in NOISES:
        print(f"| {noise} |", " | ".join(f"{ratio:.3f}" for ratio in measure_numbers(noise).values()), "|")


def main() -> None:
    """Print a row for each rule."""
    parser = argparse.ArgumentParser(description="Measure consensus on a crowd's labels with known truth.")
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--sets", action="store_true", help="measure the public sets instead")
    parser.add_argument("--crowd-kit", action="store_true", help="of the public sets, measure crowd-kit's methods, too")
    parser.add_argument("--numbers", action="store_true", help="measure generated numbers instead")
    options = parser.parse_args()
    if options.sets or options.crowd_kit:
        print_sets({**METHODS, **(CROWD_KIT if options.crowd_kit else {})}, options.data or FOLDER)
        return
    if options.numbers:
        print_numbers()
        return
    folder = fetch_data(options.data or Path.home() / ".cache" / "prefect-dispatch" / "bluebirds")
    print("| rule | right | accuracy | published | merge s | audit s |\n|---|---|---|---|---|---|")
    for rule in RULES:
        row = measure(rule, folder)
        accuracy = f"{100 * row['right'] / row['of']:.2f} %"
        published = f"{100 - PUBLISHED[rule]:.2f} %" if rule in PUBLISHED else ""
        merged, audited = row["seconds"]
        print(f"| {rule} | {row['right']} of {row['of']} | {accuracy} | {published} | {merged} | {audited} |")


if __name__ == "__main__":
    main()
