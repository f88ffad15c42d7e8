"""Settings from environment variables; every setting has a default."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, cast

import regex
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prefect_dispatch.errors import JobError, first_problem

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


def environment_snapshot() -> Hashable:
    """Return a snapshot of the environment as a cache key: equal as long as the environment is equal.

    `os.environ` decodes every name and value on each iteration, which took most of the time of an item here, so its
    internal mapping of bytes is compared instead.

    Example:
        >>> before = environment_snapshot()
        >>> before == environment_snapshot()
        True
        >>> os.environ["EXAMPLE"] = "another"
        >>> before == environment_snapshot()
        False
    """
    global _last  # noqa: PLW0603 -- replaced as a whole, as other threads read it concurrently
    data: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
    last_data, snapshot = _last
    if last_data != data:  # a comparison takes a quarter of the time of building a set
        last_data = dict(data)
        snapshot = frozenset(last_data.items())
        _last = last_data, snapshot
    return snapshot


_last: tuple[dict[Any, Any], Hashable] = {}, frozenset[Any]()
"""The environment at the last call, and the snapshot that was returned for it."""
PREFIX = "PREFECT_DISPATCH_"


PROBES = tuple(stem * 4_000 + end for stem in ("a", "1", "ab ", "a1-", "x.", "\\") for end in ("", "!", "\n"))
"""Texts on which a pattern with catastrophic backtracking usually times out."""
PROBE_SECONDS = 1.0


def _parse_patterns(value: Any) -> Any:  # noqa: ANN401 -- any input of a validator
    """Parse patterns from a JSON list, or from the text of a single pattern."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        if value.replace(" ", "").startswith('["'):
            raise ValueError(
                f"{value!r} begins like a JSON list, and is none: in JSON a backslash is written twice"
            ) from None
        return (value,) if value else ()
    several = cast("list[object]", parsed if isinstance(parsed, list) else [...])
    return several if all(isinstance(each, str) for each in several) else (value,)


def _require_usable(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            compiled = regex.compile(pattern)
            if compiled.search(""):
                raise ValueError(f"the pattern {pattern!r} matches the empty text, and so everywhere")
            # Probe with texts that make catastrophic backtracking visible.
            for text in PROBES:
                compiled.sub("", text, timeout=PROBE_SECONDS)
        except regex.error as error:  # noqa: PERF203 -- the message has the pattern
            raise ValueError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
        except TimeoutError:
            raise ValueError(
                f"the pattern {pattern!r} takes more than {PROBE_SECONDS:g} s on a short text; avoid repeats within "
                "repeats, such as (a+)+"
            ) from None
    return patterns


class Settings(BaseSettings):
    """Settings from environment variables that begin with `PREFECT_DISPATCH_`.

    Example:
        >>> Settings(model="openai/gpt-5-mini").model
        'openai/gpt-5-mini'
        >>> Settings(redact='["ACME-[0-9]+"]').redact
        ('ACME-[0-9]+',)
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """`PREFECT_DISPATCH_MODEL`: the model that is asked where a job names none."""
    redact: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_patterns), AfterValidator(_require_usable)] = ()
    """`PREFECT_DISPATCH_REDACT`: regular expressions, as a JSON list or a single one. What they match is hidden."""
    max_response_bytes: int = Field(default=32 << 20, ge=1 << 10)
    """`PREFECT_DISPATCH_MAX_RESPONSE_BYTES`: bytes of a provider's response, decompressed, that are read; 32 MiB."""
    server_wait_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """`PREFECT_DISPATCH_SERVER_WAIT_S`: seconds that `deploy`, `serve` and `automations` wait for a Prefect server
    that does not answer yet; 0: none."""
    reports_url: Annotated[str, Field(pattern=r"^(https?://[^\s<>()\[\]\"'`@\\]+)?$")] = ""
    """`PREFECT_DISPATCH_REPORTS_URL`: the address under which a web server serves the output folders; the absolute path
    of a page follows it, or its bucket and path. Report artifacts link to their page there."""
    state: str = ""
    """`PREFECT_DISPATCH_STATE`: the folder for programs' own folders and logs, and for jobs of agents; by default
    that of the user's state."""


def settings() -> Settings:
    """Return the settings of the current environment.

    Raises:
        JobError: If a value is invalid.
    """
    return _settings(_own_variables(environment_snapshot()))


@lru_cache(maxsize=2)
def _own_variables(environment: Hashable) -> tuple[tuple[str, str], ...]:
    """Return our variables of a snapshot: of that one, as another thread may have changed the environment since."""
    pairs = cast("frozenset[tuple[bytes | str, bytes | str]]", environment)
    variables = ((os.fsdecode(name), os.fsdecode(value)) for name, value in pairs)
    return tuple(sorted(each for each in variables if each[0].upper().startswith(PREFIX)))


@lru_cache(maxsize=8)  # validating the patterns takes some time
def _settings(variables: tuple[tuple[str, str], ...]) -> Settings:
    values: dict[str, Any] = {name[len(PREFIX) :].lower(): value for name, value in variables}
    try:
        return Settings(**{name: value for name, value in values.items() if name in Settings.model_fields})
    except ValidationError as error:
        name, message = first_problem(error)
        raise JobError(f"{PREFIX}{name.partition('.')[0].upper()}: {message}.") from None
