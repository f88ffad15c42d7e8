"""Sources weighted by how often they agree: the rule `trust`.

A source's weight is the share of its claims that most sources agree with (Wawa, worker agreement
with aggregate, by crowd-kit); what has the greatest weight together stands. Only fields where two
sources or more say something, and one value has more of them than any other, tell anything about
anybody: a tie would only repeat the order of preference.

Why Wawa: its weights are shares that a reviewer can count again, and it needs no labels that
recur from field to field, as Dawid and Skene's model does. Where they do recur, take `Consensus`:
`benchmarks/consensus.py` shows both on one data set.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.crowd import Vote, require_crowd_kit, wawa
from prefect_dispatch.ledger import Ref, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rules import Claim, Source
    from prefect_dispatch.models import Outcome

UNKNOWN = 0.5
"""The weight of a source about which nothing can be told."""


def telling(votes: Iterable[Vote]) -> list[Vote]:
    """Return the votes from which something can be told about the sources, in one order, each once.

    Example:
        >>> telling([Vote("alone", "a", "x"), Vote("tie", "a", "x"), Vote("tie", "b", "y")])
        []
    """
    said: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for vote in votes:
        said[vote.item][vote.opinion].add(vote.agent)
    found: list[Vote] = []
    for item in sorted(said):
        backing = sorted((len(agents) for agents in said[item].values()), reverse=True)
        sources = set[str]().union(*said[item].values())
        if len(sources) > 1 and backing[0] > max(backing[1:], default=0):
            found += [Vote(item, agent, opinion) for opinion, agents in said[item].items() for agent in agents]
    return sorted(found)


def weights(votes: Iterable[Vote]) -> dict[str, float]:
    """Return how often each source agrees with most of the others, from 0 to 1.

    Args:
        votes: What sources (`agent`) say (`opinion`) of fields (`item`), in any order.

    Returns:
        The sources' weights, by name; a source about which nothing can be told is missing.

    Raises:
        JobError: If crowd-kit isn't installed.

    Example:
        >>> says = {"a": "xxy", "b": "xxx", "c": "xyx"}
        >>> weights(Vote(str(at), source, value) for source, values in says.items() for at, value in enumerate(values))
        {'a': 0.666667, 'b': 1.0, 'c': 0.666667}
    """
    found = telling(votes)
    if not found:
        return {}
    require_crowd_kit("The rule 'trust'")
    # By its place among the values of its field alone, not by its text, which may be long: what is
    # compared are values of one field.
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for vote in found:
        places[vote.item].setdefault(vote.opinion, len(places[vote.item]))
    numbered = [vote._replace(opinion=str(places[vote.item][vote.opinion])) for vote in found]
    skills = wawa(numbered).skills
    return {source: round(skills[source], 6) for source in sorted(skills)}


def trusted(said: Sequence[tuple[str, str]], known: Mapping[str, float]) -> str:
    """Return the value that the greatest weight stands behind; of equals the one that is said first.

    Args:
        said: Source and value, in order of preference.
        known: The sources' weights; `UNKNOWN` for those that are missing.

    Example:
        >>> trusted([("a", "x"), ("b", "y"), ("c", "y")], {"a": 0.9, "b": 0.3, "c": 0.4})
        'x'
    """
    backing: dict[str, set[str]] = {}
    for source, value in said:
        backing.setdefault(value, set()).add(source)
    return max(backing, key=lambda value: round(math.fsum(known.get(each, UNKNOWN) for each in backing[value]), 6))


class Trust(NamedTuple):
    """What is known of the sources."""

    of: Source
    """What counts as one."""
    names: Mapping[Ref, str]
    """The source of each outcome."""
    weights: Mapping[str, float]
    """The sources' weights."""
    claims: Mapping[str, int]
    """How many claims of each told something."""

    def decide(self, claims: Sequence[Claim]) -> JsonValue:
        """Return what the greatest weight stands behind."""
        text = trusted([(self.names[claim.source], claim.text) for claim in claims], self.weights)
        return next(claim.value for claim in claims if claim.text == text)

    def rows(self) -> list[dict[str, JsonValue]]:
        """Return the sources for a table; those of most weight first."""
        sources = sorted({*self.names.values()}, key=lambda name: (-self.weights.get(name, UNKNOWN), name))
        return [
            {
                "of": self.of,
                "source": name,
                "weight": self.weights.get(name, UNKNOWN),
                "claims": self.claims.get(name, 0),
                "agreements": round(self.weights.get(name, 0) * self.claims.get(name, 0)),
            }
            for name in sources
        ]


def counts_as(of: Source | None, outcomes: Iterable[Outcome]) -> Source:
    """Return what counts as a source: what a rule says, else the item if all outcomes are of one brief, else the brief.

    One brief for many files: it is the files that differ. Several briefs: it is they who were asked the same.
    """
    return of or ("item" if len({outcome.brief for outcome in outcomes}) == 1 else "brief")


def learn(fields: Iterable[Sequence[Claim]], outcomes: Iterable[Outcome], of: Source) -> Trust:
    """Return what can be told about the sources of some claims.

    Args:
        fields: For each field the claims to it.
        outcomes: All outcomes.
        of: What counts as a source.
    """
    names = {Ref.of(o): str(getattr(o, of)) for o in outcomes if o.status == "succeeded"}
    votes = [Vote(str(at), names[claim.source], claim.text) for at, claims in enumerate(fields) for claim in claims]
    return Trust(of, names, weights(votes), Counter(vote.agent for vote in telling(votes)))


def table(known: Iterable[Trust]) -> Table:
    """Return the sources and their weights, as the report shows them."""
    return Table(
        name="trust",
        title="How far each source is trusted",
        rows=tuple(row for each in known for row in each.rows()),
        note=(
            "The weight is the share of a source's claims that most sources agree with. Claims counted are those to "
            "fields decided by `trust` on which two sources or more say something and one value has more of them "
            f"than any other; a source without any has the weight {UNKNOWN}."
        ),
    )
