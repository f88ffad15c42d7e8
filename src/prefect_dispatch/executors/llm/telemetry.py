"""Names of OpenTelemetry's GenAI conventions, and notes of a call for its span.

The conventions are in development, and still rename things. The names here are those of their version 1.41, the last
one before they moved to a repository of their own, and the one that most tools know. A test compares them with
OpenTelemetry's package. To follow a later version, change this module alone.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# Attributes of spans and metrics.
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 -- of a language model
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

REQUEST_PARAMS: Final = {
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
}
"""Attribute of each parameter of a call that the conventions have a name for; all are numbers."""

# Values of attributes.
CHAT: Final = "chat"
INPUT: Final = "input"
OUTPUT: Final = "output"
FINISHES: Final = {"complete": "stop", "truncated": "length", "refused": "content_filter"}
"""Finish reason of a reply, by the way it ended."""
PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""Name of a provider, by litellm's; any other provider has litellm's name."""
LOCAL_PROVIDER: Final = "llama.cpp"
"""Provider of the models that run on this machine; the conventions have no name for it."""

# Metrics.
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 -- as above
TOKEN_BUCKETS: Final = tuple(4.0**power for power in range(14))
DURATION: Final = "gen_ai.client.operation.duration"
DURATION_BUCKETS_S: Final = tuple(0.01 * 2**power for power in range(14))

# Attributes of our own.
BRIEF: Final = "prefect_dispatch.brief"
STEP: Final = "prefect_dispatch.step"
TIER: Final = "prefect_dispatch.tier"
COST_USD: Final = "prefect_dispatch.cost_usd"

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Variable of the environment that switches on messages in spans."""
_CAPTURE_VALUES = frozenset({"true", "span_only", "span_and_event"})
"""Its values that do, in lower case: the first one is that of OpenTelemetry's earlier instrumentations."""


def captures_messages() -> bool:
    """Return whether spans are to contain the texts of messages."""
    return os.environ.get(CAPTURE, "").strip().lower() in _CAPTURE_VALUES


@dataclass(slots=True)
class CallNotes:
    """What is known of a call only where it is sent."""

    url: str = ""
    """The address that its request was sent to; empty if none was sent."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The messages of its request."""


current_notes: ContextVar[CallNotes | None] = ContextVar("prefect_dispatch_call_notes", default=None)
"""The notes of the call in this context; None if it has no span and no metrics."""


def note_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Note the messages of a request, if the call in this context is reported."""
    if notes := current_notes.get():
        notes.messages = messages


def note_url(url: object) -> None:
    """Note the address of a request, if the call in this context is reported.

    Args:
        url: The address; a text, or an object of an HTTP client's.
    """
    if notes := current_notes.get():
        notes.url = str(url)
