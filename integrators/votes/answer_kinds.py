"""What kind of answer a field takes, by the briefs' schemas, then by what is said: label, number, prose or list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from prefect_dispatch.integrators.promises import branches, inside
from prefect_dispatch.integrators.votes.voting import is_number, opinion
from prefect_dispatch.outputs import schema_of
from prefect_dispatch.references import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.integrators.votes.ballots import Ballot, Path
    from prefect_dispatch.models import Brief

AnswerKind = Literal["label", "number", "integer", "text", "list"]

LONGEST_LABEL = 80
"""Characters; a text longer than this, or with a line break, is prose."""


def answer_kind(ballots: Sequence[Ballot], promised: set[AnswerKind]) -> AnswerKind:
    """Return the kind of a field.

    Args:
        ballots: All ballots on the field.
        promised: What the briefs' schemas say of it.
    """
    values = [claim.value for ballot in ballots for claim in ballot.claims if claim.value is not None]
    if "label" in promised or not values:
        return "label"
    if all(map(is_number, values)):
        return "integer" if promised == {"integer"} else "number"
    if all(isinstance(value, list) for value in values):
        return "list"
    if not all(isinstance(value, str) for value in values):
        return "label"
    texts = cast("list[str]", values)
    if any(len(text) > LONGEST_LABEL or "\n" in text for text in texts):
        return "text"
    return "label" if any(map(_repeats, ballots)) else "text"


def promised_kinds(briefs: Sequence[Brief], path: Path) -> set[AnswerKind]:
    """Return what the briefs' schemas say of a field; empty if nothing.

    Example:
        >>> from prefect_dispatch.models import Brief
        >>> schema = {"type": "object", "properties": {"free": {"type": "boolean"}, "year": {"type": "integer"}}}
        >>> terms = Brief(name="terms", instructions="Read.", output=schema)
        >>> promised_kinds([terms], ("free",)), promised_kinds([terms], ("year",))
        ({'label'}, {'integer'})
    """
    found: set[AnswerKind] = set()
    for brief in briefs:
        if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
            continue
        root = schema_of(brief.output)
        here = [root] if root else []
        for name in path:
            here = inside(here, name, cast("dict[str, Any]", root))
        for part in branches(here, cast("dict[str, Any]", root)) if here else ():
            found |= _kinds(part)
    return found


def _kinds(schema: dict[str, Any]) -> set[AnswerKind]:
    if "enum" in schema or ("const" in schema and schema["const"] is not None):
        return {"label"}
    types: Any = schema.get("type", [])
    named = set(cast("list[str]", types if isinstance(types, list) else [types]))
    formed = "format" in schema or "pattern" in schema
    if "boolean" in named or (formed and (not named or "string" in named)):
        return {"label"}
    return {kind for kind in ("integer", "number") if kind in named}


def _repeats(ballot: Ballot) -> bool:
    """Return whether two agents say the same, or whether there is only one to say anything."""
    said = [opinion(claim.value) for claim in ballot.claims if claim.value is not None]
    return len(set(said)) < len(said)
