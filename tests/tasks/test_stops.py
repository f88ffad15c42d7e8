"""When a fan-out stops before its end."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from prefect_dispatch import Brief, Item, Limits, dispatch
from prefect_dispatch.errors import (
    BudgetError,
    DispatchFailed,
    ExecutorError,
    InvalidOutput,
    PatienceError,
    RejectedError,
    TerminalError,
    TransientError,
)
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.tasks.stop_conditions import CircuitBreaker
from prefect_dispatch.tasks.work_item import WorkItem
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("store")

SAY = Brief(name="say", instructions="Say it.")
WORK = WorkItem(SAY, Item(key="a", value="a"), "f")
QUICK = Limits(retries=0, retry_delay_s=0, concurrency=1)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("the proxy is down", kind="connection"),
        ExecutorError("its code breaks"),
        RejectedError("unknown field 'x'"),
        KeyError("x"),
    ],
    ids=["a-connection", "a-users-executor", "a-request", "a-crash"],
)
def test_equal_failures_in_a_row_open_the_circuit(error: Exception) -> None:
    """So many of one kind and with one message: the next items would only fail as well."""
    circuit = CircuitBreaker(3)
    assert [bool(circuit.record_failure(WORK, error)) for _ in range(3)] == [False, False, True]


def test_numbers_in_a_message_make_no_other_message() -> None:
    """A request's number or a time is no difference."""
    circuit = CircuitBreaker(2)
    assert circuit.record_failure(WORK, TransientError("request 17 failed")) is None
    stop = circuit.record_failure(WORK, TransientError("request 18 failed"))
    assert stop is not None
    assert stop.reason == "2 in a row met the same error (limits.circuit): request 18 failed"


@pytest.mark.parametrize(
    "make",
    [
        lambda: f"The server had an error (request ID {uuid4()})",
        lambda: f"The server had an error (request ID {uuid4().hex} in your email.)",
        lambda: f"oops: req_9{secrets.token_urlsafe(18)}",
        lambda: f"oops: {''.join(secrets.choice(string.ascii_lowercase) for _ in range(24))}.",
        lambda: f"no room in s3://b/.prefect-dispatch-{secrets.token_hex(32)}.draft-{secrets.token_hex(8)}",
        lambda: f"sent at {secrets.randbelow(24):02}:07:11.52Z to sha256:{secrets.token_hex(32)}",
    ],
    ids=["a-uuid", "hex", "base-64", "letters", "a-draft", "a-time"],
)
def test_an_id_in_a_message_makes_no_other_message(make: Callable[[], str]) -> None:
    """A provider that names each request is one that is down all the same."""
    circuit = CircuitBreaker(20)
    assert [bool(circuit.record_failure(WORK, TransientError(make()))) for _ in range(20)] == [False] * 19 + [True]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no route to the host", "no answer from the host"),
        ("InternalServerError: 1", "ServiceUnavailableError: 1"),
        ("insufficient_quota_of_tokens", "requests_per_minute_exceeded"),
        ("服务器处理您的请求时发生错误请稍后重试5次", "您的账户余额不足请先充值再继续使用本服务5次"),
    ],
    ids=["words", "names-of-classes", "codes", "no-spaces"],
)
def test_other_words_make_another_message(one: str, other: str) -> None:
    """However long they are: what differs in more than ids may be met by these items only."""
    circuit = CircuitBreaker(2)
    assert not any(circuit.record_failure(WORK, TransientError(message)) for message in (one, other) * 3)


@pytest.mark.parametrize(
    "error",
    [
        InvalidOutput("no JSON"),
        RejectedError("too long", kind="context_length"),
        RejectedError("declined", kind="refused"),
    ],
    ids=["an-answer", "a-length", "a-refusal"],
)
def test_what_is_said_of_an_item_opens_no_circuit(error: ExecutorError) -> None:
    """Others may pass, and one that is like them doesn't count either."""
    circuit = CircuitBreaker(2)
    assert not any(circuit.record_failure(WORK, error) for _ in range(10))


def test_an_answer_between_closes_it() -> None:
    """Only failures one after another count, and only equal ones."""
    circuit = CircuitBreaker(2)
    down, other = TransientError("down"), TransientError("cut")
    assert circuit.record_failure(WORK, down) is None
    circuit.record_success()
    assert [circuit.record_failure(WORK, error) for error in (down, other, down)] == [None, None, None]


@pytest.mark.parametrize(("error", "kind"), [(TerminalError("wrong key"), "circuit"), (BudgetError("spent"), "budget")])
def test_one_is_enough(error: ExecutorError, kind: str) -> None:
    """An error that everybody would meet, and an empty purse."""
    stop = CircuitBreaker(10).record_failure(WORK, error)
    assert stop is not None
    assert stop.kind == kind


@pytest.mark.slow
def test_a_provider_that_is_down_ends_the_run() -> None:
    """The rest is not asked, and said to be skipped for the circuit; what came before is merged."""

    def script(ask: Ask) -> str:
        if ask.item.value in {"0", "1"}:
            return "fine"
        raise TransientError("no route", kind="connection")

    scripted = ScriptedExecutor(script)
    limits = QUICK.model_copy(update={"circuit": 4})
    with pytest.raises(DispatchFailed, match="4 in a row met the same error") as caught:
        dispatch([SAY], [Item(key=f"{n:02}", value=str(n)) for n in range(20)], executor=scripted, limits=limits)
    kinds = [gap.error.kind for gap in caught.value.report.gaps]
    assert (scripted.calls, kinds.count("connection"), kinds.count("circuit")) == (6, 4, 14)
    assert [row.item for row in caught.value.report.ledger if row.disposition == "merged"] == ["00", "01"]


@pytest.mark.slow
def test_what_the_budget_stops_is_skipped_and_asked_by_the_next_run() -> None:
    """The run completes with gaps; another one with the same budget goes on where it ended."""
    limits = QUICK.model_copy(update={"budget_requests": 3})
    items = [Item(key=f"{n}", value=str(n)) for n in range(5)]
    scripted = ScriptedExecutor(lambda ask: Reply(value=f"said {ask.item.value}", usage=Usage(requests=1)))
    report = dispatch([SAY], items, executor=scripted, limits=limits)
    assert (report.status, scripted.calls, report.usage.requests) == ("gaps", 3, 3)
    assert [(gap.status, gap.error.kind) for gap in report.gaps] == [("skipped", "budget")] * 2
    report = dispatch([SAY], items, executor=scripted, limits=limits)
    assert (report.status, scripted.calls, report.usage.cached) == ("complete", 5, 3)


@pytest.mark.slow
def test_a_re_ask_that_the_budget_stops_is_a_failure_that_was_paid_for() -> None:
    """It was asked: it counts, and it is no skipped item."""
    limits = QUICK.model_copy(update={"budget_requests": 1})
    with pytest.raises(DispatchFailed) as caught:
        dispatch([SAY], ["a", "b"], executor=ScriptedExecutor(lambda _: ""), limits=limits)
    report = caught.value.report
    assert [(gap.status, gap.error.kind) for gap in report.gaps] == [("failed", "budget"), ("skipped", "budget")]
    assert report.usage.requests == 1


def test_calls_that_run_out_of_patience_together_count_as_one() -> None:
    """They all waited for the same provider; within another `wait_s` they count once more."""
    error = PatienceError("The provider takes no more.")
    patient, hasty = CircuitBreaker(2, wait_s=900), CircuitBreaker(2)
    assert [patient.record_failure(WORK, error) for _ in range(50)] == [None] * 50
    assert hasty.record_failure(WORK, error) is None
    assert hasty.record_failure(WORK, error)
