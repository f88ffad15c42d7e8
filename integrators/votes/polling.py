"""The rules by which ballots are decided, all ballots on one field together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.integrators.crowd import Crowd, Vote, dawid_skene, wawa
from prefect_dispatch.integrators.votes.answer_kinds import AnswerKind, answer_kind, promised_kinds
from prefect_dispatch.integrators.votes.voting import (
    Verdict,
    counted,
    elected,
    gathered,
    medoid,
    middle,
    opinion,
    preferred,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.integrators.votes.ballots import Ballot, Path
    from prefect_dispatch.models import Brief

Counting = Literal["majority", "weighted", "dawid_skene"]
RuleName = Literal["auto", "majority", "weighted", "dawid_skene", "mean", "median", "medoid", "priority"]


@dataclass(frozen=True)
class Polls:
    """How a job's ballots are decided."""

    method: Counting
    """How labels are decided."""
    rules: Mapping[Path, RuleName]
    """The rule of a field, or of all fields inside one."""
    weights: Mapping[str, float]
    """Each brief's weight; none: by agreement with the majority."""

    def rule(self, path: Path) -> RuleName:
        """Return the rule for a field: its own, or that of the nearest field that it is in."""
        for length in range(len(path), 0, -1):
            if (rule := self.rules.get(path[:length])) is not None:
                return rule
        return "auto"


class Poll(NamedTuple):
    """One field, decided."""

    path: Path
    """The keys that lead to it."""
    kind: AnswerKind
    """What kind of answer it takes."""
    rule: str
    """How it was decided."""
    ballots: Sequence[Ballot]
    """Its ballots."""
    verdicts: Sequence[Verdict]
    """How each ended."""
    crowd: Crowd | None = None
    """What a model says of the agents, where one was asked."""


def poll(every: Sequence[Ballot], polls: Polls, briefs: Sequence[Brief]) -> list[Poll]:
    """Return the fields of all ballots, decided, in order of their paths.

    Args:
        every: All ballots of a job, in the order of the items.
        polls: How they are decided.
        briefs: Whose schemas say what a field holds.
    """
    fields: dict[Path, list[Ballot]] = defaultdict(list)
    for ballot in every:
        fields[ballot.path].append(ballot)
    return [_decided(path, fields[path], polls, briefs) for path in sorted(fields)]


def _decided(path: Path, ballots: Sequence[Ballot], polls: Polls, briefs: Sequence[Brief]) -> Poll:
    kind = answer_kind(ballots, promised_kinds(briefs, path))
    rule = polls.rule(path)
    if rule == "auto":
        rule = {"label": polls.method, "text": "medoid", "list": "elements"}.get(kind, "mean")
    crowd = None
    verdicts: list[Verdict]
    if rule == "dawid_skene" or (rule == "weighted" and not polls.weights):
        votes = [Vote(b.item, c.source.brief, opinion(c.value)) for b in ballots for c in b.claims]
        crowd = dawid_skene(votes) if rule == "dawid_skene" else wawa(votes)
        verdicts = [elected(ballot, crowd.scores[ballot.item], rule) for ballot in ballots]
    else:
        verdicts = [_verdict(ballot, rule, kind, polls.weights) for ballot in ballots]
    return Poll(path, kind, rule, ballots, verdicts, crowd)


def _verdict(ballot: Ballot, rule: str, kind: AnswerKind, weights: Mapping[str, float]) -> Verdict:
    if rule in ("mean", "median"):
        return middle(ballot, f"consensus:{rule}" + "_rounded" * (kind == "integer"))
    if rule == "priority":
        return preferred(ballot)
    silent = sum(claim.value is None for claim in ballot.claims)
    if 2 * silent > len(ballot.claims) or rule in ("majority", "weighted"):
        return elected(ballot, counted(ballot, weights if rule == "weighted" else None), rule)
    return gathered(ballot) if rule == "elements" else medoid(ballot)
