"""Bills as text: the rows of a table, and lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.models.bill import SPLITS, rows_paid, split_bill, sum_costs
from prefect_dispatch.reporting.progress import format_usd
from prefect_dispatch.security.escaping import count_noun, strip_control_chars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.models.bill import BillRow, Costs, Split

MAX_VALUES = 5
"""Most values of a column that a line names."""
NO_MODEL = "no model"
"""What stands for the model of calls whose model is unknown, or that asked none."""


def describe_cost(costs: Costs) -> str:
    """Return a cost as text; one that is unknown in part has the known part, and the number of other calls.

    Example:
        >>> from prefect_dispatch.models.bill import Costs
        >>> describe_cost(Costs(requests=3, cost_usd=None, known_usd=0.25, unpriced=2))
        '$0.2500 and 2 calls of unknown price'
    """
    if not costs.unpriced:
        return format_usd(costs.cost_usd)
    unknown = f"{count_noun(costs.unpriced, 'call')} of unknown price"
    return f"{format_usd(costs.known_usd)} and {unknown}" if costs.known_usd else unknown


def splits(rows: Sequence[BillRow]) -> Iterator[tuple[Split, dict[str, Costs]]]:
    """Yield the costs of rows by each column that has several values; nothing where all was free."""
    if sum_costs(rows).is_free:
        return
    for column in SPLITS:
        groups = split_bill(rows, column)
        if len(groups) > 1:
            yield column, groups


def bill_rows(rows: Sequence[BillRow]) -> list[tuple[object, ...]]:
    """Return the costs of rows by each column that has several values: column, value, requests, tokens and cost."""
    found: list[tuple[object, ...]] = []
    for column, groups in splits(rows):
        found += [
            (
                column,
                value or NO_MODEL,
                costs.requests,
                costs.prompt_tokens,
                costs.cached_tokens,
                costs.completion_tokens,
                costs.cost_usd if costs.cost_usd is not None else describe_cost(costs),
            )
            for value, costs in groups.items()
        ]
    return found


def describe_bill(rows: Sequence[BillRow]) -> Iterator[str]:
    """Yield lines on a bill: its columns with several values, and what was paid for before the run.

    Where no call has a price, as with a local model, there are none.
    """
    paid = rows_paid(rows, "run")
    total = sum_costs(paid)
    for column, groups in splits(paid) if total.known_usd or total.unpriced else ():
        dearest = sorted(groups.items(), key=lambda each: (-each[1].known_usd, -each[1].unpriced, each[0]))
        parts = [f"{value or NO_MODEL} {describe_cost(costs)}" for value, costs in dearest[:MAX_VALUES]]
        more = [f"{len(dearest) - MAX_VALUES} more"] if len(dearest) > MAX_VALUES else []
        yield strip_control_chars(f"By {column}: {', '.join([*parts, *more])}")
    if before := describe_paid_before(rows):
        yield f"Paid before, for answers from the store: {before}"


def describe_paid_before(rows: Sequence[BillRow]) -> str:
    """Return the cost of what was paid for before the run, for answers that it found in the store; empty for none."""
    stored = sum_costs(rows_paid(rows, "stored"))
    return "" if stored.is_free else describe_cost(stored)
