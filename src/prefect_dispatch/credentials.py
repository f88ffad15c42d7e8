"""Keys in Prefect blocks, loaded where calls are made; everything else knows a block by its name only."""

from __future__ import annotations

import os
import re
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rapidfuzz import process

from prefect_dispatch.errors import JobError
from prefect_dispatch.scrub import hide, scrub
from prefect_dispatch.temporary_server import use_server

if TYPE_CHECKING:
    from prefect.blocks.core import Block

    from prefect_dispatch.blocks import DispatchProfile, LLMCredentials

    B = TypeVar("B", bound=Block)

SLUGS = {"credentials": "llm-credentials", "profile": "dispatch-profile", "operation": "shell-operation"}
"""What the blocks of a field of that name are called in addresses."""
_ALSO = {
    "cohere": "CO_API_KEY",
    "huggingface": "HF_TOKEN",
    "openrouter": "OR_API_KEY",
    "replicate": "REPLICATE_API_TOKEN",
}
"""Where litellm takes a key from as well, though its list of what is missing doesn't say so."""
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_lock = threading.Lock()
_known: dict[str, LLMCredentials] = {}


def named(field: str, value: object) -> str:
    """Return the name of the block that a field stands for: its name already, or the block itself.

    Args:
        field: `credentials`, `profile` or `operation`.
        value: What was given.

    Raises:
        ValueError: If that is neither, or a block that nobody saved.

    Example:
        >>> named("credentials", "llm-credentials/my-openai")
        'my-openai'
    """
    slug = SLUGS[field]
    if isinstance(value, str):
        name = value.strip().removeprefix(f"{slug}/")
        if scrub(name) != name:
            msg = "looks like a key itself; save it in an LLMCredentials block, and give the block's name"
            raise ValueError(msg)
        if not _NAME.fullmatch(name):
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


def credentials(name: str) -> LLMCredentials:
    """Return the credentials of a name, as this run knows them; loaded if this process doesn't have them yet.

    Raises:
        JobError: If there is no such block.
    """
    with _lock:
        found = _known.get(name)
    return found or fresh_credentials(name)


def fresh_credentials(name: str, where: str = "credentials") -> LLMCredentials:
    """Return the credentials of a name, as the server has them now; from here on they are hidden in all texts.

    Args:
        name: The block's name.
        where: What the user's file or form calls the field that names it.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    from prefect_dispatch.blocks import LLMCredentials  # noqa: PLC0415 -- imports Prefect

    found = loaded(LLMCredentials, name, where)
    hide(found.secrets)
    with _lock:
        _known[name] = found
    return found


def missing_key(model: str) -> str | None:
    """Return the names of the variables of which one must hold a model's key, if the environment has none of them.

    None where there is a key, where none is needed, or where a provider has other ways to sign in, such as a role.

    Args:
        model: Who would be asked without a block, such as `openai/gpt-5-mini`.
    """
    from prefect_dispatch.executors.provider import provider  # noqa: PLC0415 -- imports litellm

    litellm = provider()
    try:
        _, its, found, _ = litellm.get_llm_provider(model=model)  # what it found under a name of its own, too
    except Exception:  # noqa: BLE001 -- an unknown provider is told elsewhere
        return None
    wanted: list[str] = litellm.validate_environment(model=model)["missing_keys"]
    if found or os.environ.get(_ALSO.get(its, "")) or not all(each.endswith("_API_KEY") for each in wanted):
        return None
    return " or ".join(wanted) or None


def forget(name: str) -> None:
    """Have the credentials of a name loaded anew: its key was refused, and may have been changed."""
    with _lock:
        _known.pop(name, None)


def profile(name: str) -> DispatchProfile:
    """Return the profile of a name.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    from prefect_dispatch.blocks import DispatchProfile  # noqa: PLC0415 -- imports Prefect

    found = loaded(DispatchProfile, name, "profile")
    if found.credentials is not None:
        hide(found.credentials.secrets)
    return found


def reference(field: str, name: str) -> dict[str, Any]:
    """Return what stands for a block in the parameters of a deployment, as a form's picker shows it.

    Raises:
        JobError: If there is no such block.
    """
    from prefect_dispatch.blocks import DispatchProfile, LLMCredentials  # noqa: PLC0415 -- imports Prefect

    kinds: dict[str, type[Block]] = {"credentials": LLMCredentials, "profile": DispatchProfile}
    block = kinds.get(field) or shell_operation()
    return {"$ref": {"block_document_id": str(_document(block, name, field, secrets=False).id)}}


def shell_operation() -> type[Block]:
    """Return the class of the blocks that hold commands."""
    found: type[Block] = import_module("prefect_shell").ShellOperation  # it has no types
    return found


def loaded(kind: type[B], name: str, where: str) -> B:
    """Return the block of a name, as the server has it now.

    Args:
        kind: Its class.
        name: Its name.
        where: What the user's file or form calls the field that names it.

    Raises:
        JobError: If there is no such block, or it can't be read.
    """
    from pydantic import ValidationError  # noqa: PLC0415 -- where Prefect is

    document = _document(kind, name, where, secrets=True)
    try:
        return cast("B", cast("Any", kind)._from_block_document(document))  # noqa: SLF001 -- no public way from what was read
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        raise JobError(
            f"{where}: the block {name!r} can't be used: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}; "
            "mend it in Prefect's UI under Blocks."
        ) from None


def _document(kind: type[Block], name: str, where: str, *, secrets: bool) -> Any:  # noqa: ANN401 -- Prefect's
    import httpx  # noqa: PLC0415 -- where Prefect is
    from prefect.client.orchestration import get_client  # noqa: PLC0415 -- imports Prefect
    from prefect.exceptions import ObjectNotFound  # noqa: PLC0415 -- imports Prefect

    slug = kind.get_block_type_slug()
    with use_server(), get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, slug, include_secrets=secrets)
        except ObjectNotFound:
            pass
        try:
            there = sorted(
                str(each.name) for each in client.read_block_documents_by_type(slug, include_secrets=False) if each.name
            )
        except (ObjectNotFound, httpx.HTTPStatusError):  # the type itself was never registered
            there = []
    near = process.extractOne(name, there, score_cutoff=60)
    listed = f" There are {', '.join(map(repr, there[:5]))}." if there else ""
    hint = f" Did you mean {near[0]!r}?" if near else listed
    raise JobError(
        f"{where}: this Prefect server has no {kind.__name__} block {name!r}.{hint} Make it in Prefect's UI under "
        f"Blocks (after `prefect block register -m {kind.__module__.partition('.')[0]}`), or with "
        f"{kind.__name__}(…).save({name!r})."
    )
