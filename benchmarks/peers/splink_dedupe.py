"""Records that are the same, found by splink on DuckDB with a general set-up that no set was used to choose.

Reads `{"identity": [field, …], "records": {key: {field: text}}}` from the file of its argument, and prints the pairs of
keys that end in one cluster, as JSON. Fields are compared by Jaro-Winkler similarity (0.9 and 0.7), pairs are
candidates if they have the value of a field or the first four letters of an identifying field in common, the model is
trained by expectation maximization without labels, and pairs are clustered at a probability of a match of 0.5.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import redirect_stdout, suppress
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

SEED = 0
LIKELY = 0.5
MAX_PAIRS = 1e6

pandas: Any = import_module("pandas")
splink: Any = import_module("splink")
comparisons: Any = import_module("splink.comparison_library")
exceptions: Any = import_module("splink.internals.exceptions")


def find_pairs(identity: list[str], records: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of keys that end in one cluster."""
    fields = sorted({name for row in records.values() for name in row})
    columns = {name: f"f{at}" for at, name in enumerate(fields)}  # names of fields are no identifiers of SQL
    table = pandas.DataFrame(
        [{"key": key, **{columns[name]: row.get(name) or None for name in fields}} for key, row in records.items()]
    )
    rules = [splink.block_on(columns[name]) for name in fields]
    rules += [splink.block_on(f"substr({columns[name]}, 1, 4)") for name in identity]
    settings = splink.SettingsCreator(
        link_type="dedupe_only",
        unique_id_column_name="key",
        comparisons=[comparisons.JaroWinklerAtThresholds(column, [0.9, 0.7]) for column in columns.values()],
        blocking_rules_to_generate_predictions=rules,
    )
    linker = splink.Linker(table, settings, splink.DuckDBAPI())
    linker.training.estimate_u_using_random_sampling(max_pairs=MAX_PAIRS, seed=SEED)
    for rule in rules:  # a rule says nothing about its own fields, so each is trained by the others
        with suppress(exceptions.EMTrainingException):  # too few pairs have the value in common
            linker.training.estimate_parameters_using_expectation_maximisation(rule)
    likely = linker.inference.predict(threshold_match_probability=LIKELY)
    clustered = linker.clustering.cluster_pairwise_predictions_at_threshold(likely, LIKELY)
    clusters: dict[str, list[str]] = defaultdict(list)
    for row in clustered.as_record_dict():
        clusters[row["cluster_id"]].append(row["key"])
    return [pair for keys in clusters.values() for pair in combinations(sorted(keys), 2)]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with redirect_stdout(sys.stderr):  # splink prints advice
        found = find_pairs(given["identity"], given["records"])
    print(json.dumps({"pairs": found}))
