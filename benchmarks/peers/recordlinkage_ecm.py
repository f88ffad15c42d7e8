"""Records that are the same, found by recordlinkage's ECM classifier, which learns without labels.

Reads and prints what `splink_dedupe` does. Pairs are candidates if they have the value of a field or the first four
letters of an identifying field in common; each field is compared by Jaro-Winkler similarity, from 0.85 on equal.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

EQUAL = 0.85

pandas: Any = import_module("pandas")
recordlinkage: Any = import_module("recordlinkage")


def find_pairs(identity: list[str], records: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of keys that are classified as matches."""
    fields = sorted({name for row in records.values() for name in row})
    table = pandas.DataFrame(
        [{name: row.get(name) or None for name in fields} for row in records.values()], index=[*records]
    )
    index = recordlinkage.Index()
    for name in fields:
        index.block(name)
    for name in identity:
        table[f"{name}, start"] = table[name].str[:4]
        index.block(f"{name}, start")
    pairs = index.index(table)
    compare = recordlinkage.Compare()
    for name in fields:
        compare.string(name, name, method="jarowinkler", threshold=EQUAL)
    found = recordlinkage.ECMClassifier().fit_predict(compare.compute(pairs, table))
    return [(min(pair), max(pair)) for pair in found]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps({"pairs": find_pairs(given["identity"], given["records"])}))
