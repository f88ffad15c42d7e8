"""Variants ranked without a judge: by a function of the user's, or by what visitors did."""

from __future__ import annotations

import copy
from fractions import Fraction
from importlib import import_module
from itertools import groupby
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.callables import misfit
from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.contests.ranking import SURE
from prefect_dispatch.integrators.contests.standings import Scored
from prefect_dispatch.scrub import told
from prefect_dispatch.sources import Csv, JsonLines, Parquet, read_items
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.contests.contests import Contest, Variant
    from prefect_dispatch.integrators.contests.standings import Figures
    from prefect_dispatch.ledger import Ref
    from prefect_dispatch.sources import Source

MOST_TRIALS = 10**9
"""Up to so many trials of two variants Fisher's test is exact in SciPy, and quick; beyond, it is neither."""

_DIGITS = 6
_SHOWN = 40


class Conversions(NamedTuple):
    """What visitors did who were shown a variant."""

    trials: int
    """How many were shown it."""
    conversions: int
    """How many of them did what was hoped for."""


def require_metric(metric: object, name: str) -> None:
    """Check that a metric can be called with a value and a key.

    Raises:
        JobError: If it can't; the message has its name.
    """
    if why := misfit(metric, "value", "key"):
        raise JobError(f"The metric {name!r} {why}.")


def measured(contest: Contest, metric: Callable[[Any, str], Any]) -> Scored:
    """Return the variants of a contest by what a function says of each; more is better.

    Args:
        contest: The variants.
        metric: Takes a variant's value and its item's key; returns a number. A variant for which
            it raises, or returns something else, is not ranked. Equal answers to several items are
            measured for each, and rank apart where the figures differ.
    """
    every = [(part, found) for variant in contest.variants for found, part in _parts(variant, metric).items()]
    figures = [(part, found) for part, found in every if isinstance(found, float)]
    unranked = [(part, found) for part, found in every if isinstance(found, str)]
    figures.sort(key=lambda pair: (-pair[1], pair[0].key))
    ranked: list[tuple[Variant, Figures]] = [
        (variant, {"rank": 1 + sum(other > figure for _, other in figures), "score": figure})
        for variant, figure in figures
    ]
    return Scored(contest, ranked, unranked)


def _parts(variant: Variant, metric: Callable[[Any, str], Any]) -> dict[float | str, Variant]:
    """Return the outcomes of a variant for which the metric says the same, by the number, or by why there is none."""
    found: dict[float | str, list[Ref]] = {}
    for item, refs in groupby(variant.refs, key=lambda ref: ref.item):  # which stand in the order of their items
        found.setdefault(_figure(metric, variant.value, item), []).extend(refs)
    return {figure: variant._replace(refs=tuple(refs)) for figure, refs in found.items()}


def _figure(metric: Callable[[Any, str], Any], value: JsonValue, item: str) -> float | str:
    try:
        figure = metric(copy.deepcopy(value), item)
        # Any number, NumPy's and decimals too; one that is too large for a float raises.
        number = float(figure) if hasattr(figure, "__float__") else nan
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the user's function may raise anything
        return f"the metric raised {told(error)}"
    return number if isfinite(number) else f"the metric returned {_named(figure)}, which is no finite number"


def _named(figure: object) -> str:
    """Return what a function returned in words that don't change from run to run."""
    return repr(str(figure)[:80]) if isinstance(figure, (str, float, int, type(None))) else f"a {type(figure).__name__}"


def converted(contest: Contest, results: Mapping[str, Conversions]) -> Scored:
    """Return the variants of a contest by their rate of conversion, with Wilson's interval.

    `p_vs_best` is Fisher's exact test against the first one, two-sided, not adjusted for the number of variants.
    """
    tried = [(variant, found) for variant in contest.variants if (found := results.get(variant.key)) and found.trials]
    tried.sort(key=lambda pair: (-Fraction(pair[1].conversions, pair[1].trials), pair[0].key))
    rates = [Fraction(found.conversions, found.trials) for _, found in tried]
    ranked: list[tuple[Variant, Figures]] = [
        (variant, {"rank": 1 + sum(rate > own for rate in rates), **_figures(found, tried[0][1] if at else None)})
        for at, ((variant, found), own) in enumerate(zip(tried, rates, strict=True))
    ]
    unranked = [
        (variant, "nobody was shown it" if variant.key in results else f"the results have no row for {variant.key!r}")
        for variant in contest.variants
        if not (variant.key in results and results[variant.key].trials)
    ]
    return Scored(contest, ranked, unranked)


def _figures(found: Conversions, best: Conversions | None) -> Figures:
    stats: Any = import_module("scipy.stats")
    interval = stats.binomtest(found.conversions, found.trials).proportion_ci(SURE, method="wilson")
    table = [[each.conversions, each.trials - each.conversions] for each in (best or found, found)]
    return {
        "score": round(found.conversions / found.trials, _DIGITS),
        "low": round(float(interval.low), _DIGITS),
        "high": round(float(interval.high), _DIGITS),
        "p_vs_best": round(float(stats.fisher_exact(table).pvalue), _DIGITS) if best else None,
        "trials": found.trials,
        "conversions": found.conversions,
    }


def read_results(file: str, folder: Path, key: str, trials: str, conversions: str) -> dict[str, Conversions]:
    """Return the results of a file by the key of the variant.

    Args:
        file: A CSV (`.csv`, `.tsv`), JSON Lines (`.jsonl`, `.ndjson`) or Parquet (`.parquet`) file.
        folder: Where a relative path starts.
        key: The column of the variant's key.
        trials: The column of how many were shown it.
        conversions: The column of how many of them converted.

    Raises:
        JobError: If it can't be read, lacks a column, has a key twice, or counts that can't be.
    """
    sources: dict[str, Callable[[], Source]] = {
        ".csv": lambda: Csv(csv=file, key=key),
        ".tsv": lambda: Csv(csv=file, key=key, delimiter="\t"),
        ".jsonl": lambda: JsonLines(jsonl=file, key=key),
        ".ndjson": lambda: JsonLines(jsonl=file, key=key),
        ".parquet": lambda: Parquet(parquet=file, key=key),
    }
    suffix = Path(file).suffix.lower()
    if suffix not in sources:
        raise JobError(f"The results {file!r} are in no known form; name a file that ends in {', '.join(sources)}.")
    found: dict[str, Conversions] = {}
    for item in read_items(sources[suffix](), folder):
        row: Any = item.value
        shown, done = (
            _count(row, column, f"The results {file!r}, row {item.key!r}") for column in (trials, conversions)
        )
        if done > shown:
            raise JobError(f"The results {file!r}, row {item.key!r}: {done} {conversions!r} of {shown} {trials!r}.")
        found[item.key] = Conversions(shown, done)
    return found


def _count(row: Mapping[str, JsonValue], column: str, where: str) -> int:
    if column not in row:
        raise JobError(f"{where}: no column {column!r}; {nearest(column, list(row))}")
    value = row[column]
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    text = "" if isinstance(whole, bool) else str(whole).strip()
    shown = said if len(said := repr(value)) <= _SHOWN else f"{said[:_SHOWN]}…"
    if not text.isdecimal() or not text.isascii():
        raise JobError(f"{where}: {column!r} is {shown}, not a whole number from 0 on.")
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(MOST_TRIALS)) or int(digits) > MOST_TRIALS:
        raise JobError(
            f"{where}: {column!r} is {shown}, and the comparison is exact up to {MOST_TRIALS} only; give a sample."
        )
    return int(digits)


def strangers(contests: Sequence[Contest], results: Mapping[str, Conversions]) -> list[str]:
    """Return the keys in results that are of no variant."""
    return sorted(results.keys() - {variant.key for contest in contests for variant in contest.variants})
