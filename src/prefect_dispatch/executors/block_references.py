"""References to Prefect blocks by name; credentials are loaded only where calls are made."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, WithJsonSchema
from rapidfuzz import process

from prefect_dispatch.errors import ExecutorError, JobError, TerminalError, first_problem
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.ephemeral_server import use_server
from prefect_dispatch.security.redaction import redact, register_secrets

if TYPE_CHECKING:
    from prefect.blocks.core import Block

    from prefect_dispatch.executors.llm.credentials_block import LLMCredentials

    B = TypeVar("B", bound=Block)

SLUGS = {"credentials": "llm-credentials", "profile": "dispatch-profile", "operation": "shell-operation"}
"""Slug of the block type by the name of the field that refers to it."""
_EXTRA_KEY_VARIABLES = {
    "cohere": "CO_API_KEY",
    "huggingface": "HF_TOKEN",
    "openrouter": "OR_API_KEY",
    "replicate": "REPLICATE_API_TOKEN",
}
"""Further variables in which litellm looks for a key, although its list of missing ones doesn't have them."""
BLOCK_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
"""The name of a block."""
_lock = threading.Lock()
_cache: dict[str, LLMCredentials] = {}
"""Credentials that this process has loaded, by block name; guarded by `_lock`."""


def block_name(field: str, value: object) -> str:
    """Return the name of a block, given its name, its slug with the name, or the block itself.

    Args:
        field: `credentials`, `profile` or `operation`.
        value: The value of the field.

    Raises:
        ValueError: If the value is none of these, or a block that isn't saved.

    Example:
        >>> block_name("credentials", "llm-credentials/my-openai")
        'my-openai'
    """
    slug = SLUGS[field]
    if isinstance(value, str):
        name = value.strip().removeprefix(f"{slug}/")
        if redact(name) != name:
            msg = "looks like a key itself; save it in an LLMCredentials block, and give the block's name"
            raise ValueError(msg)
        if not BLOCK_NAME.fullmatch(name):
            msg = f"{name!r} is not the name of a block: small letters, digits and single hyphens"
            raise ValueError(msg)
        return name
    kind: Any = type(value)
    if getattr(kind, "get_block_type_slug", str)() != slug:
        msg = f"must be the name of a saved block of the type {slug!r}, or such a block, not {kind.__name__}"
        raise ValueError(msg)
    saved: str | None = getattr(value, "_block_document_name", None)
    if not saved:
        msg = f"this {kind.__name__} isn't saved, and only a block's name travels with a run: call its save('a-name')"
        raise ValueError(msg)
    return saved


Credentials = Annotated[
    str,
    BeforeValidator(partial(block_name, "credentials")),
    WithJsonSchema({"title": "LLM Credentials", "type": "object", "block_type_slug": SLUGS["credentials"]}),
]
"""The name of an LLMCredentials block; a form has a picker for it, and Python also takes the block itself."""


def credentials(name: str) -> LLMCredentials:
    """Return the credentials of a block from the cache of this process; load them if they aren't there.

    Raises:
        JobError: If there is no such block.
    """
    with _lock:
        cached = _cache.get(name)
    return cached or load_credentials(name)


def load_credentials(name: str, where: str = "credentials") -> LLMCredentials:
    """Load the credentials of a block from the server, and cache them; their secrets are redacted from here on.

    Args:
        name: The block's name.
        where: The field in the user's file or form that names it, for messages.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    from prefect_dispatch.executors.llm.credentials_block import LLMCredentials  # noqa: PLC0415 -- imports Prefect

    block = load_block(LLMCredentials, name, where)
    register_secrets(block.secrets)
    with _lock:
        _cache[name] = block
    return block


def missing_key_variables(model: str) -> str | None:
    """Return the environment variables for a model's key, joined by `or`, if none of them is set.

    None if there is a key, if none is needed, or if the provider has other ways to authenticate, such as a role.

    Args:
        model: The model that would be used without a block, such as `openai/gpt-5-mini`.
    """
    from prefect_dispatch.executors.llm.litellm_adapter import load_litellm  # noqa: PLC0415 -- imports litellm

    litellm = load_litellm()
    try:
        _, its, found, _ = litellm.get_llm_provider(model=model)  # `found` is a key from a variable of its own
    except Exception:  # noqa: BLE001 -- an unknown provider is reported elsewhere
        return None
    missing: list[str] = litellm.validate_environment(model=model)["missing_keys"]
    if (
        found
        or os.environ.get(_EXTRA_KEY_VARIABLES.get(its, ""))
        or not all(each.endswith("_API_KEY") for each in missing)
    ):
        return None
    return " or ".join(missing) or None


def evict_credentials(name: str) -> None:
    """Remove the credentials of a block from the cache: its key was refused, and may have been replaced."""
    with _lock:
        _cache.pop(name, None)


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


def address_and_price(name: str, model: str, where: str) -> tuple[str | None, tuple[float, float] | None]:
    """Return the address in a block, and its price for a model; the key stays in the block.

    Args:
        name: The block's name.
        model: The model that is asked with it.
        where: The executor's path in the job, for messages.

    Returns:
        The address, and US dollars per million tokens sent and received; None for what the block doesn't have.

    Raises:
        JobError: If there is no such block, or it isn't for the model.
    """
    block = load_credentials(name, f"{where}.credentials")
    require_matching_provider(block.model, model, name, where)
    return block.api_base or None, block.price if block.model in ("", model) else None


def require_key(name: str | None, model: str, where: str) -> None:
    """Check that there is a key for a provider's model, in a block or in the environment of this process.

    Args:
        name: The block's name; None without a block.
        model: The model.
        where: The executor's path in the job, for messages.

    Raises:
        JobError: If there is certainly none.
    """
    if name and credentials(name).arguments:
        return
    if missing := missing_key_variables(model):
        block, has = (f"neither the block {name!r} nor ", "has") if name else ("", "has no")
        raise JobError(
            f"{where}: there is no key for {model!r}: {block}the environment of this run {has} {missing}. Set it "
            f"there, name a block under '{where}.credentials' that has a key, or ask a model whose key is known."
        )


async def load_key(name: str) -> dict[str, Any]:
    """Return the secret arguments of a call from a block: its key, and others.

    Raises:
        TerminalError: If the block doesn't exist any more.
    """
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


def shell_operation() -> type[Block]:
    """Import and return the class `ShellOperation` of prefect-shell."""
    block_class: type[Block] = import_module("prefect_shell").ShellOperation  # it has no types
    return block_class


def load_block(kind: type[B], name: str, where: str) -> B:
    """Load a block from the server.

    Args:
        kind: Its class.
        name: Its name.
        where: The field in the user's file or form that names it, for messages.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    from pydantic import ValidationError  # noqa: PLC0415 -- where Prefect is

    document = read_document(kind, name, where, secrets=True)
    try:
        return cast("B", cast("Any", kind)._from_block_document(document))  # noqa: SLF001 -- there is no public way
    except ValidationError as error:
        field, message = first_problem(error)
        raise JobError(
            f"{where}: the block {name!r} can't be used: {field}: {message}; fix it in Prefect's UI under Blocks."
        ) from None


def read_document(kind: type[Block], name: str, where: str, *, secrets: bool) -> Any:  # noqa: ANN401 -- Prefect's
    """Read the document of a block from the server.

    Raises:
        JobError: If there is no such block; the message names similar ones.
    """
    import httpx  # noqa: PLC0415 -- where Prefect is
    from prefect.client.orchestration import get_client  # noqa: PLC0415 -- imports Prefect
    from prefect.exceptions import ObjectNotFound  # noqa: PLC0415 -- imports Prefect

    slug = kind.get_block_type_slug()
    with use_server(), get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, slug, include_secrets=secrets)
        except ObjectNotFound:
            pass
        # There is none of that name: name those that exist, the most similar one first.
        try:
            existing = sorted(
                str(each.name) for each in client.read_block_documents_by_type(slug, include_secrets=False) if each.name
            )
        except (ObjectNotFound, httpx.HTTPStatusError):  # the type itself was never registered
            existing = []
    near = process.extractOne(name, existing, score_cutoff=60)
    examples = f" There are {', '.join(map(repr, existing[:5]))}." if existing else ""
    hint = f" Did you mean {near[0]!r}?" if near else examples
    raise JobError(
        f"{where}: this Prefect server has no {kind.__name__} block {name!r}.{hint} Make it in Prefect's UI under "
        f"Blocks (after `prefect block register -m {kind.__module__.partition('.')[0]}`), or with "
        f"{kind.__name__}(…).save({name!r})."
    )
