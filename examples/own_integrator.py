"""An integrator of your own: one method that makes one value of all outcomes.

Run:
    python examples/own_integrator.py

The merge says for every outcome where it went, and for every field of its value who said so. The flow
checks both: a row too few, or a value that no answer backs, and the run fails instead of lying.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from prefect_dispatch import Brief, Item, Merge, dispatch
from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Loser, Ref
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Ask, Outcome


class Shortest:
    """Keeps the shortest answer to each item, whichever brief it comes from."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:  # noqa: ARG002 -- the signature of every integrator
        """Return one answer for each item; the longer ones are overridden by it."""
        value: list[JsonValue] = []
        fields: list[FieldRow] = []
        ledger = [row for outcome in outcomes if (row := unanswered(outcome))]
        answered = sorted((o for o in outcomes if o.status == "succeeded"), key=lambda o: o.item)
        for item, group in groupby(answered, key=lambda o: o.item):
            # The brief's name breaks ties: the order of arrival must not.
            best, *rest = sorted(group, key=lambda o: (len(str(o.value)), o.brief))
            losers = tuple(Loser(value=o.value, sources=(Ref.of(o),)) for o in rest)
            path = f"/{len(value)}/value"
            fields.append(
                FieldRow(path=path, winner=best.value, losers=losers, rule="shortest", sources=(Ref.of(best),))
            )
            value.append({"brief": best.brief, "item": item, "value": best.value})
            ledger.append(LedgerRow(brief=best.brief, item=item, disposition="merged"))
            ledger += [
                LedgerRow(brief=o.brief, item=item, disposition="overridden", by=Ref.of(best), reason="shortest")
                for o in rest
            ]
        return Merge(value=value, ledger=tuple(ledger), fields=tuple(fields))


BRIEFS = [
    Brief(name="plain", instructions="Say plainly what {name} does."),
    Brief(name="vivid", instructions="Say with a picture what {name} does."),
]
ITEMS = [Item(key="cron", value={"name": "cron"}), Item(key="make", value={"name": "make"})]
ANSWERS = {
    ("plain", "cron"): "It runs commands at set times.",
    ("vivid", "cron"): "An alarm clock for commands.",
    ("plain", "make"): "It rebuilds what is out of date.",
    ("vivid", "make"): "A cook who only reheats the dishes that went cold.",
}


def answer(ask: Ask) -> str:
    """Answer as a model would, without one."""
    return ANSWERS[ask.brief.name, ask.item.key]


if __name__ == "__main__":
    report = dispatch(BRIEFS, ITEMS, executor=ScriptedExecutor(answer), integrator=Shortest())
    for row in report.fields:
        print(f"{row.sources[0]}: {row.winner}")
        print(*(f"    instead of {loser.sources[0]}: {loser.value}" for loser in row.losers), sep="\n")
