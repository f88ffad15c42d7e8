"""What preflight finds, and what it means for a run."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prefect_dispatch.errors import DependenceError
from prefect_dispatch.ledger import Ref
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHOWN = 20
"""How many findings are kept; the rest is counted."""

Kind = Literal["name", "key", "output", "item", "write", "read", "resource"]
"""What ties two pieces of work: a name, a key, an output, an item that needs another, a file, a resource."""

MENDABLE: frozenset[Kind] = frozenset({"write", "read", "resource"})
"""What running one after the other mends; the rest is refused in any case."""


class Finding(Strict):
    """Two pieces of work that are not independent of each other."""

    kind: Kind
    """What they share."""
    first: Ref
    """The one that would have to come first, or comes first in order."""
    second: Ref
    """The other; the same again if two items have one key, or two briefs one name."""
    on: str
    """The globs, the resource, the key, or the words that tie them."""
    message: str
    """The pair and the way out, in a sentence."""


class Independence(Strict):
    """Whether the work is independent, and what the scheduler must keep to if it isn't.

    All of it is independent of the order of briefs and items.

    Example:
        >>> Independence().findings
        ()
    """

    findings: tuple[Finding, ...] = ()
    """The first findings: those that can't be serialised, then by kind and order."""
    more: int = Field(default=0, ge=0)
    """How many findings there are beyond these."""
    locks: dict[Ref, frozenset[str]] = Field(default_factory=dict[Ref, frozenset[str]], repr=False)
    """Names that a piece of work holds while it runs: two that share one never run at once."""
    stages: dict[Ref, int] = Field(default_factory=dict[Ref, int], repr=False)
    """When work runs that reads what other work writes: after all of the lower stages ended. Unnamed work: 0."""


def require_independence(independence: Independence, on_dependence: Literal["refuse", "serialize"]) -> None:
    """Refuse work that isn't independent.

    Args:
        independence: What preflight found.
        on_dependence: `refuse`, or `serialize` what can be run one after the other.

    Raises:
        DependenceError: If there are findings; for `serialize`, if there are some that no order can mend.
    """
    counted = [
        finding for finding in independence.findings if on_dependence == "refuse" or finding.kind not in MENDABLE
    ]
    if counted:
        more = [f"And {independence.more:,} more."] if independence.more else []
        raise DependenceError([*_told(counted), *more])


def _told(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the sentence of each finding; a way out that the next one has, too, is told there."""
    parts = [finding.message.rpartition("; ") for finding in findings]
    for (pair, _, way_out), (_, _, following) in zip_longest(parts, parts[1:], fillvalue=("", "", "")):
        yield f"{pair}." if pair and way_out == following else f"{pair}; {way_out}" if pair else way_out
