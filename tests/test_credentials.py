"""Whether the environment has a key for a model, before anybody is asked."""

from __future__ import annotations

import os

import pytest

from prefect_dispatch.credentials import missing_key


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
    assert missing_key(model) == missing
