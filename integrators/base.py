"""What an integrator is: one method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from prefect_dispatch.ledger import LedgerRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome


@runtime_checkable
class Integrator(Protocol):
    """Merges outcomes into one value and says where each of them went.

    The result must not depend on the order of the outcomes. Whatever it returns is
    audited: one ledger row for each outcome, every finding in the value or named as
    removed, every field of the value traced to outcomes that say so.

    Example:
        >>> from prefect_dispatch.ledger import LedgerRow, Merge
        >>> class Count:
        ...     def merge(self, briefs, outcomes):
        ...         rows = [
        ...             LedgerRow(
        ...                 brief=o.brief, item=o.item, disposition="merged" if o.status == "succeeded" else o.status
        ...             )
        ...             for o in outcomes
        ...         ]
        ...         return Merge(value=sum(o.status == "succeeded" for o in outcomes), ledger=rows)
        >>> isinstance(Count(), Integrator)
        True
    """

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge the outcomes, failed and skipped ones included."""
        ...


def unanswered(outcome: Outcome) -> LedgerRow | None:
    """Return the ledger row of an outcome that failed or was skipped, or None if it succeeded."""
    if outcome.status == "succeeded":
        return None
    reason = f"{outcome.error.kind}: {outcome.error.message}" if outcome.error else ""
    return LedgerRow(brief=outcome.brief, item=outcome.item, disposition=outcome.status, reason=reason)
