"""Web search of a provider: what is requested, which pages are kept, what it costs, and what is refused."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.calls.attempt import revalidate_stored, validate_reply
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Ask, BaseExecutor, Reply
from prefect_dispatch.executors.llm.litellm_adapter import MAX_CITATIONS, listed_search_price, parse_citations
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import Sources
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Answer, Citation, Outcome
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from pydantic import JsonValue

MODEL = "openai/gpt-4o-search-preview"
ITEM = Item(key="a", value="HTTP")
TODAY = datetime.now(timezone.utc).date()
SOURCE = "https://www.rfc-editor.org/rfc/rfc9110"
PAGE = Citation(url=f"{SOURCE}?utm_source=openai", title="HTTP Semantics (2022)", retrieved=TODAY)


def cite(url: object, title: object = "A page") -> dict[str, Any]:
    """Return an annotation as OpenAI's chat completions have it."""
    return {"type": "url_citation", "url_citation": {"url": url, "title": title, "start_index": 0, "end_index": 1}}


def call(llm: LLM, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Reply]:
    """Return the request that an executor sends, and its reply, through the variables that users set."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(behaviour) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        reply = asyncio.run(llm.answer(Ask(brief=Brief(name="b", instructions="Search."), item=ITEM)))
        return server.requests[0].body, reply


def test_a_search_is_requested_and_its_pages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request has the options, the reply each page once, and its cost the price of a search."""
    behaviour = Behaviour(annotations=[cite(PAGE.url, PAGE.title), cite(PAGE.url), cite("javascript:alert(1)")])
    llm = LLM(model=MODEL, web_search=True, params={"web_search_options": {"search_context_size": "low"}})
    body, reply = call(llm, behaviour, monkeypatch)
    assert body["web_search_options"] == {"search_context_size": "low"}
    assert reply.citations == (PAGE,)
    assert reply.usage.cost_usd == pytest.approx(0.025 + 10 * 2.5e-6 + 5 * 1e-5)
    ask = Ask(brief=Brief(name="b", instructions="Search."), item=ITEM)
    assert (llm.cost_bound(ask).cost_usd or 0) > (LLM(model=MODEL).cost_bound(ask).cost_usd or 0) + 0.0249
    assert (llm.call_fee(), LLM(model=MODEL).call_fee()) == (0.025, 0.0)


LISTED = {"url": SOURCE, "title": "HTTP Semantics"}
HEAD = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "sonar"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
RESULTS = [{**LISTED, "date": "2022-06-06", "last_updated": "2025-01-01"}, "a text"]


def stream_events(*events: dict[str, Any]) -> Behaviour:
    """Return a stream of server-sent events."""
    lines = (f"event: {each.get('type', 'message')}\ndata: {json.dumps(each)}\n\n" for each in events)
    return Behaviour(body="".join(lines), content_type="text/event-stream")


def chunk(delta: dict[str, Any], finish: str | None = None, **more: object) -> dict[str, Any]:
    """Return one part of a streamed chat completion."""
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def claude_blocks() -> list[dict[str, Any]]:
    """Return the content of Anthropic's message: a failed search, one that found a page, and the answer."""
    page = {"type": "web_search_result", **LISTED, "page_age": "June 6, 2022", "encrypted_content": "-"}
    failure = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    return [
        block
        for number, content in enumerate((failure, [page]))
        for block in (
            {"type": "server_tool_use", "id": f"srvtoolu_{number}", "name": "web_search", "input": {"query": "HTTP"}},
            {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{number}", "content": content},
        )
    ] + [{"type": "text", "text": "Old."}]


def claude_message(content: list[dict[str, Any]], stop: str | None = "end_turn") -> dict[str, Any]:
    """Return Anthropic's message."""
    head = {"id": "msg", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_sequence": None}
    return {**head, "content": content, "stop_reason": stop, "usage": {"input_tokens": 10, "output_tokens": 5}}


def claude_events() -> list[dict[str, Any]]:
    """Return the events by which Anthropic streams the message."""
    blocks = [
        event
        for at, block in enumerate(claude_blocks())
        for event in (
            {"type": "content_block_start", "index": at, "content_block": {**block, "text": ""}},
            {"type": "content_block_delta", "index": at, "delta": {"type": "text_delta", "text": "Old."}},
            {"type": "content_block_stop", "index": at},
        )
        if block["type"] == "text" or event["type"] != "content_block_delta"
    ]
    return [
        {"type": "message_start", "message": claude_message([], None)},
        *blocks,
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    ("model", "idle_s", "behaviour", "published"),
    [
        pytest.param(
            "perplexity/sonar",
            None,
            Behaviour(
                body=json.dumps(
                    {
                        **HEAD,
                        "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "Old."}}],
                        "usage": USAGE,
                        "search_results": RESULTS,
                    }
                )
            ),
            "2022-06-06",
            id="perplexity",
        ),
        pytest.param(
            "perplexity/sonar",
            5.0,
            stream_events(
                chunk({"role": "assistant", "content": "Ol"}, search_results=RESULTS),
                chunk({"content": "d."}, "stop", usage=USAGE),
            ),
            "2022-06-06",
            id="perplexity-stream",
        ),
        pytest.param(
            "anthropic/claude-sonnet-4-5",
            None,
            Behaviour(body=json.dumps(claude_message(claude_blocks()))),
            "June 6, 2022",
            id="anthropic",
        ),
        pytest.param(
            "anthropic/claude-sonnet-4-5", 5.0, stream_events(*claude_events()), "June 6, 2022", id="anthropic-stream"
        ),
        pytest.param(
            MODEL,
            5.0,
            stream_events(
                chunk({"role": "assistant", "content": "Old."}),
                chunk({"annotations": [cite(SOURCE, "HTTP Semantics")]}),
                chunk({}, "stop", usage=USAGE),
            ),
            "",
            id="openai-stream",
        ),
    ],
)
def test_each_provider_lists_its_pages_elsewhere(
    model: str, idle_s: float | None, behaviour: Behaviour, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages have a title, and a date where the provider gives one; a stream with an idle limit has the same."""
    provider = model.partition("/")[0].upper()
    monkeypatch.setenv(f"{provider}_API_KEY", "sk-test-0123456789")
    with openai_server(behaviour) as server:
        for name in ("API_BASE", "BASE_URL"):
            monkeypatch.setenv(
                f"{provider}_{name}", server.url.removesuffix("/v1") if provider == "ANTHROPIC" else server.url
            )
        llm = LLM(model=model, web_search=True, idle_s=idle_s)
        reply = asyncio.run(llm.answer(Ask(brief=Brief(name="b", instructions="Search."), item=ITEM)))
        assert bool(server.requests[0].body.get("stream")) is (idle_s is not None)
    assert reply.value == "Old."
    assert reply.citations == (Citation(**LISTED, published=published, retrieved=TODAY),)


def test_a_stated_price_of_tokens_has_the_listed_one_of_searches_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is unknown, the cost is unknown, and a budget can't be kept."""
    stated = LLM(model=MODEL, web_search=True, usd_per_million=(1e6, 0))
    body, reply = call(stated, Behaviour(), monkeypatch)
    assert body["web_search_options"] == {}
    assert reply.usage.cost_usd == pytest.approx(10.025)
    unlisted = LLM(model="openai/own", params={"web_search_options": {}}, usd_per_million=(1, 0))
    _, reply = call(unlisted, Behaviour(), monkeypatch)
    assert (reply.usage.cost_usd, reply.citations) == (None, ())
    assert unlisted.cost_bound(Ask(brief=Brief(name="b", instructions="-"), item=ITEM)).cost_usd is None
    assert listed_search_price("openai/gpt-3.5-turbo", {}) is None


def test_without_a_search_nothing_is_cited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations that were not requested are not taken for sources."""
    body, reply = call(LLM(model=MODEL), Behaviour(annotations=[cite(PAGE.url)]), monkeypatch)
    assert "web_search_options" not in body
    assert reply.citations == ()


@pytest.mark.parametrize(
    "annotation",
    [
        *(
            cite(url)
            for url in (
                "file:///etc/passwd",
                "http://localhost/x",
                "https://a.example.org/ b",
                f"https://a.rfc-editor.org/{'x' * 2_000}",
                None,
                "https://www.rfc-editor.org/?key=sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH",
            )
        ),
        {"type": "file_citation", "url_citation": {"url": SOURCE}},
        {"type": "url_citation"},
        "text",
    ],
)
def test_a_hostile_annotation_is_dropped(annotation: object) -> None:
    """No other scheme, no private host, no secret, nothing endless, nothing of another form."""
    assert parse_citations(SimpleNamespace(annotations=[annotation])) == ()


def test_titles_and_numbers_are_bounded() -> None:
    """A title loses control characters and its length; pages beyond the limit are not stored."""
    [page] = parse_citations(SimpleNamespace(annotations=[cite(SOURCE, "\x1b[31mred\udc80" + "x" * 400)]))
    assert "\x1b" not in page.title
    assert len(page.title) <= 300
    [page] = parse_citations(None, SimpleNamespace(search_results=[{"url": SOURCE, "date": "\x07" + "1" * 99}]))
    assert (len(page.published), "\x07" in page.published) == (40, False)
    many = [cite(f"{SOURCE}/{number}", None) for number in range(80)]
    assert len(parse_citations(SimpleNamespace(annotations=many))) == MAX_CITATIONS
    assert parse_citations(SimpleNamespace(annotations="many")) == ()


def test_what_cannot_search_is_refused_before_anything_is_spent() -> None:
    """The message names the way out; options in `params` are the user's own responsibility."""
    LLM(model=MODEL, web_search=True).require_available()
    LLM(model="openai/own", params={"web_search_options": {}}).require_available()
    with pytest.raises(JobError, match="'openai/own' isn't known to search the web: name one that does"):
        LLM(model="openai/own", web_search=True).require_available()
    with pytest.raises(JobError, match="isn't known to search the web"):
        LLM(model="local/smollm2", web_search=True).require_available()
    with pytest.raises(JobError, match="a provider's batch has no web search"):
        LLM(model=MODEL, web_search=True, mode="batch").require_available()
    with pytest.raises(JobError, match="a provider's batch has no web search"):
        LLM(model=MODEL, params={"web_search_options": {}}, mode="batch").require_available()


def test_a_call_has_no_fee_by_default() -> None:
    """Executors that know of no search cost what their tokens cost."""
    assert BaseExecutor.of(PythonCallable(function=str)).call_fee() == 0.0


def researched(sources: list[JsonValue], *pages: Citation) -> Reply:
    """Return a reply with sources, and the pages of its search."""
    return Reply(value={"sources": sources}, citations=pages)


@pytest.mark.parametrize(
    ("sources", "pages", "problem"),
    [
        pytest.param([SOURCE], (PAGE,), None, id="address"),
        pytest.param([f"{SOURCE}/?utm_medium=x&utm_source=y"], (PAGE,), None, id="tracking"),
        pytest.param(["HTTP Semantics (2022)"], (PAGE,), None, id="title"),
        pytest.param(["https://www.rfc-editor.org/rfc/rfc1"], (PAGE,), "your web search did not return: ", id="other"),
        pytest.param([SOURCE], (), "no web search returned a page", id="none"),
    ],
)
def test_sources_are_pages_of_the_search(
    sources: list[JsonValue], pages: tuple[Citation, ...], problem: str | None
) -> None:
    """Each source is compared with what the provider returned; a stored answer is checked in the same way."""
    output = {"type": "object", "properties": {"sources": {"type": "array"}}}
    brief = Brief(name="b", instructions="Search.", output=output, checks=(Sources(from_search=True),))
    value, wrong = validate_reply(brief, ITEM, researched(sources, *pages))
    assert wrong == [] if problem is None else problem in wrong[0]
    assert revalidate_stored(brief, ITEM, Answer(value=value, citations=pages))[1] == wrong
    own = brief.model_copy(update={"checks": (Sources(),)})
    assert validate_reply(own, ITEM, researched(sources, *pages))[1] == []


def test_old_records_and_fingerprints_stay() -> None:
    """A check without the new field is serialized as before, and an answer without citations can be read."""
    assert "from_search" not in Sources().model_dump()
    assert Sources(from_search=True).model_dump()["from_search"] is True
    assert Answer.model_validate_json('{"value": 1}').citations == ()
    assert Outcome.model_validate({"brief": "b", "item": "i", "status": "skipped"}).citations == ()
