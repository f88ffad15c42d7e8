"""Words, each with a number of its own, at a server that knows them; for some of them it must be asked twice."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from tests.openai_server import Behaviour, document, share

if TYPE_CHECKING:
    from prefect_dispatch import Report
    from tests.openai_server import OpenAIServer

AWKWARD = 0.15
"""The share of the words whose first answer is invalid."""
LONGEST_S = 20.0
"""How long to wait for calls."""


def _number(request: dict[str, Any]) -> int:
    """Return the number that a request is about."""
    found = re.search(r"word-(\d+)", document(request))
    assert found
    return int(found[1])


def sizes(request: dict[str, Any], n: int) -> Behaviour:
    """Answer after a moment; for some words an invalid answer comes first, until it was sent back."""
    first = sum(message["role"] == "user" for message in request["messages"]) == 1
    content = "Hm." if first and share(request) < AWKWARD else f'{{"size": {_number(request)}}}'
    return Behaviour(content=content, delay_s=0.01 + share(request, "delay") * 0.05)


def said(report: Report) -> dict[str, Any]:
    """Return every item's answer."""
    value: Any = report.value
    return {each["item"]: each["value"] for each in value["answers"]}


def await_calls(server: OpenAIServer, calls: int) -> None:
    """Wait for so many more calls, or a good while."""
    enough, waited = server.count + calls, time.monotonic()
    while server.count < enough and time.monotonic() - waited < LONGEST_S:
        time.sleep(0.002)


def needed(server: OpenAIServer, items: int) -> int:
    """Return how many requests so many words take."""
    return items + len({_number(each.body) for each in server.requests if share(each.body) < AWKWARD})
