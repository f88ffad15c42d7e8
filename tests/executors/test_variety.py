"""Several answers to one brief: samples, models, and who can't give any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_dispatch.errors import BriefError, JobError
from prefect_dispatch.executors.base import (
    Ask,
    executor_for,
    expand_samples,
    fingerprint,
    original_name,
    require_variety,
)
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, openai_server

ITEM = Item(key="a", value="x")
WARM = LLM(model="openai/m", params={"temperature": 0.7})


def brief(name: str = "label", **more: Any) -> Brief:  # noqa: ANN401 -- fields of many types
    """Return a brief."""
    return Brief.model_validate({"name": name, "instructions": "Label it.", **more})


def test_samples_are_briefs_of_their_own() -> None:
    """Each sample has a name and a fingerprint; taken apart once more it is itself."""
    samples = expand_samples(brief(samples=3))
    assert [each.name for each in samples] == ["label-1", "label-2", "label-3"]
    assert [original_name(each) for each in samples] == ["label"] * 3
    assert len({fingerprint(each, ITEM, WARM) for each in samples}) == 3
    assert [one for each in samples for one in expand_samples(each)] == list(samples)


def test_more_samples_leave_the_first_as_they_are() -> None:
    """Raising the number asks only for what is new; the first sample is the answer of a brief without samples."""
    few, more = expand_samples(brief(samples=2)), expand_samples(brief(samples=5))
    names = [fingerprint(each, ITEM, WARM) for each in more]
    assert [fingerprint(each, ITEM, WARM) for each in few] == names[:2]
    assert fingerprint(brief(), ITEM, WARM) == names[0]


def test_a_single_one_keeps_its_name() -> None:
    """A brief that asks for one answer is left alone, whatever its name ends with."""
    assert expand_samples(brief("label-1")) == (brief("label-1"),)
    assert original_name(brief("label-1")) == "label-1"


def test_a_name_too_long_for_numbers() -> None:
    """A name without room for the samples' numbers is refused, with the room that there is."""
    assert len(expand_samples(brief("x" * 57, samples=10))) == 10
    with pytest.raises(JobError, match="a name of 57 characters at most"):
        expand_samples(brief("x" * 58, samples=10))


@pytest.mark.parametrize(
    ("executor", "model", "refused"),
    [
        pytest.param(LLM(model="openai/m", params={"temperature": 0}), "", True, id="temperature 0"),
        pytest.param(LLM(model="openai/m", params={"temperature": 0.0}), "", True, id="temperature 0.0"),
        pytest.param(LLM(model="openai/m"), "", False, id="the provider's own temperature"),
        pytest.param(WARM, "", False, id="temperature 0.7"),
        pytest.param(LLM(model="local/smollm2"), "", True, id="local, as it comes"),
        pytest.param(LLM(model="local/smollm2", params={"temperature": 1}), "", False, id="local, warm"),
        pytest.param(LLM(model="openai/m"), "local/smollm2", True, id="the brief's own model"),
        pytest.param(ScriptedExecutor({}), "", False, id="who can't tell"),
    ],
)
def test_samples_that_would_be_one_answer(executor: Any, model: str, refused: bool) -> None:  # noqa: ANN401, FBT001 -- columns
    """Paying several times for one answer is refused before anything is spent."""
    briefs = expand_samples(brief(samples=2, model=model))
    if refused:
        with pytest.raises(JobError, match=r"Brief 'label' asks for 2 samples of one answer.*temperature"):
            require_variety(briefs, executor)
    else:
        require_variety(briefs, executor)
    require_variety([brief(model=model)], executor)


def test_a_brief_with_a_model_of_its_own() -> None:
    """It is that model's answer: its fingerprint, no fallback, no price of another, an address of its provider only."""
    llm = LLM(model="openai/m", fallbacks=("openai/f",), api_base="http://127.0.0.1:1/v1", usd_per_million=(1, 2))
    other = executor_for(brief(model="anthropic/n"), llm)
    assert other == LLM(model="anthropic/n")
    same = executor_for(brief(model="openai/m"), llm)
    assert same == LLM(model="openai/m", api_base="http://127.0.0.1:1/v1", usd_per_million=(1, 2))
    assert executor_for(brief(model="openai/n"), llm) == LLM(model="openai/n", api_base="http://127.0.0.1:1/v1")
    assert executor_for(brief(), llm) is llm
    assert executor_for(brief(model="openai/m"), WARM) is WARM
    asked = fingerprint(brief(model="openai/m"), ITEM, LLM(model="openai/other", params={"temperature": 0.7}))
    assert asked == fingerprint(brief(), ITEM, WARM)


def test_only_a_language_model_has_others() -> None:
    """A model is refused where nobody could ask it."""
    with pytest.raises(BriefError, match=r"Brief 'label' names a model \('openai/m'\).*ScriptedExecutor"):
        require_variety([brief(model="openai/m")], ScriptedExecutor({}))


@pytest.mark.parametrize(("params", "seeds"), [({"seed": 7}, [7, 7, 8, 9]), ({}, [None] * 4)])
def test_each_sample_has_a_seed_of_its_own(
    params: dict[str, Any], seeds: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one seed for all a model would say the same each time."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with openai_server(Behaviour(content="short")) as server:
        llm = LLM(model="openai/gpt-4o", api_base=server.url, params=params)
        for each in (brief(), *expand_samples(brief(samples=3))):
            asyncio.run(llm.answer(Ask(brief=each, item=ITEM)))
    assert [request.body.get("seed") for request in server.requests] == seeds
