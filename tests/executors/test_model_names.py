"""Which names are the same model, and which are not."""

from __future__ import annotations

import pytest

from prefect_dispatch.executors.llm.messages import is_expected_model

SAME = [
    ("openai/gpt-5-mini", "gpt-5-mini-2025-08-07"),
    ("openai/gpt-4", "gpt-4-0613"),
    ("openai/gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
    ("openai/gpt-4-turbo-preview", "gpt-4-0125-preview"),
    ("openai/gpt-4o", "GPT-4o"),
    ("openai/o1", "o1-2024-12-17"),
    ("openai/ft:gpt-4o-mini-2024-07-18:org::id", "ft:gpt-4o-mini-2024-07-18:org::id"),
    ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
    ("anthropic/claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
    ("openrouter/anthropic/claude-sonnet-4.5", "anthropic/claude-4.5-sonnet-20250929"),
    ("openrouter/auto", "mistralai/anything"),
    ("openrouter/openrouter/auto", "anything"),
    ("openrouter/deepseek/deepseek-chat:free", "deepseek/deepseek-chat"),
    ("gemini/gemini-2.5-flash-preview", "gemini-2.5-flash-preview-05-20"),
    ("gemini/gemini-flash-latest", "gemini-2.5-flash-preview-09-2025"),
    ("gemini/gemini-1.5-pro", "gemini-1.5-pro-002"),
    ("vertex_ai/claude-sonnet-4@20250514", "claude-sonnet-4-20250514"),
    ("vertex_ai/1234567890", "anything"),
    ("xai/grok-4", "grok-4-0709"),
    ("mistral/mistral-large-latest", "mistral-large-2411"),
    ("bedrock/us.anthropic.claude-sonnet-4-20250514-v1:0", "claude-sonnet-4-20250514"),
    ("bedrock/arn:aws:bedrock:eu-west-1:1:application-inference-profile/x", "claude-sonnet-4"),
    ("groq/openai/gpt-oss-120b", "openai/gpt-oss-120b"),
    ("ollama_chat/llama3.1", "llama3.1:latest"),
    ("hosted_vllm/meta-llama/Llama-3.1-8B-Instruct", "/models/Llama-3.1-8B-Instruct"),
    ("hosted_vllm//models/Llama-3.1-8B-Instruct/", "Llama-3.1-8B-Instruct"),
    ("openai/qwen2.5-7b-instruct", "C:\\models\\qwen2.5-7b-instruct-q4_k_m.gguf"),
    ("azure/my-deployment", "gpt-4o-2024-08-06"),
    ("azure_ai/model-router", "gpt-5-mini"),
    ("openai/anything", ""),
]
OTHER = [
    ("openai/gpt-5", "gpt-5-mini-2025-08-07"),
    ("openai/gpt-5", "gpt-5.1-2025-11-13"),
    ("openai/gpt-4.1", "gpt-4"),
    ("openai/gpt-4", "gpt-4o"),
    ("openai/gpt-4-0613", "gpt-4-0314"),
    ("openai/gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
    ("anthropic/claude-opus-4-1", "claude-sonnet-4-5-20250929"),
    ("gemini/gemini-2.5-pro", "gemini-2.5-flash"),
    ("gemini/gemini-pro-latest", "gemini-2.5-flash"),
    ("hosted_vllm/llama-3-70b", "llama-3-8b"),
    ("ollama_chat/llama3.1:70b", "llama3.1:8b"),
    ("together_ai/meta/Llama-3", "meta/Llama-3-FP8"),
    ("openai/my-model", "/models/qwen2.5-7b.gguf"),
]


@pytest.mark.parametrize(("asked", "served"), SAME)
def test_names_of_one_model(asked: str, served: str) -> None:
    """Snapshots, prefixes, paths and routers; what isn't said proves nothing."""
    assert is_expected_model(asked, served)


@pytest.mark.parametrize(("asked", "served"), OTHER)
def test_names_of_another_model(asked: str, served: str) -> None:
    """Another size, version, family or rounding; unless a pattern accepts it."""
    assert not is_expected_model(asked, served)
    assert not is_expected_model(asked, served, ["something-else*"])
    assert is_expected_model(asked, served, ["something-else*", served.upper()])


def test_a_deployment_is_held_to_patterns_alone() -> None:
    """Its name says nothing of its model."""
    assert is_expected_model("azure/prod", "gpt-4o-2024-08-06", ["GPT-4o*"])
    assert not is_expected_model("azure/prod", "gpt-4o-2024-08-06", ["gpt-5*"])
    assert is_expected_model("openai/a", "vendor/b", ["b"])
