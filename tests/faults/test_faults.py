"""Whatever a provider does, a run over a real wire accounts for every item, and asks no more than it has to."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefect_dispatch import Limits
from prefect_dispatch.reporting.markdown import markdown
from tests.faults.wires import GOOD, NONSENSE, Patient, mixed, number, require_accounts, run
from tests.openai_server import (
    CUT,
    HANG,
    HTML,
    HTML_ERROR,
    LONG,
    MALFORMED,
    RESET,
    SHORT,
    STALL,
    Behaviour,
    failure,
    openai_server,
    revoked,
)

pytestmark = pytest.mark.usefixtures("store")

LIMITS = Limits(concurrency=3, retries=1, retry_delay_s=0, reasks=1, timeout_s=60)
SHORT_S = 3.0
"""A time limit that a healthy call keeps even on a busy machine."""
WORDS = 6


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment, as users have it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")


@dataclass(frozen=True)
class Case:
    """A fault, and what becomes of it."""

    fault: Behaviour
    kind: str
    """The class of failure; several if it depends on how the bytes arrive."""
    unsettled: bool = True
    """Whether nobody knows what such a call cost."""
    limits: dict[str, Any] = field(default_factory=dict[str, Any])
    executor: dict[str, Any] = field(default_factory=dict[str, Any])


STREAMED: dict[str, Any] = {"idle_s": SHORT_S}
CASES = {
    "500": Case(failure(500), "server", unsettled=False),
    "html-502": Case(HTML_ERROR, "server"),
    "html-200": Case(HTML, "malformed"),
    "malformed-json": Case(MALFORMED, "malformed"),
    "cut": Case(CUT, "connection"),
    "reset": Case(RESET, "connection"),
    "content-length-too-short": Case(SHORT, "malformed connection"),
    "content-length-too-long": Case(LONG, "connection"),
    "stall": Case(STALL, "timeout", limits={"timeout_s": SHORT_S}),
    "no-answer-at-all": Case(HANG, "timeout", limits={"timeout_s": SHORT_S}),
    "stream-cut": Case(CUT, "connection", executor=STREAMED),
    "stream-reset": Case(RESET, "connection", executor=STREAMED),
    "stream-stall": Case(STALL, "idle", executor=STREAMED),
    "stream-html-200": Case(HTML, "malformed", executor=STREAMED),
    "drip-beyond-the-time-limit": Case(
        Behaviour(content=GOOD.content, drip_s=1.0), "timeout", limits={"timeout_s": SHORT_S}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_call_that_fails_is_asked_again_and_no_other(case: Case) -> None:
    """Two words fail once and one always: each is retried, the one is a gap, and a rerun asks for that one alone."""

    def ill(request: dict[str, Any], n: int) -> Behaviour:
        return case.fault if number(request) == 2 or (number(request) < 2 and n == 1) else GOOD

    patient = Patient(ill)
    limits = LIMITS.model_copy(update=case.limits)
    with openai_server(patient) as server:
        report = run(server.url, WORDS, limits, **case.executor)
        require_accounts(report, WORDS)
        assert server.count == report.usage.requests == 3 * 1 + 2 * 2 + 1 * 2
        [gap] = report.gaps
        assert (gap.item, gap.error.kind in case.kind.split()) == ("word-2", True)
        assert report.usage.retried.keys() <= set(case.kind.split())
        assert sum(report.usage.retried.values()) == 3
        assert report.usage.unsettled == 4 * case.unsettled
        assert "| retries | 3 | " in markdown(report)
        assert (report.run["waits"], report.usage.reasks, report.usage.escalated) == (0, 0, {})

        patient.cured = True
        again = run(server.url, WORDS, limits, **case.executor)
        assert (again.status, again.usage.cached, again.usage.requests, server.count) == ("complete", 5, 1, 10)
    assert patient.asked_again == 0


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [None, 0.5], ids=["says-nothing", "says-when"])
@pytest.mark.parametrize("status", [429, 503, pytest.param(529, marks=pytest.mark.long)])
def test_a_storm_is_waited_out(status: int, retry_after: float | None) -> None:
    """Everybody is refused for a moment: all wait, and few ask meanwhile; no attempt fails, nothing is lost."""
    began: list[float] = []

    def ill(request: dict[str, Any], n: int) -> Behaviour:
        began.append(time.monotonic())
        refused = len(began) <= LIMITS.concurrency or began[-1] - began[0] < 0.5
        return failure(status, "slow down", retry_after=retry_after) if refused else GOOD

    patient = Patient(ill)
    with openai_server(patient) as server:
        report = run(server.url, WORDS, LIMITS)
        require_accounts(report, WORDS)
        waits: Any = report.run["waits"]
        assert report.status == "complete"
        assert server.count == report.usage.requests == WORDS + waits
        assert LIMITS.concurrency <= waits <= 2 * LIMITS.concurrency  # who was under way, and some that tried
        assert (report.usage.retried, report.usage.unsettled) == ({}, 0)
        assert sum(outcome.attempts[-1].waits for outcome in report.outcomes) == waits
        assert f"| waits for a busy provider | {waits} |" in markdown(report)
        run(server.url, WORDS, LIMITS)
        assert server.count == WORDS + waits
    assert patient.asked_again == 0


@pytest.mark.slow
def test_whom_nobody_serves_in_time_is_a_gap() -> None:
    """A provider that stays too busy ends the patience of all, without a retry; what was never sent is skipped.

    After the first refusals the provider may be tried again now and then: an item that gets its turn so late, as on a
    busy machine, that this is due within its patience is such a probe.
    """
    words = 5 * WORDS
    limits = LIMITS.model_copy(update={"wait_s": 0.2, "retries": 5, "circuit": 1000})
    patient = Patient(lambda _request, _n: failure(429, "slow down", retry_after=30))
    with openai_server(patient) as server:
        report = run(server.url, words, limits)
        require_accounts(report, words)
        assert {gap.error.kind for gap in report.gaps} == {"rate_limit"}
        assert server.count == report.usage.requests == report.usage.asked < words
        assert {(gap.status, gap.error.message.startswith("Not asked: ")) for gap in report.gaps} == {
            ("failed", False),
            ("skipped", True),
        }
        assert Counter(outcome.status for outcome in report.outcomes)["failed"] == report.usage.asked
        assert report.usage.retried == {}
        patient.cured = True
        assert run(server.url, words, limits).status == "complete"
        assert server.count == report.usage.requests + words


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", ["100000000000000000000", "-5", "nan", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_wait_of_one_item_fails_no_other(retry_after: str) -> None:
    """That item's one attempt has failed once its patience is over; the run goes on."""
    limits = LIMITS.model_copy(update={"wait_s": 3.0, "retries": 0})
    absurd = failure(429, "slow down", retry_after=retry_after)
    patient = Patient(lambda request, _n: absurd if number(request) == 2 else GOOD)
    with openai_server(patient) as server:
        report = run(server.url, WORDS, limits)
    require_accounts(report, WORDS)
    [gap] = report.gaps
    assert (report.status, gap.item, gap.error.kind) == ("gaps", "word-2", "rate_limit")
    assert [len(outcome.attempts) for outcome in report.outcomes] == [1] * WORDS


@pytest.mark.slow
@pytest.mark.parametrize("executor", [{}, STREAMED], ids=["whole", "stream"])
def test_slow_is_not_broken(executor: dict[str, Any]) -> None:
    """An answer that drips in is waited for: one request each."""
    patient = Patient(lambda _request, _n: Behaviour(content=GOOD.content, drip_s=0.05))
    with openai_server(patient) as server:
        report = run(server.url, WORDS, LIMITS, **executor)
        require_accounts(report, WORDS)
        assert (report.status, server.count, report.usage.unsettled) == ("complete", WORDS, 0)


@pytest.mark.slow
def test_a_key_that_is_taken_back_stops_the_run() -> None:
    """401 from the fourth call on: nobody else is asked; with a good key the run goes on there."""
    patient = Patient(revoked(3, GOOD))
    limits = LIMITS.model_copy(update={"concurrency": 1})
    with openai_server(patient) as server:
        report = run(server.url, WORDS, limits)
        require_accounts(report, WORDS)
        assert (report.status, server.count, report.usage.requests) == ("failed", 4, 4)
        assert Counter((gap.status, gap.error.kind) for gap in report.gaps) == {
            ("failed", "credentials"): 1,
            ("skipped", "circuit"): 2,
        }
        patient.cured = True
        again = run(server.url, WORDS, limits)
        assert (again.status, again.usage.cached, server.count) == ("complete", 3, 7)
    assert patient.asked_again == 0


@pytest.mark.slow
def test_whom_a_model_never_satisfies_another_is_asked_for() -> None:
    """The first model always answers nonsense: it is sent back once, then the next one answers, and that is told."""
    patient = Patient(lambda request, _n: NONSENSE if request["model"] == "test" else GOOD)
    with openai_server(patient) as server:
        report = run(server.url, WORDS, LIMITS, fallbacks=("openai/other",))
        require_accounts(report, WORDS)
        assert (report.status, server.count, report.usage.requests) == ("complete", 3 * WORDS, 3 * WORDS)
        assert (report.usage.escalated, report.usage.reasks) == ({"invalid_output": WORDS}, WORDS)
        assert {outcome.model for outcome in report.outcomes} == {"openai/other"}
        assert f"| escalations to the next model | {WORDS} | {WORDS} invalid_output |" in markdown(report)
        assert run(server.url, WORDS, LIMITS, fallbacks=("openai/other",)).usage.requests == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [40, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.long])])
def test_a_tenth_of_all_calls_fails(words: int) -> None:
    """Faults of every kind: all are answered, and each word is asked as often as it failed, and once more."""
    patient = Patient(mixed)
    limits = LIMITS.model_copy(update={"concurrency": 8, "retries": 5, "reasks": 5})
    with openai_server(patient) as server:
        report = run(server.url, words, limits)
        require_accounts(report, words)
        assert report.status == "complete"
        assert (report.usage.requests, patient.asked_again) == (server.count, 0)
        assert server.count == words + sum(report.usage.retried.values()) + report.usage.reasks
        assert report.usage.prompt_tokens == server.usage.prompt_tokens
        assert run(server.url, words, limits).usage.requests == 0
