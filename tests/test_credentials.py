"""Whether the environment has a key for a model, before anybody is asked."""

from __future__ import annotations

import asyncio
import os

import pytest
from prefect.blocks.core import Block

from prefect_dispatch.errors import JobError, TerminalError
from prefect_dispatch.executors.block_references import load_block, load_key, missing_key_variables
from prefect_dispatch.models.outcome import Usage


@pytest.mark.parametrize(
    ("model", "there", "missing"),
    [
        pytest.param("anthropic/x", "", "ANTHROPIC_API_KEY", id="none"),
        pytest.param("gemini/x", "", "GOOGLE_API_KEY or GEMINI_API_KEY", id="one-of-two"),
        pytest.param("anthropic/x", "ANTHROPIC_API_KEY", None, id="there"),
        pytest.param("perplexity/x", "PERPLEXITY_API_KEY", None, id="by-another-name"),
        pytest.param("openrouter/x", "OR_API_KEY", None, id="by-a-short-name"),
        pytest.param("azure/x", "", None, id="signs-in-otherwise"),
        pytest.param("bedrock/x", "", None, id="has-a-role"),
        pytest.param("ollama/x", "", None, id="needs-none"),
        pytest.param("hosted_vllm/x", "", None, id="a-server-of-ones-own"),
        pytest.param("local/smollm2", "", None, id="on-this-machine"),
        pytest.param("nobody-knows-this", "", None, id="unknown"),
    ],
)
def test_a_missing_key_is_known(monkeypatch: pytest.MonkeyPatch, model: str, there: str, missing: str | None) -> None:
    """By the variables that litellm reads; where it may find a way without one, nothing is said to be missing."""
    for name in [each for each in os.environ if each.endswith(("_API_KEY", "_TOKEN"))]:
        monkeypatch.delenv(name)
    if there:
        monkeypatch.setenv(there, "sk-none-needed-0123456789")
    assert missing_key_variables(model) == missing


class OfNobody(Block):
    """A kind of block that no server was told of."""


@pytest.mark.usefixtures("store")
def test_a_block_of_a_kind_that_the_server_does_not_know() -> None:
    """It is told as one that isn't there, and how it is made."""
    told = r"^credentials: this Prefect server has no OfNobody block 'mine'\. Make it in Prefect's UI under Blocks"
    with pytest.raises(JobError, match=told):
        load_block(OfNobody, "mine", "credentials")


@pytest.mark.usefixtures("store")
def test_a_block_that_is_gone_by_the_time_it_is_asked_for() -> None:
    """Nobody was asked, and nobody is: every item would meet the same."""
    with pytest.raises(TerminalError, match="this Prefect server has no LLMCredentials block 'gone'") as caught:
        asyncio.run(load_key("gone"))
    assert (caught.value.kind, caught.value.usage) == ("credentials", Usage())
