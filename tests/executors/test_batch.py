"""What a provider says of a batch, and what its files hold, read as a stranger's data."""

from __future__ import annotations

import asyncio
import json
import time
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.errors import ExecutorError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Reply
from prefect_dispatch.executors.llm import batch_api as module
from prefect_dispatch.executors.llm.batch_api import BatchAPI
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from tests.batch_server import BatchServer, batch_server
from tests.openai_server import Behaviour

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.batch_server import Tamper

ASK = Ask(brief=Brief(name="sum", instructions="Sum it up."), item=Item(key="a", value="One document."))
NAMES = ("a" * 64, "b" * 64)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


def api_of(server: BatchServer, **fields: Any) -> BatchAPI:  # noqa: ANN401 -- fields of LLM
    """Return the batches of a server."""
    return BatchAPI(LLM(model="openai/test", api_base=server.url, **fields))


def handing(*lines: str) -> Tamper:
    """Return what hands out these lines as the answers, whatever was asked."""

    def tamper(answers: list[str], errors: list[str]) -> tuple[list[str], list[str]]:
        del answers, errors
        return [*lines], []

    return tamper


async def answers(api: BatchAPI, *names: str) -> dict[str, Reply | ExecutorError]:
    """Submit a request for each name, and return what came of them."""
    file = await api.upload([api.request_line(name, ASK) for name in names])
    made = await api.create_batch(file, "tag")
    looked = await api.get_batch(made.id)
    assert looked.ended
    return await api.download_results(looked, names)


def line(**changes: Any) -> str:  # noqa: ANN401 -- anything that JSON has
    """Return a line of a file, as it should not be."""
    return json.dumps({"custom_id": NAMES[0], "error": None, **changes})


FINE = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}]}


@pytest.mark.parametrize(
    ("text", "error", "kind"),
    [
        pytest.param(line(response={"status_code": 200, "body": {}}), TransientError, "malformed", id="empty"),
        pytest.param(line(response={"status_code": 200, "body": {"choices": 3}}), TransientError, "malformed", id="3"),
        pytest.param(line(response=None), ExecutorError, "server", id="nothing"),
        pytest.param(line(response={"status_code": 400, "body": {"error": 3}}), RejectedError, "rejected", id="odd"),
        pytest.param(
            line(response={"status_code": 400, "body": {"error": {"code": "context_length_exceeded"}}}),
            RejectedError,
            "context_length",
            id="code",
        ),
        pytest.param(
            line(error={"code": "x", "message": "key sk-live-0123456789abcdef"}), ExecutorError, "server", id="told"
        ),
        pytest.param(line(error={"code": "batch_expired", "message": "late"}), TransientError, "expired", id="late"),
    ],
)
def test_what_a_line_means(text: str, error: type[ExecutorError], kind: str) -> None:
    """Each is an error of a kind that says what to do; no secret is in its words."""
    with batch_server(tamper=handing(text)) as server:
        found = asyncio.run(answers(api_of(server), *NAMES))
    assert set(found) == {NAMES[0]}
    said = found[NAMES[0]]
    assert isinstance(said, error)
    assert said.kind == kind
    assert "0123456789" not in str(said)


def test_a_line_that_is_too_long_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over, whatever it holds, and what follows is read."""
    monkeypatch.setattr(module, "LONGEST_LINE", 2_000_000)
    good = line(response={"status_code": 200, "body": FINE})
    other = good.replace(NAMES[0], NAMES[1])
    long = line(response={"status_code": 200, "body": {**FINE, "more": "x" * 6_000_000}})
    with batch_server(tamper=handing(long, other, good)) as server:
        found = asyncio.run(answers(api_of(server), *NAMES))
    assert {name: said.value for name, said in found.items() if isinstance(said, Reply)} == dict.fromkeys(NAMES, "fine")


def test_a_key_that_is_echoed_is_not_kept() -> None:
    """As of a live answer."""
    with batch_server(Behaviour(content="it is sk-test-0123456789abcdef")) as server:
        found = asyncio.run(answers(api_of(server), NAMES[0]))
    said = found[NAMES[0]]
    assert isinstance(said, Reply)
    assert "sk-test" not in str(said.value)


def test_files_that_are_gone_hold_nothing() -> None:
    """A provider keeps them for a month; then everything in them is missing."""
    with batch_server() as server:
        api = api_of(server)
        gone = module.Batch("batch_1", "completed", ended=True, files=("file-77",))
        assert asyncio.run(api.download_results(gone, NAMES)) == {}
        assert asyncio.run(api.get_batch("batch_77")) == module.Batch("batch_77", "gone", ended=True)


def looked(server: BatchServer) -> module.Batch:
    """Submit a batch of one request, and look at it."""

    async def look() -> module.Batch:
        api = api_of(server)
        made = await api.create_batch(await api.upload([api.request_line(NAMES[0], ASK)]), "tag")
        return await api.get_batch(made.id)

    return asyncio.run(look())


def test_a_batch_is_not_over_before_its_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may call it complete a moment earlier; after a while none will come."""
    with batch_server(tamper=handing()) as server:
        assert not looked(server).ended
        monkeypatch.setattr(module, "_SETTLING_S", -10.0)
        assert looked(server).ended


@pytest.mark.slow
@pytest.mark.parametrize(("page", "pages"), [(100, 50), (1, 50)])
def test_a_batch_is_found_by_its_tag(page: int, pages: int) -> None:
    """However many pages the list has."""

    async def found(server: BatchServer) -> list[module.Batch | None]:
        api = api_of(server)
        file = await api.upload([api.request_line(NAMES[0], ASK)])
        for tag in ("x", "y", "z"):
            await api.create_batch(file, tag)
        return [await api.find_batch(tag, time.time()) for tag in ("x", "z", "w")]

    with batch_server(page=page) as server:
        first, last, none = asyncio.run(found(server))
    assert (first and first.id, last and last.id, none) == ("batch_1", "batch_3", None)


def test_a_list_without_an_end_is_not_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody knows whether the batch is in it, and that is said."""
    monkeypatch.setattr(module, "_PAGES", 1)

    async def find(server: BatchServer) -> None:
        api = api_of(server)
        file = await api.upload([api.request_line(NAMES[0], ASK)])
        await api.create_batch(file, "x")
        await api.create_batch(file, "y")
        await api.find_batch("x", time.time())

    with batch_server(page=1) as server, pytest.raises(RejectedError, match="more batches than were looked through"):
        asyncio.run(find(server))


def test_a_provider_without_a_list_is_told() -> None:
    """A server of one's own may have batches and no list of them: nobody can be found there."""
    with batch_server(lists=False) as server, pytest.raises(RejectedError, match="lists no batches") as caught:
        asyncio.run(api_of(server).find_batch("x", time.time()))
    assert caught.value.kind == "no_list"


def test_parameters_that_a_model_does_not_take() -> None:
    """Told before anything is sent, as of a live call."""
    api = BatchAPI(LLM(model="openai/o3-mini", params={"temperature": 0.3}))
    with pytest.raises(TerminalError, match="temperature"):
        api.request_line(NAMES[0], ASK)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(methodcaller("upload", [b"{}"]), id="upload"),
        pytest.param(methodcaller("get_batch", "batch_1"), id="look"),
        pytest.param(methodcaller("find_batch", "x", 0.0), id="find"),
    ],
)
def test_a_provider_that_is_not_there(call: Callable[[BatchAPI], Awaitable[Any]]) -> None:
    """Is worth another try."""
    api = BatchAPI(LLM(model="openai/test", api_base="http://127.0.0.1:9/v1"))

    async def tried() -> None:
        await call(api)

    with pytest.raises(TransientError):
        asyncio.run(tried())


@pytest.mark.parametrize(
    ("model", "stated", "price"),
    [
        pytest.param("openai/gpt-4o", None, (1.25, 5.0), id="table"),
        pytest.param("openai/gpt-4-turbo", None, (5.0, 15.0), id="half"),
        pytest.param("openai/test", None, None, id="unknown"),
        pytest.param("openai/test", (2.0, 4.0), (1.0, 2.0), id="stated"),
    ],
)
def test_the_price_of_a_batch(
    model: str, stated: tuple[float, float] | None, price: tuple[float, float] | None
) -> None:
    """What litellm knows of it, else half of the price of a call."""
    llm = LLM(model=model, usd_per_million=stated, fallbacks=("mistral/x",), mode="batch")
    assert llm.batch_variant.usd_per_million == (price and pytest.approx(price))
    assert (llm.batch_variant.fallbacks, llm.batch_variant.mode) == ((), "live")


def test_the_model_of_an_answer_in_a_batch() -> None:
    """It is recorded, and strictly another one is a failure, which was paid for."""
    body = {**FINE, "model": "another-model", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    text = line(response={"status_code": 200, "body": body})
    with batch_server(tamper=handing(text)) as server:
        [reply] = asyncio.run(answers(api_of(server), NAMES[0])).values()
        [error] = asyncio.run(answers(api_of(server, strict_model=True), NAMES[0])).values()
    assert isinstance(reply, Reply)
    assert (reply.served_model, reply.usage.tokens) == ("another-model", 5)
    assert isinstance(error, RejectedError)
    assert (error.kind, error.usage) == ("other_model", reply.usage)


def test_nonsense_in_the_usage_of_a_batch_discards_no_answer() -> None:
    """What it took is unknown."""
    body = {**FINE, "usage": {"prompt_tokens": -3, "completion_tokens": "many"}}
    with batch_server(tamper=handing(line(response={"status_code": 200, "body": body}))) as server:
        [reply] = asyncio.run(answers(api_of(server), NAMES[0])).values()
    assert isinstance(reply, Reply)
    assert (reply.value, reply.usage.tokens, reply.usage.unsettled) == ("fine", 0, 1)


def test_a_file_of_results_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is longer than all its answers may be is given up."""
    monkeypatch.setenv("PREFECT_DISPATCH_MAX_RESPONSE_BYTES", "1024")
    monkeypatch.setattr(module, "FILE_RESPONSES", 2)
    text = line(response={"status_code": 200, "body": {**FINE, "padding": "x" * 3000}})
    with batch_server(tamper=handing(text)) as server, pytest.raises(RejectedError) as caught:
        asyncio.run(answers(api_of(server), NAMES[0]))
    assert caught.value.kind == "response_too_large"
