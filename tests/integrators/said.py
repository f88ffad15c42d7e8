"""Short words for the tests of integrators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prefect_dispatch.models.outcome import Failure, Outcome

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prefect_dispatch.models.ledger import Merge


def say(item: str, value: JsonValue, *, brief: str = "terms", brief_first: int = 0, item_first: int = 0) -> Outcome:
    """Return an answer."""
    return Outcome(
        brief=brief,
        item=item,
        status="succeeded",
        value=value,
        brief_priority=brief_first,
        item_priority=item_first,
    )


def miss(item: str, status: Literal["failed", "skipped"] = "failed", *, brief: str = "terms") -> Outcome:
    """Return an outcome without an answer."""
    return Outcome(brief=brief, item=item, status=status, error=Failure(kind="timeout", message="No answer."))


def entries(merge: Merge) -> list[JsonValue]:
    """Return what stands in a merged value beside its gaps."""
    value: Any = merge.value
    [name] = value.keys() - {"gaps"}
    return list(value[name])
