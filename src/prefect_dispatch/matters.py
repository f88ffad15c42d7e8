"""What people are asked to decide about a merge: one drop-down for each open proposal and each conflict.

What stands in a drop-down comes from agents, so an option is known by its number, is cut short,
and is taken back as one of the options that were offered, never as a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from prefect_dispatch.decisions import Choice, Decisions, Identity
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.inert import plain, refs, shown
from prefect_dispatch.strict import SOME, Strict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pydantic import JsonValue

    from prefect_dispatch.ledger import FieldRow, Proposal, Ref
    from prefect_dispatch.report import Report

MAX_MATTERS = 20
"""How many are asked at once."""
MAX_OPTIONS = 20
"""How many values one of them offers."""
MAX_LABEL = 80

OPEN = "leave open"
"""The option that decides nothing: the merge stays as it is, and the next run asks again."""

Locate = Callable[["FieldRow"], tuple[Identity, str] | None]
"""Returns the record, and the field of it, that a row is about; None where that can't, or need not, be decided on."""


class Matter(Strict):
    """One thing to decide."""

    title: str
    """The question, in a line."""
    why: str
    """Both sides, and what speaks for either, in a line."""
    options: dict[str, Decisions]
    """What each option decides; the first decides nothing."""

    @property
    def name(self) -> str:
        """What it is called in a form: the same for the same question."""
        decides: JsonValue = {label: decisions.model_dump(mode="json") for label, decisions in self.options.items()}
        return f"m{digest([self.title, decides])[:16]}"


class Form(Strict):
    """The matters that are asked together."""

    matters: Annotated[tuple[Matter, ...], SOME]
    """What is asked."""
    more: int = 0
    """How many others are open."""

    @property
    def name(self) -> str:
        """What it is called: the same for the same questions."""
        return digest([matter.name for matter in self.matters])[:16]

    def decided(self, answers: Mapping[str, object]) -> Decisions:
        """Return what was decided; what is no option that was offered decides nothing."""
        decisions = Decisions()
        for matter in self.matters:
            decisions = decisions.plus(matter.options.get(str(answers.get(matter.name)), Decisions()))
        return decisions

    def titles(self, answers: Mapping[str, object], decisions: Decisions) -> tuple[str, ...]:
        """Return the titles of the matters on which some answers made some decisions.

        Args:
            answers: The answers to the form.
            decisions: Some of what they decided.
        """
        made = [
            (matter.title, matter.options.get(str(answers.get(matter.name)), Decisions())) for matter in self.matters
        ]
        return tuple(
            title
            for title, each in made
            if any(pair in decisions.same for pair in each.same)
            or any(pair in decisions.different for pair in each.different)
            or any(choice in decisions.fields for choice in each.fields)
        )

    def lines(self) -> str:
        """Return the matters as the lines of a decisions file, for people to change: each as the merge proposes it.

        Each pair stands under `same`. Of a field's values the one that the rule keeps stands there, the others below it
        as comments.
        """
        pairs = [pair for matter in self.matters for each in matter.options.values() for pair in each.same]
        lines = Decisions(same=tuple(pairs)).text().splitlines()
        values = [[each for each in matter.options.values() if each.fields] for matter in self.matters]
        for offered in filter(None, values):
            written = [each.text().splitlines()[1] for each in offered]
            lines += [*(() if "fields:" in lines else ("fields:",)), written[0], *(f"# {each}" for each in written[1:])]
        return "\n".join(lines)

    def description(self) -> str:
        """Return what stands above the form, in Markdown; nothing in it comes from agents."""
        more = f" {self.more} more are open and come after these." if self.more else ""
        return (
            f"**{len(self.matters)} to decide.**{more} What you decide is kept in the decisions file and used by every "
            "later run. What you leave open stays as the rules have it, and is asked again by the next run."
        )


def form(report: Report, locate: Locate, passed: Collection[str] = ()) -> Form | None:
    """Return what a report leaves to decide, or None if that is nothing.

    Args:
        report: The report.
        locate: Says which conflicts can be decided on.
        passed: The names of matters that are not to be asked.
    """
    found = [_proposal(each) for each in report.proposals]
    found += [_conflict(row, *place) for row in report.fields if row.losers and (place := locate(row))]
    matters = [matter for matter in found if matter and matter.name not in passed]
    return Form(matters=tuple(matters[:MAX_MATTERS]), more=len(matters[MAX_MATTERS:])) if matters else None


def _proposal(proposal: Proposal) -> Matter | None:
    left, right = proposal.left, proposal.right
    if not isinstance(left, dict) or not isinstance(right, dict):
        return None  # of an integrator of the user's own: there are no words for it in a decisions file
    sides = (
        f"{_short(_name(side))} (from {_short(refs(sources))})"
        for side, sources in ((left, proposal.left_sources), (right, proposal.right_sources))
    )
    return Matter(
        title=f"One or two: {_short(_name(left))} | {_short(_name(right))}",
        why=f"{' or '.join(sides)}. {proposal.score:.3f} alike. {_short(proposal.why)}",
        options={
            OPEN: Decisions(),
            "same": Decisions(same=((left, right),)),
            "different": Decisions(different=((left, right),)),
        },
    )


def _conflict(row: FieldRow, record: Identity, field: str) -> Matter:
    values: list[tuple[JsonValue, Iterable[Ref]]] = [(row.winner, row.sources)]
    values += [(loser.value, loser.sources) for loser in row.losers]
    offered = values[:MAX_OPTIONS]
    cut = f" {len(offered)} of {len(values)} values are offered here." if offered != values else ""
    return Matter(
        title=f"{_short(field)} of {_short(_name(record))}",
        why=f"The rule {_short(row.rule)} keeps {_short(shown(row.winner))} (from {_short(refs(row.sources))}).{cut}",
        options={OPEN: Decisions()}
        | {
            f"{at}. {_short(shown(value))} (from {_short(refs(sources))})": Decisions(
                fields=(Choice(record=record, field=field, value=value),)
            )
            for at, (value, sources) in enumerate(offered, 1)
        },
    )


def _name(identity: Identity) -> str:
    return ", ".join(map(shown, identity.values()))


def _short(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= MAX_LABEL else f"{line[: MAX_LABEL - 1]}…"
