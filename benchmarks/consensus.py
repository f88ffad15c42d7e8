"""Measures the accuracy of consensus rules on crowd labels with known ground truth.

Run `python -m benchmarks.consensus [--data FOLDER]`. The data are fetched once and stored in the folder.

**Bluebirds** (Welinder, Branson, Belongie and Perona, The Multidimensional Wisdom of Crowds, NIPS 2010): 39
people labelled each of 108 pictures as an indigo bunting or a blue grosbeak. Many of them can't distinguish the two
species, so the majority is wrong about a quarter. The files come with the authors' code
under the Clear BSD licence; they aren't copied into this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.models.outcome import Outcome

if TYPE_CHECKING:
    from prefect_dispatch.models.ledger import Merge

SOURCE = "https://raw.githubusercontent.com/welinder/cubam/fe5ba700f1adbb489c69af311558d64370d73d36/demo/bluebirds/"
FILES = {
    "gt.yaml": "c9eb769c845ca99495a07b5c28c4290c78436fd8eac65c0747736c4ef8126340",
    "labels.yaml": "8b1b28e4b869b19bb03beac476c7073149cef784f9524ebe17380a1292a6126c",
}
PUBLISHED = {"consensus: majority": 24.07, "consensus: dawid_skene": 11.11}
"""Errors in per cent: Zhang, Chen, Zhou and Jordan, Spectral Methods Meet EM, JMLR 17 (2016), `Bird`, from majority."""

RULES: dict[str, Consensus | MergeRecords] = {
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


def main() -> None:
    """Print a row for each rule."""
    parser = argparse.ArgumentParser(description="Measure consensus on a crowd's labels with known truth.")
    default = Path.home() / ".cache" / "prefect-dispatch" / "bluebirds"
    parser.add_argument("--data", type=Path, default=default, help="folder of the data")
    folder = fetch_data(parser.parse_args().data)
    print("| rule | right | accuracy | published | merge s | audit s |\n|---|---|---|---|---|---|")
    for rule in RULES:
        row = measure(rule, folder)
        accuracy = f"{100 * row['right'] / row['of']:.2f} %"
        published = f"{100 - PUBLISHED[rule]:.2f} %" if rule in PUBLISHED else ""
        merged, audited = row["seconds"]
        print(f"| {rule} | {row['right']} of {row['of']} | {accuracy} | {published} | {merged} | {audited} |")


if __name__ == "__main__":
    main()
