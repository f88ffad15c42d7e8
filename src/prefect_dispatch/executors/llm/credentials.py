"""Credentials of language models: address, price and key from an LLMCredentials block, and errors about keys."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from prefect_dispatch.errors import ExecutorError, JobError, TerminalError
from prefect_dispatch.executors.block_references import (
    SLUGS,
    block_name,
    credentials,
    evict_credentials,
)
from prefect_dispatch.models.outcome import Usage

Credentials = Annotated[
    str,
    BeforeValidator(partial(block_name, "credentials")),
    WithJsonSchema({"title": "LLM Credentials", "type": "object", "block_type_slug": SLUGS["credentials"]}),
]
"""The name of an LLMCredentials block; a form has a picker for it, and Python also takes the block itself."""


def require_matching_provider(block_model: str, model: str, name: str, where: str = "executor") -> None:
    """Check that a key is for the provider of a model, so that no other provider gets it.

    Args:
        block_model: The block's default model; if empty, the key is for any model.
        model: The model that will be asked.
        name: The block's name.
        where: The executor's path in the job, for messages.

    Raises:
        JobError: If it is for another provider.
    """
    provider = block_model.partition("/")[0]
    if block_model and provider != model.partition("/")[0]:
        raise JobError(
            f"{where}.credentials: the block {name!r} is for models of {provider!r}, as its default model "
            f"{block_model!r} says, and {model!r} is of another provider; pick other credentials, or another model."
        )


async def load_key(name: str | None) -> dict[str, Any]:
    """Return the secret arguments of a call from a block: its key, and others.

    Raises:
        TerminalError: If the block doesn't exist any more.
    """
    if name is None:
        return {}
    try:
        return (await asyncio.to_thread(credentials, name)).arguments
    except JobError as error:
        raise TerminalError(str(error), kind="credentials", usage=Usage()) from None


def name_block_in_failure(failure: ExecutorError, name: str | None) -> ExecutorError:
    """Return a failure whose message names the block, if its key was refused; other failures unchanged."""
    if name is None or failure.kind != "credentials":
        return failure
    evict_credentials(name)
    message = f"{failure} The key is that of the LLMCredentials block {name!r}: change it there, and run again."
    return type(failure)(message, kind=failure.kind, usage=failure.usage)
