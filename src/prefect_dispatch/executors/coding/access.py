"""The key that an agent is given: from a block, or from a variable that the job passes on. Never in a parameter."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.credentials import credentials, fresh_credentials
from prefect_dispatch.errors import JobError, TerminalError
from prefect_dispatch.executors.coding.mini import key_variable
from prefect_dispatch.executors.keys import require_fit
from prefect_dispatch.models import Usage
from prefect_dispatch.scrub import hide

if TYPE_CHECKING:
    from collections.abc import Sequence


class Access(NamedTuple):
    """How an agent gets at its provider."""

    key: str
    """The key; empty where there is none, or where the agent finds one itself."""
    passed: tuple[str, ...]
    """The variables that everything in its workspace may see: all that are passed on but the key's."""


def key_names(model: str) -> tuple[str, ...]:
    """Return the variables that may hold the key of a model's provider, the likeliest first.

    Example:
        >>> key_names("openai/gpt-5")
        ('OPENAI_API_KEY', 'CODEX_API_KEY')
    """
    more = {"openai": ("CODEX_API_KEY",), "anthropic": ("ANTHROPIC_AUTH_TOKEN",), "gemini": ("GOOGLE_API_KEY",)}
    return (key_variable(model), *more.get(model.partition("/")[0], ()))


def require_access(model: str, block: str | None, pass_env: Sequence[str], api_base: str, names: Sequence[str]) -> str:
    """Return the address of a model's provider, once there is a way to it.

    Args:
        model: The model, with its provider.
        block: The name of an LLMCredentials block.
        pass_env: The variables that are passed on.
        api_base: The address that the job gives.
        names: The variables of which one would hold the key.

    Raises:
        JobError: If the block isn't there, has no key or isn't for this provider, or if there is no key at all.
    """
    if block is not None:
        found = fresh_credentials(block, "executor.credentials")
        require_fit(found.model, model, block)
        if not found.arguments.get("api_key"):
            raise JobError(f"executor.credentials: the block {block!r} has no key, and an agent needs one; add it.")
        return api_base or found.api_base
    if not pass_env and not api_base:
        raise JobError(
            f"executor: the agent has no key for {model!r}: name the variable that holds it under 'executor.pass_env' "
            f"({names[0]}, say), or an LLMCredentials block under 'executor.credentials'."
        )
    return api_base


async def access(block: str | None, pass_env: Sequence[str], names: Sequence[str]) -> Access:
    """Return the key of an agent, which is hidden in all texts from now on.

    Raises:
        TerminalError: If the block isn't there any more.
    """
    passed = tuple(name for name in pass_env if name not in names)
    if block is not None:
        try:
            key = str((await asyncio.to_thread(credentials, block)).arguments.get("api_key", ""))
        except JobError as error:
            raise TerminalError(str(error), kind="credentials", usage=Usage()) from None
    else:
        key = next((os.environ[name] for name in names if name in pass_env and os.environ.get(name)), "")
    hide([key])
    return Access(key, passed)
