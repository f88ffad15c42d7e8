"""What a call can take and what it took, in whole units: money and tokens are never added as fractions."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prefect_dispatch.executors.base import Ceiling
    from prefect_dispatch.models import Usage

NANO = 10**9
"""Money is counted in billionths of a US dollar."""
SPARE = Fraction(5, 4)
"""How much is reserved for what was counted as one prompt token: the provider's tokenizer may count more."""


class Amount(NamedTuple):
    """What one call, or many, take.

    Example:
        >>> Amount(requests=1, prompt=10) + Amount(requests=1, nano_usd=5)
        Amount(requests=2, prompt=10, completion=0, nano_usd=5)
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    nano_usd: int = 0

    @property
    def tokens(self) -> int:
        """Tokens sent and received."""
        return self.prompt + self.completion

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override]  # no tuple is appended to an amount
        """Return the sum."""
        return Amount(
            self.requests + other.requests,
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.nano_usd + other.nano_usd,
        )

    def __sub__(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(
            self.requests - other.requests,
            self.prompt - other.prompt,
            self.completion - other.completion,
            self.nano_usd - other.nano_usd,
        )


NOTHING = Amount()


class Scale(NamedTuple):
    """By how much the calls of a model take more than was counted beforehand."""

    prompt: Fraction = SPARE
    completion: Fraction = Fraction(1)
    nano_usd: Fraction = SPARE

    def applied(self, counted: Amount) -> Amount:
        """Return what to reserve for a call."""
        if not any(counted[1:]):  # nothing was counted, as nothing is bounded
            return counted
        return Amount(counted.requests, *(math.ceil(one * by) for one, by in zip(counted[1:], self, strict=True)))

    def learned(self, counted: Amount, used: Amount) -> Scale:
        """Return the scale that would have been enough for this call too."""
        if not any(counted[1:]):
            return self
        seen = zip(self, counted[1:], used[1:], strict=True)
        return Scale(*(max(by, Fraction(took, said)) if said else by for by, said, took in seen))


def nano(usd: float) -> int:
    """Return an amount of money in billionths, rounded up.

    Example:
        >>> nano(0.1), nano(1e-12)
        (100000000, 1)
    """
    return math.ceil(Decimal(str(usd)) * NANO) if usd else 0


def counted(ceiling: Ceiling | None) -> Amount:
    """Return the most that a call takes, as far as that is known: one request at least."""
    if ceiling is None:
        return Amount(requests=1)
    return Amount(1, ceiling.prompt_tokens, ceiling.completion_tokens or 0, nano(ceiling.cost_usd or 0))


def used(usage: Usage) -> Amount:
    """Return what a call took, as far as it is known."""
    return Amount(usage.requests, usage.prompt_tokens, usage.completion_tokens, nano(usage.cost_usd or 0))
