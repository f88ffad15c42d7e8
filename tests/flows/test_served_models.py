"""The model that answered: recorded, flagged where it isn't the one that was asked, or a failure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Brief, Limits
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.publish import build_events
from prefect_dispatch.models.outcome import Answer, Attempt
from prefect_dispatch.reporting.markdown import markdown
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from prefect_dispatch.models.report import Report

BRIEFS = [Brief(name="label", instructions="Label it.")]
LIMITS = Limits(retries=0, concurrency=2)


def serving(*names: str | None) -> Any:  # noqa: ANN401 -- a behave
    """Return a server whose responses name these models in turn, by item."""

    def behave(request: dict[str, Any], _n: int) -> Behaviour:
        text = request["messages"][1]["content"]
        name = next((name for number, name in enumerate(names) if f"item {number}" in text), names[0])
        choice = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        body = {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice], "usage": usage}
        return Behaviour(body=json.dumps({**body, **({} if name is None else {"model": name})}))

    return behave


def run(url: str, items: int, **fields: Any) -> Report:  # noqa: ANN401 -- the executor's
    """Run a job of so many items."""
    texts = [f"item {number}" for number in range(items)]
    return dispatch(BRIEFS, texts, executor=LLM(model="openai/gpt-5-mini", api_base=url, **fields), limits=LIMITS)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_another_model_is_flagged_and_told() -> None:
    """Once for each name; a snapshot, a file of the same model, and a response without a name are no news."""
    with openai_server(serving("gpt-5-mini-2025-08-07", "gpt-4.1-nano", None, "/srv/models/gpt-5-mini.gguf")) as server:
        report = run(server.url, 4)
        again = run(server.url, 4)
    assert report.status == "complete"
    assert [(row.asked, row.served, row.answers, row.expected) for row in report.models] == [
        ("openai/gpt-5-mini", "", 1, True),
        ("openai/gpt-5-mini", "gpt-4.1-nano", 1, False),
        ("openai/gpt-5-mini", "gpt-5-mini-2025-08-07", 1, True),
        ("openai/gpt-5-mini", "gpt-5-mini.gguf", 1, True),
    ]
    assert again.models == report.models
    [flag] = report.flags
    assert (flag.kind, flag.path, flag.text, len(flag.sources)) == ("model", "", "gpt-4.1-nano", 1)
    told = {each.event.rpartition(".")[2]: each.payload for each in build_events(report, BRIEFS)}
    assert told["other-model"]["answers"] == 1
    assert told["other-model"]["first"] == ["openai/gpt-5-mini answered as gpt-4.1-nano"]
    assert "| openai/gpt-5-mini | gpt-4.1-nano | 1 | another model |" in markdown(report).replace("\\", "")
    served = {"", "gpt-4.1-nano", "gpt-5-mini-2025-08-07", "/srv/models/gpt-5-mini.gguf"}
    assert {outcome.served_model for outcome in report.outcomes} == served
    assert {(each.attempts[0].model, each.attempts[0].served_model) for each in report.outcomes} == {
        ("openai/gpt-5-mini", name) for name in served
    }


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_a_pattern_accepts_is_no_news() -> None:
    """Also for answers that are stored, without asking again."""
    with openai_server(serving("gpt-4.1-nano")) as server:
        assert run(server.url, 1).flags
        report = run(server.url, 1, accept_models=["gpt-4.1*"])
        assert server.count == 1
    assert report.flags == ()
    assert [row.expected for row in report.models] == [True]


@pytest.mark.usefixtures("store")
def test_strict_it_is_a_failure() -> None:
    """What it took counts, the other items go on; and what another model answered before is asked again."""
    with openai_server(serving("gpt-5-mini", "gpt-4.1-nano")) as server:
        assert run(server.url, 2).status == "complete"
        report = run(server.url, 2, strict_model=True)
        assert server.count == 3
        assert report.status == "gaps"
        [gap] = report.gaps
        assert gap.error.kind == "other_model"
        assert "'gpt-4.1-nano'" in gap.error.message
        assert report.usage.prompt_tokens == 10
        assert run(server.url, 2, strict_model=True, accept_models=["gpt-4.1*"]).status == "complete"


def test_what_was_stored_before_is_read() -> None:
    """Records of earlier versions have no such fields."""
    answer = Answer.model_validate({"value": "A", "model": "openai/gpt-5-mini", "attempts": [{"reasks": 1}]})
    assert (answer.served_model, answer.attempts) == ("", (Attempt(reasks=1),))
