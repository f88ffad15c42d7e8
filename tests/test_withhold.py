"""What a message quotes of an item."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.calls.attempt import revalidate_stored, run_attempt
from prefect_dispatch.errors import ExecutorError, TransientError
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Function
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.outcome import Answer
from prefect_dispatch.security.redaction import LONGEST, RUN, redact_quotes
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

TEXT = 'Permission is hereby granted,\n\tfree of charge, to any "person" - café -\nin C:\\new\\files and https://h/x.'


@pytest.mark.parametrize(
    ("message", "told"),
    [
        pytest.param(f"bad: {TEXT}!", "bad: […]!", id="as-it-is"),
        pytest.param(f"{TEXT!r} is not of type 'object'", "'[…]' is not of type 'object'", id="repr"),
        pytest.param(f"got {TEXT!a}", "got '[…]'", id="ascii"),
        pytest.param(f"got {json.dumps(TEXT)}", 'got "[…]"', id="json"),
        pytest.param(f"got {json.dumps(json.dumps([TEXT]))}", 'got "[\\"[…]\\"]"', id="json-in-json"),
        pytest.param("on one line: " + " ".join(TEXT.split()), "on one line: […]", id="one-line"),
        pytest.param(f"{TEXT[:50]}… and {TEXT[60:]}", "[…]… and […]", id="in-parts"),
        pytest.param(f"({TEXT[3 : 3 + RUN]})", "([…])", id="a-run"),
        pytest.param(f"({TEXT[3 : 2 + RUN]})", f"({TEXT[3 : 2 + RUN]})", id="less-than-a-run"),
        pytest.param("MIT License, xMIT License, 'MIT'", "[…], xMIT License, 'MIT'", id="whole"),
        pytest.param("title and text are missing", "title and text are missing", id="names-of-fields"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_what_is_quoted_of_an_item_is_withheld(message: str, told: str) -> None:
    """Long runs of its texts and short texts as a whole, however the message writes them; the rest stays."""
    assert redact_quotes(message, {"title": "MIT License", "text": [TEXT], "year": 1988, "short": "MIT"}) == told


@given(st.text(max_size=20), st.text(min_size=RUN, max_size=60), st.text(max_size=20), st.data())
def test_no_long_run_of_an_item_survives(before: str, text: str, after: str, data: st.DataObject) -> None:
    """Whatever the texts: no run of the item's is in what is told, if white space and backslashes are plain."""
    text = "".join(text.replace("\\", "").split())
    start = data.draw(st.integers(0, max(0, len(text) - RUN)))
    quoted = text[start : data.draw(st.integers(start, len(text)))]
    told = redact_quotes(before + quoted + after, {"t": text})
    runs = {text[at : at + RUN] for at in range(len(text) - RUN + 1)}
    assert not any(run in told for run in runs)


@pytest.mark.slow
def test_a_long_item_and_a_long_message_take_no_time() -> None:
    """A message is cut, and even what repeats itself is gone through once."""
    item = "abcdefgh " * 120_000 + "\\alpha " * 20_000
    begun = time.process_time()
    assert redact_quotes("x" * 1_000_000, item) == "x" * LONGEST + "…"
    assert redact_quotes(item, [item, "a" * 1_000_000]) == "[…]…"
    assert time.process_time() - begun < 20  # hours, were it compared place by place


ITEM = Item(key="k", value={"text": TEXT})
SAY = Brief(name="say", instructions="Say it.", output="text")


def _raise(error: BaseException) -> Callable[..., JsonValue]:
    def fail(*_: object) -> JsonValue:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(TransientError(f"HTTP 500: {TEXT!r}"), "HTTP 500: '[…]'", id="an-executor's"),
        pytest.param(ValueError(f"can't read {TEXT}"), "ValueError: can't read […]", id="anybody's"),
    ],
)
def test_an_error_tells_nothing_of_the_item_but_at_debug_level(
    error: BaseException, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither itself, nor its cause, nor the account of the attempt; the log has it all at debug level."""

    def failed() -> ExecutorError:
        with pytest.raises(ExecutorError) as raised:
            anyio.run(lambda: run_attempt(ScriptedExecutor(_raise(error)), SAY, ITEM, limits=Limits(reasks=0)))
        return raised.value

    with caplog.at_level(logging.INFO, "prefect_dispatch"):
        quiet = failed()
    assert (str(quiet), quiet.__cause__, quiet.__suppress_context__) == (told, None, True)
    assert quiet.attempts[0].error == f"{quiet.kind}: {told}"
    assert not caplog.records
    error.args = (f"can't read {TEXT}",)
    with caplog.at_level(logging.DEBUG, "prefect_dispatch"):
        failed()
    assert "can't read Permission is hereby granted" in caplog.text
    assert "Traceback" in caplog.text


def test_a_stored_answer_whose_check_breaks_tells_nothing_of_the_item() -> None:
    """What is reused is examined again, and a check of the user's own may quote anything."""
    brief = SAY.model_copy(update={"checks": (Function(function=_raise(ValueError(TEXT))),)})
    with pytest.raises(ExecutorError) as raised:
        revalidate_stored(brief, ITEM, Answer(value="yes"))
    assert str(raised.value) == "The check 'function' raised ValueError: […]"
    assert raised.value.__cause__ is None


def test_an_escalation_tells_nothing_of_the_item() -> None:
    """Why a model was given up stands in the account of the attempt."""

    class Two:
        fingerprint = "two"
        fallback_chain = (ScriptedExecutor(_raise(ValueError(TEXT))), ScriptedExecutor({"k": "yes"}))
        answer = fallback_chain[0].answer

    answer = anyio.run(lambda: run_attempt(Two(), SAY, ITEM, limits=Limits(reasks=0)))
    assert [each.message for each in answer.attempts[0].escalations] == ["ValueError: […]"]
