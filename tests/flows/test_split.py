"""Items that are too long for the model: cut by their brief's rule, asked in parts, joined to one answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Ask, Brief, Item, Limits, Reply, Usage, dispatch, plan
from prefect_dispatch.errors import DispatchFailed, InvalidOutput, JobError, RejectedError, TransientError
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

QUICK = Limits(retry_delay_s=0, retries=1, reasks=0, timeout_s=20, concurrency=1)
TEXT = "one\n\ntwo\n\nthree\n\nfour"
NAMES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ROOM = 12


def brief(split: object = "paragraphs", **more: Any) -> Brief:  # noqa: ANN401 -- fields of any type
    """Return a brief with a rule for items that are too long; a text says what is never cut."""
    rule = {"by": split} if isinstance(split, str) else split
    return Brief.model_validate({"name": "say", "instructions": "Say it.", "split": rule, **more})


def text_of(ask: Ask) -> str:
    """Return the text of an item, whatever its form."""
    value = ask.item.value
    return str(value["text"] if isinstance(value, dict) else value)


def short(ask: Ask) -> JsonValue:
    """Answer in capitals what isn't too long."""
    if len(text_of(ask)) > ROOM:
        raise RejectedError("too long", kind="context_length", usage=Usage(requests=1))
    return text_of(ask).strip().upper()


def run(asked: ScriptedExecutor, items: list[Any], split: Brief, **more: Any) -> Report:  # noqa: ANN401 -- a job's
    """Run a job."""
    return dispatch([split], items, executor=asked, limits=more.pop("limits", QUICK), **more)


def answers(report: Report) -> list[Any]:
    """Return the merged values."""
    value: Any = report.value
    return [answer["value"] for answer in value["answers"]]


def test_what_is_too_long_is_asked_in_parts_and_joined() -> None:
    """One outcome with the joined text and the spending of all; the ledger says how; who is not too long is whole."""
    scripted = ScriptedExecutor(short)
    report = run(scripted, [TEXT, "brief"], brief())
    assert report.status == "complete"
    assert answers(report) == ["ONE\n\nTWO\n\nTHREE\n\nFOUR", "BRIEF"]
    assert [row.reason for row in report.ledger] == ["2 parts, one after another", ""]
    assert [outcome.joined for outcome in report.outcomes] == ["2 parts, one after another", ""]
    assert [text_of(ask) for ask in scripted.asks] == [TEXT, "one\n\ntwo\n\n", "three\n\nfour", "brief"]
    assert [ask.brief.part for ask in scripted.asks] == [False, True, True, False]
    assert (report.usage.requests, report.usage.asked) == (4, 2)
    assert [attempt.error for attempt in report.outcomes[0].attempts] == ["context_length: too long", None, None]
