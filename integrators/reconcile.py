"""What holds before any merge: one outcome for each piece of work."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prefect_dispatch.errors import CoverageError
from prefect_dispatch.ledger import Ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect_dispatch.models import Outcome


def reconcile(work: Iterable[Ref], outcomes: Sequence[Outcome]) -> None:
    """Check that there is exactly one outcome for each piece of work.

    Args:
        work: Every (brief, item) that was to be asked; naming one twice changes nothing.
        outcomes: What came of it, in any order.

    Raises:
        CoverageError: If an outcome is missing, repeated or unknown.

    Example:
        >>> reconcile([Ref(brief="terms", item="mit.txt")], [])
        Traceback (most recent call last):
        ...
        prefect_dispatch.errors.CoverageError: Outcomes and work don't match; missing: terms/mit.txt.
    """
    asked = set(work)
    counts = Counter(map(Ref.of, outcomes))
    missing, unknown = asked - counts.keys(), counts.keys() - asked
    repeated = [ref for ref, count in counts.items() if count > 1]
    if missing or unknown or repeated:
        raise CoverageError(*(sorted(refs, key=lambda ref: ref.order) for refs in (missing, repeated, unknown)))
