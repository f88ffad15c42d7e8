"""An executor of your own: whatever can answer, asked like any other agent.

Run:
    python examples/own_executor.py

This one needs no model: it looks for words. An executor is a `fingerprint` (everything about it that can
change an answer, and no secret) and one coroutine. Validation, re-asks, retries, time limits, the store of
answers and the ledger come from the flow, so that this class has to know nothing of them.
"""

from __future__ import annotations

from pathlib import Path

from prefect_dispatch import Ask, Brief, Item, Reply, Usage, dispatch
from prefect_dispatch.errors import RejectedError

LICENCES = Path(__file__).parent / "licenses" / "texts"


class KeywordCounter:
    """Counts how often each of some words stands in a text."""

    def __init__(self, *words: str) -> None:
        """Keep the words; other words would give other answers, so they belong to the fingerprint."""
        self.words = words
        self.fingerprint = f"keyword-counter-1:{','.join(words)}"

    async def answer(self, ask: Ask) -> Reply:
        """Return the counts.

        Raises:
            RejectedError: If the item is no text; other items may pass, and this one won't be retried.
        """
        if not isinstance(ask.item.value, str):
            raise RejectedError(f"Item {ask.item.key!r} is no text.", usage=Usage())
        text = ask.item.value.casefold()
        return Reply(value={word: text.count(word) for word in self.words}, model="keyword-counter", usage=Usage())


BRIEF = Brief(
    name="mentions",
    instructions="Count the words.",
    output={"type": "object", "additionalProperties": {"type": "integer"}},
)

if __name__ == "__main__":
    items = [
        Item(key=name, value=(LICENCES / f"{name}.txt").read_text(encoding="utf-8"))
        for name in ("ISC", "MIT", "Unlicense")
    ]
    items.append(Item(key="no-text", value=42))
    report = dispatch([BRIEF], items, executor=KeywordCounter("warranty", "copyright"))
    print(report.message)
    for row in report.fields:
        print(f"{row.sources[0].item}: {row.winner}")
