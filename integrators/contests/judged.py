"""What follows from the matches of a tournament: ranking, evidence, and how far the judge can be trusted."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.integrators.contests.matches import evidence, matches_table
from prefect_dispatch.integrators.contests.ranking import Result, rank
from prefect_dispatch.integrators.contests.standings import Scored, merged
from prefect_dispatch.ledger import Flag, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.contests.contests import Contest
    from prefect_dispatch.integrators.contests.matches import Match
    from prefect_dispatch.integrators.contests.ranking import Ranking
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Outcome

_NAMED = 5


class Played(NamedTuple):
    """A contest and what was played in it."""

    contest: Contest
    """The contest."""
    matches: list[Match]
    """Its matches, in the order of their pairs."""
    ranking: Ranking
    """What follows from them."""


def judged(outcomes: Sequence[Outcome], contests: Sequence[Contest], matches: Sequence[Match], rules: str) -> Merge:
    """Return the merge that follows from matches, whatever their order.

    Args:
        outcomes: All outcomes.
        contests: The contests among them.
        matches: Every match, those that could not be judged included.
        rules: How they were drawn and judged.

    Raises:
        DispatchError: If there were matches, and none could be judged.
        KeyError: If a match is of no contest here, or of no variant in it.
    """
    lost = [match for match in matches if not match.counted]
    if matches and len(lost) == len(matches):
        failed = next(each for each in (lost[0].straight, lost[0].turned) if each.said == "failed")
        raise DispatchError(f"None of {len(matches)} matches could be judged; the first one: {failed.reason}")
    every = _played(contests, matches)
    merge = merged(outcomes, [_scored(each) for each in every], "bradley-terry")
    counted = [match for match in matches if match.counted]
    return merge.model_copy(
        update={
            "rules": rules,
            "flags": (*merge.flags, *_cycle_flags(every), *_judge_flags(counted)),
            "tables": (
                *merge.tables,
                matches_table([evidence(each.contest, match) for each in every for match in each.matches]),
                _judging(every),
                _cycles(every),
            ),
            "shortfalls": (*_lost(lost, len(matches)), *merge.shortfalls),
        }
    )


def _played(contests: Sequence[Contest], matches: Sequence[Match]) -> list[Played]:
    groups: dict[str, list[Match]] = defaultdict(list)
    for match in sorted(matches, key=lambda match: (match.contest, match.pair)):
        groups[match.contest].append(match)
    if unknown := groups.keys() - {contest.name for contest in contests}:
        raise KeyError(*sorted(unknown))
    return [
        Played(
            contest,
            groups[contest.name],
            rank(
                [variant.key for variant in contest.variants],
                [Result(*match.pair, match.winner) for match in groups[contest.name] if match.counted],
            ),
        )
        for contest in contests
    ]


def _scored(played: Played) -> Scored:
    contest, standings = played.contest, played.ranking.standings
    alone = len(contest.variants) == 1
    why = "there is no other variant to compare it with" if alone else "no match compares it with those that are"
    return Scored(
        contest,
        [
            (contest.variant(each.key), {name: figure for name, figure in each._asdict().items() if name != "key"})
            for each in standings
        ],
        [(contest.variant(key), why) for key in played.ranking.apart],
    )


def _cycle_flags(played: Sequence[Played]) -> Iterator[Flag]:
    at = 0
    for each in played:
        places = {standing.key: at + place for place, standing in enumerate(each.ranking.standings)}
        for cycle in each.ranking.cycles:
            variants = [each.contest.variant(key) for key in cycle]
            yield Flag(
                path=f"/ranking/{places[cycle[0]]}/rank",
                kind="cycle",
                text=variants[0].name,
                message=f"{_circle(each.contest, cycle)}: no order of these fits all their matches.",
                sources=tuple(ref for variant in variants for ref in variant.refs),
            )
        at += len(places)


def _judge_flags(counted: Sequence[Match]) -> Iterator[Flag]:
    turned = sum(match.contradicted for match in counted)
    if 2 * turned > len(counted):
        yield Flag(
            path="/ranking",
            kind="judge",
            text="",
            message=f"In {turned} of {len(counted)} matches the judge preferred the same place in both orders, that "
            "is, each variant once. Such matches are ties; ask another judge, or sharpen the criterion.",
        )


def _circle(contest: Contest, cycle: Sequence[str]) -> str:
    return " > ".join(contest.variant(key).name for key in (*cycle, cycle[0]))


def _judging(played: Sequence[Played]) -> Table:
    rows: list[dict[str, JsonValue]] = []
    for contest, matches, _ in played:
        counted = [match for match in matches if match.counted]
        said = [verdict.said for match in counted for verdict in (match.straight, match.turned)]
        rows.append(
            {
                "contest": contest.name,
                "variants": len(contest.variants),
                "pairs": len(contest.variants) * (len(contest.variants) - 1) // 2,
                "judged": len(counted),
                "failed": len(matches) - len(counted),
                "ties": sum(match.winner is None for match in counted),
                "contradicted": sum(match.contradicted for match in counted),
                "first_preferred": said.count("first"),
                "second_preferred": said.count("second"),
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


def _cycles(played: Sequence[Played]) -> Table:
    return Table(
        name="cycles",
        title="Circles",
        rows=tuple(
            {"contest": each.contest.name, "circle": _circle(each.contest, cycle), "length": len(cycle)}
            for each in played
            for cycle in each.ranking.cycles
        ),
        note="A shortest circle for each group of variants that beat each other in circles; `>` is `was preferred to`.",
    )


def _lost(lost: Sequence[Match], total: int) -> Iterator[str]:
    if lost:
        reasons = sorted(
            {each.reason for match in lost for each in (match.straight, match.turned) if each.said == "failed"}
        )
        more = f" and {len(reasons) - _NAMED} more reasons" if len(reasons) > _NAMED else ""
        why = "; ".join(reasons[:_NAMED]) + more
        yield f"{len(lost)} of {total} matches could not be judged in both orders ({why})."
