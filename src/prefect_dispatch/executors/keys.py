"""What a language model's executor takes from an LLMCredentials block, and what it says where the key won't do."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from prefect_dispatch.credentials import SLUGS, credentials, forget, fresh_credentials, missing_key, named
from prefect_dispatch.errors import ExecutorError, JobError, TerminalError
from prefect_dispatch.executors.local import is_local
from prefect_dispatch.models import Usage

if TYPE_CHECKING:
    from prefect_dispatch.executors.llm import LLM

Credentials = Annotated[
    str,
    BeforeValidator(partial(named, "credentials")),
    WithJsonSchema({"title": "LLM Credentials", "type": "object", "block_type_slug": SLUGS["credentials"]}),
]
"""The name of an LLMCredentials block; in a form its picker, in Python the block itself, too."""


def with_block(llm: LLM, where: str = "executor") -> LLM:
    """Return an executor with the address and the price of its block; the key stays where it is.

    Args:
        llm: The executor.
        where: What the job calls it.

    Raises:
        JobError: If there is no such block, or it isn't for the executor's model.
    """
    if llm.credentials is None or is_local(llm.model):
        return llm
    block = fresh_credentials(llm.credentials, f"{where}.credentials")
    require_fit(block.model, llm.model, llm.credentials, where)
    stated = block.price if block.model in ("", llm.model) and not llm.fallbacks else None
    more = {"api_base": llm.api_base or block.api_base or None, "usd_per_million": llm.usd_per_million or stated}
    return llm.model_copy(update=more)


def require_fit(its: str, model: str, name: str, where: str = "executor") -> None:
    """Check that a key is for the provider of a model, so that no other gets it.

    Args:
        its: The block's default model; none, and it is for any.
        model: Who is to be asked.
        name: The block's name.
        where: What the job calls who is to be asked.

    Raises:
        JobError: If it isn't.
    """
    provider = its.partition("/")[0]
    if its and provider != model.partition("/")[0]:
        raise JobError(
            f"{where}.credentials: the block {name!r} is for models of {provider!r}, as its default model {its!r} "
            f"says, and {model!r} is of another provider; pick other credentials, or another model."
        )


def require_key(llm: LLM, where: str) -> None:
    """Check that there is a key for a model, in its block or in the environment of this process.

    Args:
        llm: Who is to be asked, with its block's address in place.
        where: What the job calls it.

    Raises:
        JobError: If it is plain that there is none.
    """
    block = f"neither the block {llm.credentials!r} nor " if llm.credentials else ""
    if is_local(llm.model) or llm.api_base or (llm.credentials and credentials(llm.credentials).arguments):
        return
    if missing := missing_key(llm.model):
        has = "has" if block else "has no"
        raise JobError(
            f"{where}: there is no key for {llm.model!r}: {block}the environment of this run {has} {missing}. Set it "
            f"there, name a block under '{where}.credentials' that has a key, or ask a model whose key is known."
        )


async def key_of(name: str | None) -> dict[str, Any]:
    """Return what a call takes from a block: its key, and whatever else is secret.

    Raises:
        TerminalError: If it isn't there any more.
    """
    if name is None:
        return {}
    try:
        return (await asyncio.to_thread(credentials, name)).arguments
    except JobError as error:
        raise TerminalError(str(error), kind="credentials", usage=Usage()) from None


def of_block(failure: ExecutorError, name: str | None) -> ExecutorError:
    """Return a failure that says whose key it was, where the key is what won't do."""
    if name is None or failure.kind != "credentials":
        return failure
    forget(name)
    told = f"{failure} The key is that of the LLMCredentials block {name!r}: change it there, and run again."
    return type(failure)(told, kind=failure.kind, usage=failure.usage)
