"""What a tournament says of rivals that turned out equal: less was compared than was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.integrators.contests.contests import Contest
    from prefect_dispatch.ledger import Merge

_NAMED = 5


def with_equals(merge: Merge, contests: Sequence[Contest]) -> Merge:
    """Return a merge that falls short where briefs that should have differed gave one answer.

    Equal answers to several items of a single brief are no rivals that failed to differ.

    Args:
        merge: What the contests came to.
        contests: Who competed.
    """
    return merge.model_copy(update={"shortfalls": (*merge.shortfalls, *_equals(contests))})


def _equals(contests: Sequence[Contest]) -> Iterator[str]:
    groups = sorted(
        [str(ref) for ref in variant.refs]
        for contest in contests
        for variant in contest.variants
        if len({ref.brief for ref in variant.refs}) > 1
    )
    for names in groups[:_NAMED]:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{', '.join(names[:_NAMED])}{more} are the same answer, so they count as one variant."
    if len(groups) > _NAMED:
        yield f"So are the answers of several briefs to {len(groups) - _NAMED} more items."
