"""A server whose faults are known word by word, and what a run over it has to come to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect_dispatch import LLM, Limits, dispatch
from prefect_dispatch.errors import DispatchFailed
from tests.faults.lives import SIZES
from tests.openai_server import (
    CUT,
    HTML,
    HTML_ERROR,
    LONG,
    MALFORMED,
    RESET,
    Behaviour,
    document,
    failure,
    share,
)

if TYPE_CHECKING:
    from prefect_dispatch import Report
    from tests.openai_server import Behave

GOOD = Behaviour(content='{"size": 3}')
NONSENSE = Behaviour(content="About three.")
MIXED = (failure(500), CUT, RESET, MALFORMED, HTML, HTML_ERROR, NONSENSE, LONG)


def number(request: dict[str, Any]) -> int:
    """Return the number of the word that a request is about."""
    found = re.search(r"word-(\d+)", document(request))
    assert found
    return int(found[1])


def mixed(request: dict[str, Any], n: int) -> Behaviour:
    """Fail a tenth of all calls, in a way that depends on the word and how often it was asked."""
    if share(request, f"fails {n}") >= 0.1:
        return GOOD
    return MIXED[int(share(request, f"how {n}") * len(MIXED))]


@dataclass
class Patient:
    """A server that is ill until it is cured, and knows whom it has answered."""

    ill: Behave
    cured: bool = False
    answered: set[int] = field(default_factory=set[int])
    """The words that were answered well."""
    asked_again: int = 0
    """Requests for what had been answered well."""

    def __call__(self, request: dict[str, Any], n: int) -> Behaviour:
        """Answer as the illness has it."""
        word = number(request)
        self.asked_again += word in self.answered
        said = GOOD if self.cured else self.ill(request, n)
        if said is GOOD:
            self.answered.add(word)
        return said


def run(url: str, words: int, limits: Limits, **executor: Any) -> Report:  # noqa: ANN401 -- of an LLM
    """Return the report of a run over so many words, however it ended."""
    who = LLM(model="openai/test", api_base=url, **executor)
    try:
        return dispatch([SIZES], [f"word-{at}" for at in range(words)], executor=who, limits=limits)
    except DispatchFailed as error:
        return error.report


def require_accounts(report: Report, words: int) -> None:
    """Check that every word has one row, one outcome, and an answer or a gap with its reason."""
    keys = sorted(f"word-{at}" for at in range(words))
    assert sorted(row.item for row in report.ledger) == keys
    assert sorted(outcome.item for outcome in report.outcomes) == keys
    value: Any = report.value or {"answers": []}
    merged = [each["item"] for each in value["answers"]]
    assert sorted([*merged, *(gap.item for gap in report.gaps)]) == keys
    told = {row.item: row.disposition for row in report.ledger}
    assert {gap.item: gap.status for gap in report.gaps} == {item: end for item, end in told.items() if end != "merged"}
