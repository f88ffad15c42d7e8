"""Requests that go to the provider in one file: what comes of each, what it costs, and who finds a batch again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
from prefect.settings import PREFECT_API_URL

from prefect_dispatch import LLM, Brief, Limits, dispatch, plan
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.models.checks import Function
from prefect_dispatch.tasks import provider_batches
from prefect_dispatch.tasks.result_store import BlobStore
from tests.batch_server import BatchServer, batch_server
from tests.openai_server import Behaviour, document, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    from prefect_dispatch import Item, Report
    from prefect_dispatch.serialization.durable_files import Change

pytestmark = pytest.mark.usefixtures("store", "key")

SIZES = Brief(
    name="sizes",
    instructions="Say how long it is.",
    output={
        "type": "object",
        "properties": {"size": {"type": "integer"}},
        "required": ["size"],
        "additionalProperties": False,
    },
)
ROOT = Path(__file__).parents[2]
GOOD = Behaviour(content='{"size": 3}')


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment, and little patience."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")
    monkeypatch.setattr(provider_batches, "LEAST_S", 0.02)
    return "sk-of-the-user-0123456789"


def run(server: BatchServer, *items: str, brief: Brief = SIZES, **more: Any) -> Report:  # noqa: ANN401 -- of executor, limits, flow
    """Return the report of a run, however it ended."""
    of_executor = ("rounds", "usd_per_million", "params", "mode", "structured_output")
    who: Any = {name: more.pop(name) for name in of_executor if name in more}
    flow = {name: more.pop(name) for name in ("refresh",) if name in more}
    given: dict[str, Any] = {"retry_delay_s": 0, "retries": 0, "reasks": 0, "timeout_s": 20, **more}
    limits = Limits(**given)
    executor = LLM.model_validate({"model": "openai/test", "api_base": server.url, "mode": "batch", **who})
    try:
        return cast("Report", cast("Any", dispatch)([brief], items, executor=executor, limits=limits, **flow))
    except DispatchFailed as error:
        return error.report


@pytest.mark.slow
def test_one_batch_answers_everything(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half the price, no live call, nothing left of the batch's records; again, nothing is asked."""
    with batch_server(GOOD, looks=5) as server:
        report = run(server, *"abc", usd_per_million=(2, 4))
        assert (report.status, report.usage.asked, report.usage.requests) == ("complete", 3, 3)
        assert report.usage.cost_usd == pytest.approx(3 * (10 * 1e-6 + 5 * 2e-6))
        assert [len(batch.requests) for batch in server.batches] == [3]
        assert re.findall(r"(\d) of 3 requests finished", caplog.text) == ["1", "2"]
        assert not [file.name for file in store.iterdir() if "batch" in file.name]
        again = run(server, *"abc")
        assert (again.usage.asked, again.usage.cached, again.usage.requests) == (0, 3, 0)
        assert (len(server.batches), server.live.count) == (1, 0)


@pytest.mark.slow
def test_answers_of_a_batch_are_stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps, each with one sync for all of its answers; another run finds each of them."""
    monkeypatch.setattr(provider_batches, "_STORED_AT_ONCE", 4)
    stored: list[int] = []
    own = BlobStore.store

    async def record(self: BlobStore, *changes: Change) -> None:
        stored.append(len(changes))
        await own(self, *changes)

    monkeypatch.setattr(BlobStore, "store", record)
    with batch_server(GOOD) as server:
        assert run(server, *"abcdefghij").status == "complete"
        assert stored == [4, 4, 2]
        assert run(server, *"abcdefghij").usage.cached == 10
        assert (len(server.batches), server.live.count) == (1, 0)


@pytest.mark.slow
def test_a_line_asks_what_a_call_would_ask() -> None:
    """The body of a request in a batch is that of a live call, parameters and schema included."""
    params = {"temperature": 0.5, "seed": 7, "max_tokens": 50, "extra_body": {"top_k": 3}}
    way: dict[str, Any] = {"params": params, "structured_output": "json_schema"}
    with batch_server(GOOD) as server:
        run(server, "a", **way)
        run(server, "a", **way, mode="live", refresh=True)
        (line,) = server.batches[0].requests
        (call,) = server.live.requests
    assert line["body"] == call.body
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")


def misbehave(request: dict[str, Any], n: int) -> Behaviour:
    """Fail in a batch, in several ways, and answer when asked again."""
    fault = {
        "error": failure(500, "it broke"),
        "invalid": Behaviour(content='{"size": "three"}'),
        "refused": Behaviour(content=None, refusal="I won't."),
        "long": Behaviour(content='{"si', finish_reason="length"),
    }
    words = document(request).split()
    return next((fault[word] for word in words if word in fault and n == 1), GOOD)


KINDS = {"error": "server", "invalid": "invalid", "refused": "refused", "long": "invalid", "lost": "missing"}


def outcomes(report: Report) -> dict[str, Any]:
    """Return the outcomes of a report by item."""
    return {outcome.item: outcome for outcome in report.outcomes}


@pytest.mark.slow
def test_every_line_ends_in_one_way_and_goes_on_live() -> None:
    """Errors, invalid, refused and lost lines are asked live; the report tells both, and the bill is the server's."""

    def tamper(answers: list[str], errors: list[str]) -> tuple[list[str], list[str]]:
        """Lose a line, double the others, mix them up, and put rubbish and a stranger between."""
        names = {request["custom_id"] for request in server.batches[0].requests if "lost" in json.dumps(request)}
        kept = [line for line in answers if json.loads(line)["custom_id"] not in names]
        stranger = json.dumps({**json.loads(kept[0]), "custom_id": "f" * 64})
        deep = '{"custom_id": ' + "[" * 100_000
        rubbish = ["", "null", "[]", '{"custom_id": 3}', deep, kept[0][: len(kept[0]) // 2], "\udcff\udcfe"]
        return [*rubbish, stranger, *kept[::-1], *kept], errors

    with batch_server(misbehave, tamper=tamper) as server:
        report = run(server, *KINDS, "good")
        assert report.status == "complete"
        assert (len(server.batches), server.live.count) == (1, len(KINDS))
    told = outcomes(report)
    assert {item: told[item].attempts[0].error.split(":")[0] for item in KINDS} == KINDS
    assert [len(outcome.attempts) for outcome in told.values()].count(2) == len(KINDS)
    assert [each.text for each in told["invalid"].attempts[0].rejections] == ['{"size": "three"}']
    assert len(told["good"].attempts) == 1
    assert {outcome.origin for outcome in told.values()} == {"asked"}
    assert told["lost"].usage.unsettled == 1
    assert report.usage.requests == 2 * len(KINDS) + 1


@pytest.mark.slow
def test_what_failed_goes_into_another_batch_by_choice() -> None:
    """Two rounds: the second batch holds what failed in the first; no call is made."""
    with batch_server(misbehave) as server:
        report = run(server, *KINDS, "good", rounds=2)
        assert [len(batch.requests) for batch in server.batches] == [len(KINDS) + 1, len(KINDS) - 1]
        assert (report.status, server.live.count) == ("complete", 0)
        assert report.usage.requests == 2 * len(KINDS)


@pytest.mark.slow
def test_what_is_too_long_for_a_batch_is_asked_in_parts() -> None:
    """Live and at once: neither in another batch nor live is the whole sent again."""

    def short(request: dict[str, Any], n: int) -> Behaviour:
        too_long = {"alpha", "gamma"} <= set(document(request).split())
        return failure(400, "too long", code="context_length_exceeded") if too_long else Behaviour(content="fine")

    brief = Brief.model_validate({"name": "say", "instructions": "Say it.", "split": {"by": "words"}})
    with batch_server(short) as server:
        report = run(server, "short", "alpha beta gamma", brief=brief, rounds=3)
        assert [len(batch.requests) for batch in server.batches] == [2]
        assert (report.status, server.live.count, report.usage.requests) == ("complete", 2, 4)
        attempts = outcomes(report)["alpha beta gamma"].attempts
        assert [(each.part, (each.error or "").partition(":")[0]) for each in attempts] == [
            ("", "context_length"),
            ("1", ""),
            ("2", ""),
        ]
        assert run(server, "short", "alpha beta gamma", brief=brief).usage.requests == 0


@pytest.mark.slow
@pytest.mark.parametrize(("end", "kind"), [("expired", "expired"), ("cancelled", "missing")])
def test_what_a_batch_did_not_come_to(end: str, kind: str) -> None:
    """What was worked off counts; the rest is told as expired, or as missing, and is asked live."""

    def half(answers: list[str], errors: list[str]) -> tuple[list[str], list[str]]:
        name = json.loads(answers[1])["custom_id"]
        late = {"id": "x", "custom_id": name, "response": None, "error": {"code": "batch_expired", "message": "late"}}
        return answers[:1], [json.dumps(late)] if end == "expired" else []

    with batch_server(GOOD, end=end, tamper=half) as server:
        report = run(server, "a", "b", "c")
        assert (report.status, server.live.count) == ("complete", 2)
    kinds = sorted(str(outcome.attempts[0].error).split(":")[0] for outcome in report.outcomes)
    assert kinds == ["None", kind, kind]


@pytest.mark.slow
def test_a_batch_that_is_refused_as_a_whole_stops_the_run() -> None:
    """Nothing was asked, and nothing is asked live at twice the price; the reason is the provider's."""
    with batch_server(GOOD, end="failed") as server:
        report = run(server, "a", "b")
        assert report.status == "failed"
        assert "refused as a whole: line 1 is no request" in report.message
        assert server.live.count == report.usage.requests == 0
        server.end = "completed"
        assert run(server, "a", "b").status == "complete"


@pytest.mark.slow
def test_what_the_budget_does_not_hold_is_skipped() -> None:
    """Reserved at the price of a batch, before it is submitted; what doesn't fit is not asked live either."""
    with batch_server(GOOD) as server:
        report = run(server, *"abcd", budget_requests=3)
        assert [len(batch.requests) for batch in server.batches] == [3]
        assert server.live.count == 0
        assert [(gap.status, gap.error.kind) for gap in report.gaps] == [("skipped", "budget")]
        assert run(server, *"abcd", budget_requests=3).status == "complete"


@pytest.mark.slow
def test_half_the_price_fits_into_half_the_budget() -> None:
    """A cap in dollars that holds so many calls live holds twice as many in a batch."""
    params, price = {"max_tokens": 10}, (0.0, 1000.0)
    with batch_server(GOOD) as server:
        report = run(server, *"abcd", budget_usd=0.026, params=params, usd_per_million=price)
        assert [len(batch.requests) for batch in server.batches] == [4]
        assert report.status == "complete"
        assert report.usage.cost_usd == pytest.approx(4 * 5 * 0.0005)


@pytest.mark.slow
def test_asked_again_although_it_is_stored() -> None:
    """A refresh goes into a batch, and is not asked a second time live."""
    with batch_server(GOOD) as server:
        run(server, "a", "b")
        report = run(server, "a", "b", refresh=["a"])
        assert [len(batch.requests) for batch in server.batches] == [2, 1]
        assert (server.live.count, report.usage.asked, report.usage.cached) == (0, 1, 1)


def test_only_what_speaks_the_protocol_has_batches() -> None:
    """Refused with the way out, by the plan too, before anything is sent."""
    for executor in (LLM(model="anthropic/claude", mode="batch"), LLM(model="local/smollm2", mode="batch")):
        with pytest.raises(JobError, match="mode: live"):
            plan([SIZES], ["a"], executor)


def test_a_plan_tells_the_price_of_a_batch() -> None:
    """Half of what is stated; litellm's table, where it has a price for batches."""
    live, batch = (plan([SIZES], ["a"], LLM(model="openai/gpt-4o", mode=mode)).cost_usd for mode in ("live", "batch"))
    assert batch is not None
    assert live == pytest.approx(2 * batch, abs=1e-5)


RUN = """
import sys
from prefect_dispatch import LLM, Brief, Limits, dispatch
from prefect_dispatch.tasks import provider_batches
from tests.flows.test_batch import SIZES
provider_batches.LEAST_S = 0.05
who, limits = LLM(model="openai/test", api_base=sys.argv[1], mode="batch"), Limits(retry_delay_s=600)
dispatch([SIZES], list("abc"), executor=who, limits=limits)
"""


@pytest.fixture
def child(store: Path) -> Callable[[BatchServer], subprocess.Popen[bytes]]:
    """Start a run in a process of its own, on this server and this store."""

    def start(server: BatchServer, log: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        own = {"PREFECT_LOCAL_STORAGE_PATH": str(store), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
        own["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # the command line, called in this process, hides them
        return subprocess.Popen(  # noqa: S603 -- this interpreter, a fixed text
            [sys.executable, "-c", RUN, server.url],
            env={**os.environ, **own},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

    return start


def killed(process: subprocess.Popen[bytes], come: Callable[[], bool], how: int = signal.SIGKILL) -> None:
    """End a process, as a power cut would or otherwise, once something has come about."""
    while not come():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_that_is_ended_while_it_waits_is_followed_up(
    child: Callable[..., subprocess.Popen[bytes]], how: int
) -> None:
    """The next run finds the batch, submits only what is new, and counts what it gathers."""
    with batch_server(GOOD, looks=10**6) as server:
        killed(child(server), lambda: any(batch.looked for batch in server.batches), how)
        server.looks = 0
        report = run(server, *"abcd")
        assert [len(batch.requests) for batch in server.batches] == [3, 1]
        assert (report.status, report.usage.asked, report.usage.requests, server.live.count) == ("complete", 4, 4, 0)


@pytest.mark.slow
def test_a_run_that_is_ended_before_it_tries_again_says_so(
    child: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A provider fails, the next try is minutes away, and the process is told to end: Cancelled, with the count."""
    log = tmp_path / "log"
    with batch_server(GOOD, create=failure(500, "it broke")) as server:
        with log.open("wb") as stream:
            process = child(server, stream.fileno())
        killed(process, lambda: b"A batch goes on in 600.0 s" in log.read_bytes(), signal.SIGTERM)
        assert "Cancelled: 0 of 3 answered. Answers received so far are stored" in log.read_text()
        assert (server.batches, server.live.count) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(100, marks=pytest.mark.long), 1])
def test_a_run_that_is_killed_while_it_submits_is_followed_up(
    child: Callable[..., subprocess.Popen[bytes]], page: int
) -> None:
    """The batch was created, and nobody heard of it: it is found again in the provider's list, by its tag."""
    with batch_server(GOOD, create="held", page=page) as server:
        killed(child(server), lambda: bool(server.batches))
        server.create = "fine"
        run(server, "z")
        report = run(server, *"abc")
        assert [len(batch.requests) for batch in server.batches] == [3, 1]
        assert (report.status, report.usage.requests, server.live.count) == ("complete", 3, 0)


@pytest.mark.slow
def test_a_provider_that_lists_nothing_may_be_asked_twice(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Killed while submitting: it is submitted again, and the report says for each item that it may have been lost."""
    with batch_server(GOOD, create="held", lists=False) as server:
        killed(child(server), lambda: bool(server.batches))
        server.create = "fine"
        report = run(server, *"abc")
        assert [len(batch.requests) for batch in server.batches] == [3, 3]
    assert report.status == "complete"
    assert [str(outcome.attempts[0].error).split(":")[0] for outcome in report.outcomes] == ["lost"] * 3
    assert (report.usage.requests, sum(outcome.usage.unsettled for outcome in report.outcomes)) == (6, 3)


@pytest.mark.slow
def test_a_batch_whose_creation_nobody_confirmed() -> None:
    """The connection ends after it was created: it is looked for, found, and not created again."""
    with batch_server(GOOD, create="lost") as server:
        report = run(server, "a", "b")
        assert (len(server.batches), server.live.count, report.status) == (1, 0, "complete")


@pytest.mark.slow
def test_what_the_provider_does_not_take() -> None:
    """A wrong key stops the run; nothing is asked live, and nothing is left that a later run would wait for."""
    with batch_server(GOOD, create=failure(401, "no such key")) as server:
        report = run(server, "a", "b")
        assert (report.status, server.live.count, report.usage.requests) == ("failed", 0, 0)
        assert "no such key" in report.message
        server.create = "fine"
        assert run(server, "a", "b").status == "complete"


@pytest.mark.slow
def test_a_provider_that_is_not_there_for_a_while() -> None:
    """An overload while submitting is waited for, as long as the limits say."""
    with batch_server(GOOD, create=failure(503, "too much")) as server:
        report = run(server, "a", wait_s=0.1)
        assert (report.status, server.live.count) == ("failed", 0)
        server.create = "fine"
        assert run(server, "a").status == "complete"
        assert len(server.batches) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", ["upload", "create"])
def test_a_provider_that_fails_is_tried_as_often_as_the_limits_say(
    step: Literal["upload", "create"], caplog: pytest.LogCaptureFixture
) -> None:
    """A 5xx is no wait: it is retried, the log says each time, and then the run ends; nothing is asked live."""
    with batch_server(GOOD, **{step: failure(500, "it broke")}) as server:
        report = run(server, "a", retries=2)
        assert (report.status, report.usage.requests, server.live.count) == ("failed", 0, 0)
        assert "it broke" in report.message
        assert {"upload": server.uploads, "create": server.creations}[step] == 3
        assert [f"retry {n} of 2, limits.retries): " in caplog.text for n in (1, 2, 3)] == [True, True, False]
        setattr(server, step, "fine")
        assert run(server, "a").status == "complete"
        assert len(server.batches) == 1


@pytest.mark.slow
def test_a_batch_that_is_under_way_is_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the provider answers meanwhile: it is waited for as a busy one is, and nothing is paid again."""
    with batch_server(GOOD, stumbles=2) as server:
        assert run(server, "a").status == "complete"
        assert (len(server.batches), server.live.count) == (1, 0)
    assert caplog.text.count("A batch goes on in 0.0 s (") + caplog.text.count("A batch goes on in 0.1 s (") == 2


@pytest.mark.slow
def test_a_batch_of_which_the_provider_knows_nothing_any_more(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    """All that was in it is told as missing, and asked live."""
    with batch_server(GOOD, gone={"batch_1"}) as server:
        report = run(server, "a", "b")
        assert (report.status, server.live.count) == ("complete", 2)
    assert {str(outcome.attempts[0].error).split(":")[0] for outcome in report.outcomes} == {"missing"}


@pytest.mark.slow
def test_two_runs_share_a_batch() -> None:
    """Both wait for it; one gathers it and counts what it took, the other finds the answers stored."""
    with batch_server(GOOD, looks=10**6) as server, ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(run, server, *"abc")]
        for submitted, more in ((1, "abcd"), (2, "")):
            while len(server.batches) < submitted:
                time.sleep(0.01)
            runs += [threads.submit(run, server, *more)] if more else []
        server.looks = 0
        reports = [each.result() for each in runs]
        assert sorted(len(batch.requests) for batch in server.batches) == [1, 3]
    assert [report.status for report in reports] == ["complete", "complete"]
    assert sum(report.usage.requests for report in reports) == 4


@pytest.mark.slow
def test_an_answer_that_came_live_meanwhile_is_kept() -> None:
    """A run that doesn't wait for the batch has asked the same: the batch replaces nothing, and is counted."""

    def numbered(request: dict[str, Any], n: int) -> Behaviour:
        return Behaviour(content=json.dumps({"size": n}))

    with batch_server(numbered, looks=10**6) as server, ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(run, server, "a", "b")
        while not server.batches:
            time.sleep(0.01)
        threads.submit(run, server, "a", mode="live").result()
        server.looks = 0
        report = waiting.result()
    assert {outcome.item: outcome.value for outcome in report.outcomes} == {"a": {"size": 1}, "b": {"size": 1}}
    assert (report.usage.requests, server.live.count) == (2, 1)


@pytest.mark.slow
def test_each_model_has_a_batch_of_its_own() -> None:
    """Two briefs with a model each: two batches, each at its provider."""
    briefs = [SIZES.model_copy(update={"name": name, "model": f"openai/{name}"}) for name in ("one", "two")]
    with batch_server(GOOD) as server:
        executor = LLM(model="openai/test", api_base=server.url, mode="batch")
        report = dispatch(briefs, ["a", "b"], executor=executor)
        assert [{line["body"]["model"] for line in batch.requests} for batch in server.batches] == [{"one"}, {"two"}]
        assert (report.status, server.live.count) == ("complete", 0)


@pytest.mark.slow
def test_batches_are_no_larger_than_a_provider_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By lines and by bytes."""
    with batch_server(GOOD) as server:
        monkeypatch.setattr(provider_batches, "MOST_LINES", 2)
        assert run(server, *"abcde").status == "complete"
        monkeypatch.setattr(provider_batches, "MOST_BYTES", 10)
        assert run(server, *"xy").status == "complete"
        assert [len(batch.requests) for batch in server.batches] == [2, 2, 1, 1, 1]


@pytest.mark.slow
def test_work_that_must_be_alone_is_asked_live() -> None:
    """A batch is worked off in any order and all at once."""
    brief = SIZES.model_copy(update={"resources": ("db",)})
    with batch_server(GOOD) as server:
        executor = LLM(model="openai/test", api_base=server.url, mode="batch")
        report = dispatch([brief], ["a", "b"], executor=executor, limits=Limits(on_dependence="serialize"))
        assert (report.status, len(server.batches), server.live.count) == ("complete", 0, 2)


@pytest.mark.slow
def test_a_check_that_breaks_loses_no_answer() -> None:
    """The run stops; the batch stays known, and once the check is mended its answers are gathered."""
    broken = SIZES.model_copy(update={"checks": (Function(function=flaky),)})
    with batch_server(GOOD) as server:
        FLAKY.append("it broke")
        report = run(server, "a", brief=broken)
        assert report.status == "failed"
        assert "it broke" in report.message
        FLAKY.clear()
        assert run(server, "a", brief=broken).status == "complete"
        assert (len(server.batches), server.live.count) == (1, 0)


FLAKY: list[str] = []


def flaky(value: JsonValue, item: Item) -> str | None:
    """Break where a test wants it."""
    if FLAKY:
        raise RuntimeError(FLAKY[0])
    return None
