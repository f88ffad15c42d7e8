"""Results of a tournament: rankings by a metric or an experiment, and the merge with its evidence and flags."""

from __future__ import annotations

import copy
from collections import defaultdict
from fractions import Fraction
from importlib import import_module
from itertools import groupby
from math import fsum, isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.integrators.base import gaps, unanswered
from prefect_dispatch.integrators.tournament.matches import match_row, matches_table
from prefect_dispatch.integrators.tournament.ranking import CONFIDENCE, MatchResult, rank_variants
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.models.imports import explain_misfit
from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Merge, Ref, Table
from prefect_dispatch.security.escaping import join_names, shorten
from prefect_dispatch.security.redaction import safe_message
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.json_values import pointer
from prefect_dispatch.sources import read_items
from prefect_dispatch.sources.tabular import table_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.integrators.tournament.matches import Contest, Match, Variant
    from prefect_dispatch.models.outcome import Outcome


Figures = dict[str, "JsonValue"]
"""The figures of a variant: `rank` and `score`, and what they are based on."""

_MAX_NAMES = 5
"""Names, or reasons, in one sentence; further ones are counted."""


class RankedContest(NamedTuple):
    """A contest with its ranking."""

    contest: Contest
    """The contest."""
    ranked: list[tuple[Variant, Figures]]
    """The ranked variants with their figures, `rank` and `score` among them, best first."""
    unranked: list[tuple[Variant, str]]
    """The variants that can't be ranked, each with the reason."""
    matches: Sequence[Match] = ()
    """The matches that a judge decided, in the order of their pairs."""
    cycles: Sequence[Sequence[str]] = ()
    """The keys of variants that beat each other in cycles, a shortest cycle for each group."""


def build_merge(
    outcomes: Sequence[Outcome],
    scored: Sequence[RankedContest],
    method: str,
    rules: str,
    *,
    flags: Iterable[Flag] = (),
    tables: Iterable[Table] = (),
    unjudged: Iterable[str] = (),
    unknown: Iterable[str] = (),
) -> Merge:
    """Return the merge of ranked contests.

    Args:
        outcomes: All outcomes.
        scored: The contests with their rankings.
        method: The name of the method that ranked them, for the rule of field rows: `tournament:<by>`.
        rules: The rules text of the merge.
        flags: Further flags.
        tables: Further tables, with the evidence.
        unjudged: Shortfalls of the judge.
        unknown: Shortfalls of the results of an experiment.
    """
    unranked = [(variant, reason) for each in scored for variant, reason in each.unranked]
    lists: dict[str, list[tuple[Variant, Figures]]] = {
        "ranking": [pair for each in scored for pair in each.ranked],
        "unranked": [(variant, {"reason": reason}) for variant, reason in unranked],
    }
    # Each entry is its outcome's names, the answer and the figures; the answer and each figure get a field row.
    value: dict[str, JsonValue] = {}
    fields: list[FieldRow] = []
    for name, entries in lists.items():
        value[name] = [{**each.refs[0].model_dump(), "value": each.value, **figures} for each, figures in entries]
        for at, (variant, figures) in enumerate(entries):
            fields.append(_field_row((name, at, "value"), variant.value, "kept", variant))
            fields += [
                _field_row((name, at, column), cell, f"tournament:{method}", variant)
                for column, cell in figures.items()
            ]
    return Merge(
        value={**value, "gaps": gaps(outcomes)},
        ledger=_ledger_rows(outcomes, scored),
        fields=tuple(fields),
        rules=rules,
        flags=(*_close_rank_flags(scored), *flags),
        tables=(_ab_test_table(scored), *_brief_tables(outcomes, scored), *tables),
        shortfalls=(
            *unjudged,
            *(f"{variant.name} is not ranked: {reason}." for variant, reason in unranked),
            *unknown,
            *_equal_answer_messages(scored),
        ),
    )


def _field_row(path: tuple[str | int, ...], winner: JsonValue, rule: str, variant: Variant) -> FieldRow:
    return FieldRow(path=pointer(*path), winner=winner, rule=rule, sources=variant.refs)


def _ledger_rows(outcomes: Iterable[Outcome], scored: Iterable[RankedContest]) -> tuple[LedgerRow, ...]:
    """Return the ledger: the first outcome of a variant is merged, those with equal answers are its duplicates."""
    rows: dict[Ref, LedgerRow] = {}
    for each in scored:
        reasons = [
            *((variant, f"rank {figures['rank']} of {len(each.ranked)}") for variant, figures in each.ranked),
            *((variant, f"not ranked: {reason}") for variant, reason in each.unranked),
        ]
        for variant, reason in reasons:
            first, *equal = variant.refs
            rows[first] = LedgerRow(**first.model_dump(), disposition="merged", reason=reason)
            for ref in equal:
                rows[ref] = LedgerRow(
                    **ref.model_dump(), disposition="duplicate_of", by=first, reason="equal variant, ranked once"
                )
    ordered = sorted(outcomes, key=lambda outcome: Ref.of(outcome).order)
    return tuple(unanswered(outcome) or rows[Ref.of(outcome)] for outcome in ordered)


def _close_rank_flags(scored: Sequence[RankedContest]) -> Iterator[Flag]:
    """Yield a flag for each first rank whose lead isn't significant."""
    for start, each in zip(_first_indices(scored), scored, strict=True):
        close = [v for v, figures in each.ranked if _is_close(figures.get("p_vs_best"))]
        if close:
            first, figures = each.ranked[0]
            yield Flag(
                path=pointer("ranking", start, "rank"),
                kind="rank",
                text=str(figures["rank"]),
                message=f"{first.name} is first, but at {CONFIDENCE:.0%} it can't be told apart from "
                f"{join_names([variant.name for variant in close], _MAX_NAMES)}.",
                sources=tuple(ref for variant in (first, *close) for ref in variant.refs),
            )


def _first_indices(scored: Sequence[RankedContest]) -> list[int]:
    """Return the index of each contest's first entry in the ranking, which has all contests."""
    return [sum(len(each.ranked) for each in scored[:at]) for at in range(len(scored))]


def _equal_answer_messages(scored: Iterable[RankedContest]) -> Iterator[str]:
    """Yield a shortfall for each group of briefs that gave equal answers where they should differ.

    Equal answers of a single brief to several items are no shortfall. A function may have split a variant.
    """
    groups = sorted(
        [str(ref) for ref in variant.refs]
        for each in scored
        for variant in each.contest.variants
        if len({ref.brief for ref in variant.refs}) > 1
    )
    for names in groups[:_MAX_NAMES]:
        yield f"{join_names(names, _MAX_NAMES)} are the same answer, so they count as one variant."
    if len(groups) > _MAX_NAMES:
        yield f"So are the answers of several briefs to {len(groups) - _MAX_NAMES} more items."


def _is_close(p_value: JsonValue) -> bool:
    return isinstance(p_value, (int, float)) and p_value >= 1 - CONFIDENCE


def _ab_test_table(scored: Iterable[RankedContest]) -> Table:
    """Return the table `ab-test`: the variants as A/B tools import them."""
    rows: list[dict[str, JsonValue]] = []
    for each in scored:
        no_figures: Figures = {"rank": None, "score": None}
        by_key: dict[str, tuple[Variant, Figures]] = {}
        for variant, figures in [*each.ranked, *((variant, no_figures) for variant, _ in each.unranked)]:
            # A variant that a metric split has one key, and several ranks: the best one comes first.
            by_key.setdefault(variant.key, (variant, figures))
        for (variant, figures), weight in zip(by_key.values(), _equal_weights(len(by_key)), strict=True):
            text = variant.value if isinstance(variant.value, str) else canonical_json(variant.value)
            rows.append(
                {
                    "experiment": each.contest.name,
                    "key": variant.key,
                    "name": variant.name,
                    "payload": text,
                    "weight_percent": weight,
                    "rank": figures["rank"],
                    "score": figures["score"],
                }
            )
    return Table(
        name="ab-test",
        title="For an A/B tool",
        rows=tuple(rows),
        note="`key`, `name` and `payload` are what PostHog, GrowthBook, Amplitude and the like call a variant's key, "
        "name and payload (or value); `weight_percent` is an equal split that sums to 100 in each experiment "
        "(GrowthBook: divide by 100; Optimizely: times 100). The key is made of the content, so the results of "
        "the experiment can be ranked under it.",
    )


def _equal_weights(count: int) -> list[float]:
    """Return equal shares in percent, with two decimals, that sum to 100; the first ones get the remainder."""
    share, rest = divmod(10_000, max(count, 1))
    return [(share + (at < rest)) / 100 for at in range(count)]


def _brief_tables(outcomes: Iterable[Outcome], scored: Sequence[RankedContest]) -> Iterator[Table]:
    """Yield the table `briefs` with the ranks of each brief over all items, if there are several of either."""
    names = sorted({outcome.brief for outcome in outcomes})
    if len(names) < 2 or len(scored) < 2:  # noqa: PLR2004 -- one brief, or one item, is in the ranking itself
        return
    ranks: dict[str, list[int]] = defaultdict(list)
    for each in scored:
        for variant, figures in each.ranked:
            for brief in {ref.brief for ref in variant.refs}:
                ranks[brief].append(int(str(figures["rank"])))
    yield Table(
        name="briefs",
        title="Briefs over all items",
        rows=tuple(
            {
                "brief": name,
                "ranked": len(ranks[name]),
                "first": ranks[name].count(1),
                "mean_rank": round(fsum(ranks[name]) / len(ranks[name]), 2) if ranks[name] else None,
            }
            for name in names
        ),
        note="On how many items each brief was ranked, on how many it came first (or shared the first rank), and its "
        "mean rank there. Ranks of items with fewer variants count alike.",
    )


def merge_judged_contests(
    outcomes: Sequence[Outcome], contests: Sequence[Contest], matches: Sequence[Match], rules: str
) -> Merge:
    """Return the merge of contests that a judge decided; the order of the matches doesn't matter.

    Args:
        outcomes: All outcomes.
        contests: The contests among them.
        matches: All matches, including those that could not be judged.
        rules: The rules text of the merge.

    Raises:
        DispatchError: If there were matches, and none could be judged.
        KeyError: If a match is of no contest here, or of no variant in it.
    """
    unjudged = [match for match in matches if not match.is_complete]
    if matches and len(unjudged) == len(matches):
        failed = next(each for each in (unjudged[0].in_order, unjudged[0].in_reverse) if each.choice == "failed")
        raise DispatchError(f"None of {len(matches)} matches could be judged; the first one: {failed.reason}")
    groups: dict[str, list[Match]] = {contest.name: [] for contest in contests}
    for match in sorted(matches, key=lambda match: (match.contest, match.pair)):
        groups[match.contest].append(match)
    scored = [rank_by_matches(contest, groups[contest.name]) for contest in contests]
    rows = [match_row(each.contest, match) for each in scored for match in each.matches]
    return build_merge(
        outcomes,
        scored,
        "bradley-terry",
        rules,
        flags=(*_cycle_flags(scored), *_judge_flags([match for match in matches if match.is_complete])),
        tables=(matches_table(rows), _judging_table(scored), _cycles_table(scored)),
        unjudged=_unjudged_messages(unjudged, len(matches)),
    )


def rank_by_matches(contest: Contest, matches: Sequence[Match]) -> RankedContest:
    """Rank the variants of a contest by its matches; those that no match compares with the others aren't ranked."""
    results = [MatchResult(*match.pair, match.winner) for match in matches if match.is_complete]
    ranking = rank_variants([variant.key for variant in contest.variants], results)
    alone = len(contest.variants) == 1
    why = "there is no other variant to compare it with" if alone else "no match compares it with those that are"
    ranked: list[tuple[Variant, Figures]] = [
        (contest.variant(each.key), {name: figure for name, figure in each._asdict().items() if name != "key"})
        for each in ranking.standings
    ]
    unranked = [(contest.variant(key), why) for key in ranking.unconnected]
    return RankedContest(contest, ranked, unranked, matches, ranking.cycles)


def _cycle_flags(scored: Sequence[RankedContest]) -> Iterator[Flag]:
    """Yield a flag for each group of variants that beat each other in cycles."""
    for start, each in zip(_first_indices(scored), scored, strict=True):
        index = {variant.key: start + place for place, (variant, _) in enumerate(each.ranked)}
        for cycle in each.cycles:
            variants = [each.contest.variant(key) for key in cycle]
            yield Flag(
                path=f"/ranking/{index[cycle[0]]}/rank",
                kind="cycle",
                text=variants[0].name,
                message=f"{_format_cycle(each.contest, cycle)}: no order of these fits all their matches.",
                sources=tuple(ref for variant in variants for ref in variant.refs),
            )


def _judge_flags(matches: Sequence[Match]) -> Iterator[Flag]:
    """Yield a flag if the judge contradicted itself in more than half of the matches."""
    contradicted = sum(match.is_contradictory for match in matches)
    if 2 * contradicted > len(matches):
        yield Flag(
            path="/ranking",
            kind="judge",
            text="",
            message=f"In {contradicted} of {len(matches)} matches the judge preferred the same place in both orders, "
            "that is, each variant once. Such matches are ties; ask another judge, or sharpen the criterion.",
        )


def _format_cycle(contest: Contest, cycle: Sequence[str]) -> str:
    return " > ".join(contest.variant(key).name for key in (*cycle, cycle[0]))


def _judging_table(scored: Iterable[RankedContest]) -> Table:
    """Return the table `judging`: for each contest, how many pairs were judged, and signs of position bias."""
    rows: list[dict[str, JsonValue]] = []
    for contest, _, _, matches, _ in scored:
        complete = [match for match in matches if match.is_complete]
        choices = [verdict.choice for match in complete for verdict in (match.in_order, match.in_reverse)]
        rows.append(
            {
                "contest": contest.name,
                "variants": len(contest.variants),
                "pairs": len(contest.variants) * (len(contest.variants) - 1) // 2,
                "judged": len(complete),
                "failed": len(matches) - len(complete),
                "ties": sum(match.winner is None for match in complete),
                "contradicted": sum(match.is_contradictory for match in complete),
                "first_preferred": choices.count("first"),
                "second_preferred": choices.count("second"),
            }
        )
    return Table(
        name="judging",
        title="How it was judged",
        rows=tuple(rows),
        note="`pairs` that are neither `judged` nor `failed` were not put to the judge. A judge without a bias prefers "
        "the first place as often as the second; `contradicted` counts matches in which it preferred the same "
        "place in both orders, which are among the `ties`.",
    )


def _cycles_table(scored: Iterable[RankedContest]) -> Table:
    """Return the table `cycles`: the variants that beat each other in cycles."""
    return Table(
        name="cycles",
        title="Circles",
        rows=tuple(
            {"contest": each.contest.name, "circle": _format_cycle(each.contest, cycle), "length": len(cycle)}
            for each in scored
            for cycle in each.cycles
        ),
        note="A shortest circle for each group of variants that beat each other in circles; `>` is `was preferred to`.",
    )


def _unjudged_messages(unjudged: Sequence[Match], total: int) -> Iterator[str]:
    """Yield the shortfall of the matches that could not be judged in both orders, if there are any."""
    if unjudged:
        reasons = sorted(
            {
                each.reason
                for match in unjudged
                for each in (match.in_order, match.in_reverse)
                if each.choice == "failed"
            }
        )
        more = f" and {len(reasons) - _MAX_NAMES} more reasons" if len(reasons) > _MAX_NAMES else ""
        why = "; ".join(reasons[:_MAX_NAMES]) + more
        yield f"{len(unjudged)} of {total} matches could not be judged in both orders ({why})."


MAX_TRIALS = 10**9
"""Most trials of a variant: up to this number SciPy's Fisher's exact test is exact and fast, beyond it is neither."""
_INTERVAL_DIGITS = 6
_MAX_SHOWN = 40
"""Characters of a malformed count that a message quotes."""


class Conversions(NamedTuple):
    """Results of an experiment for one variant."""

    trials: int
    """The number of those who were shown it."""
    conversions: int
    """The number of those who converted."""

    @property
    def rate(self) -> Fraction:
        """The share of those who converted; there must be trials."""
        return Fraction(self.conversions, self.trials)


def require_metric(metric: object, name: str) -> None:
    """Check that a metric can be called with a value and a key.

    Raises:
        JobError: If it can't be called so; the message has its name.
    """
    if why := explain_misfit(metric, "value", "key"):
        raise JobError(f"The metric {name!r} {why}.")


def rank_by_metric(contest: Contest, metric: Callable[[Any, str], Any]) -> RankedContest:
    """Rank the variants of a contest by a function; more is better.

    Args:
        contest: The variants.
        metric: Takes a variant's value and its item's key; returns a number. A variant for which
            it raises, or returns something else, is not ranked. Equal answers to several items are
            measured for each, and ranked separately where the figures differ.
    """
    every = [
        (part, result) for variant in contest.variants for result, part in _split_by_figure(variant, metric).items()
    ]
    figures = [(part, result) for part, result in every if isinstance(result, float)]
    unranked = [(part, result) for part, result in every if isinstance(result, str)]
    figures.sort(key=lambda pair: (-pair[1], pair[0].key))
    ranks = _shared_ranks([figure for _, figure in figures])
    ranked: list[tuple[Variant, Figures]] = [
        (variant, {"rank": rank, "score": figure}) for (variant, figure), rank in zip(figures, ranks, strict=True)
    ]
    return RankedContest(contest, ranked, unranked)


def _split_by_figure(variant: Variant, metric: Callable[[Any, str], Any]) -> dict[float | str, Variant]:
    """Split a variant by the metric's result for the items of its outcomes: a number, or the reason for none."""
    groups: dict[float | str, list[Ref]] = {}
    for item, refs in groupby(variant.refs, key=lambda ref: ref.item):  # they are sorted by item
        groups.setdefault(_call_metric(metric, variant.value, item), []).extend(refs)
    return {figure: variant._replace(refs=tuple(refs)) for figure, refs in groups.items()}


def _call_metric(metric: Callable[[Any, str], Any], value: JsonValue, item: str) -> float | str:
    """Return the metric's number for a value and an item, or why there is none."""
    try:
        figure = metric(copy.deepcopy(value), item)  # the user's function may change what it is given
        # Any number, NumPy's and decimals too; one that is too large for a float raises.
        number = float(figure) if hasattr(figure, "__float__") else nan
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the user's function may raise anything
        return f"the metric raised {safe_message(error)}"
    return number if isfinite(number) else f"the metric returned {_describe_result(figure)}, which is no finite number"


def _describe_result(figure: object) -> str:
    """Return a description of a function's result that is the same in every run (a `repr` may have an address)."""
    return repr(str(figure)[:80]) if isinstance(figure, (str, float, int, type(None))) else f"a {type(figure).__name__}"


def rank_by_conversion(contest: Contest, results: Mapping[str, Conversions]) -> RankedContest:
    """Rank the variants of a contest by their conversion rate, with Wilson's interval.

    `p_vs_best` is Fisher's exact test against the first variant, two-sided, not adjusted for the number of variants.

    Args:
        contest: The variants.
        results: The results of the experiment, by the variants' keys.
    """
    tried = [(variant, found) for variant in contest.variants if (found := results.get(variant.key)) and found.trials]
    tried.sort(key=lambda pair: (-pair[1].rate, pair[0].key))
    ranks = _shared_ranks([found.rate for _, found in tried])
    ranked: list[tuple[Variant, Figures]] = [
        (variant, {"rank": rank, **_conversion_figures(found, tried[0][1])})
        for (variant, found), rank in zip(tried, ranks, strict=True)
    ]
    unranked = [
        (variant, "nobody was shown it" if variant.key in results else f"the results have no row for {variant.key!r}")
        for variant in contest.variants
        if not (variant.key in results and results[variant.key].trials)
    ]
    return RankedContest(contest, ranked, unranked)


def _shared_ranks(scores: Iterable[float | Fraction]) -> list[int]:
    """Return the ranks of scores that are sorted, the best first; equal scores share a rank."""
    first: dict[float | Fraction, int] = {}
    return [first.setdefault(score, place) for place, score in enumerate(scores, 1)]


def _conversion_figures(results: Conversions, best: Conversions) -> Figures:
    """Return the figures of a variant; `p_vs_best` is None for the best one itself."""
    stats: Any = import_module("scipy.stats")
    interval = stats.binomtest(results.conversions, results.trials).proportion_ci(CONFIDENCE, method="wilson")
    table = [[each.conversions, each.trials - each.conversions] for each in (best, results)]
    return {
        "score": round(results.conversions / results.trials, _INTERVAL_DIGITS),
        "low": round(float(interval.low), _INTERVAL_DIGITS),
        "high": round(float(interval.high), _INTERVAL_DIGITS),
        "p_vs_best": None if results is best else round(float(stats.fisher_exact(table).pvalue), _INTERVAL_DIGITS),
        "trials": results.trials,
        "conversions": results.conversions,
    }


def read_results(file: str, folder: Path, key: str, trials: str, conversions: str) -> dict[str, Conversions]:
    """Return the results of an experiment from a file, by the variants' keys.

    Args:
        file: A CSV (`.csv`, `.tsv`), JSON Lines (`.jsonl`, `.ndjson`) or Parquet (`.parquet`) file.
        folder: The folder in which a relative path starts.
        key: The column with the variant's key.
        trials: The column with the number of those who were shown the variant.
        conversions: The column with the number of those who converted.

    Raises:
        JobError: If the file can't be read, lacks a column, has a key twice, or has impossible counts.
    """
    results: dict[str, Conversions] = {}
    for item in read_items(table_source(file, key, "The results"), folder):
        row: Any = item.value
        shown, done = (
            _read_count(row, column, f"The results {file!r}, row {item.key!r}") for column in (trials, conversions)
        )
        if done > shown:
            raise JobError(f"The results {file!r}, row {item.key!r}: {done} {conversions!r} of {shown} {trials!r}.")
        results[item.key] = Conversions(shown, done)
    return results


def _read_count(row: Mapping[str, JsonValue], column: str, where: str) -> int:
    """Return the count in a column of a row.

    Args:
        row: A row of the results.
        column: The column.
        where: The beginning of an error message: file and row.

    Raises:
        JobError: If the column is missing, or isn't a whole number from 0 to `MAX_TRIALS`.
    """
    if column not in row:
        raise JobError(f"{where}: no column {column!r}; {did_you_mean(column, list(row))}")
    value = row[column]
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    shown = shorten(repr(value), _MAX_SHOWN)
    if not text.isdecimal() or not text.isascii():
        raise JobError(f"{where}: {column!r} is {shown}, not a whole number from 0 on.")
    # `int` refuses, and is slow for, very long texts: their length is compared first.
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(MAX_TRIALS)) or int(digits) > MAX_TRIALS:
        raise JobError(
            f"{where}: {column!r} is {shown}, and the comparison is exact up to {MAX_TRIALS} only; give a sample."
        )
    return int(digits)
