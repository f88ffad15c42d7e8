"""Protocol of an adapter, which starts one coding agent and parses its output, with its data types.

Adapters consist of pure functions: they neither start programs nor read or write files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from prefect_dispatch.models.base import Strict

LONGEST_ARGUMENT = 100_000
"""Most bytes of one command-line argument; Linux allows 131,072."""


class Tokens(NamedTuple):
    """Token counts that an agent reports."""

    prompt: int = 0
    """Tokens sent, cached ones included."""
    completion: int = 0
    """Tokens received, reasoning included."""
    cached: int = 0
    """Those of the prompt that were read from a cache."""


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """Request for one run of an agent: everything that an adapter needs to start it."""

    program: str
    """The agent's program."""
    model: str
    """The model, as the job names it."""
    prompt: str
    """The whole prompt."""
    schema: dict[str, Any] | None
    """The JSON Schema of its answer; None for text."""
    home: Path
    """Its own HOME, accessible to its user only."""
    workspace: Path
    """The folder that it works in."""
    answer: Path
    """A file for the answer of an agent that has no other way to return one."""
    params: Any
    """The executor's params, validated by the model that the adapter names in `params_model`."""
    api_base: str = ""
    """The address of the provider; empty for the provider's own."""
    key: str = ""
    """The provider's key; empty if the environment has all that is needed."""
    max_usd: float | None = None
    """Most US dollars that it may spend."""
    max_turns: int | None = None
    """How often it may call its model."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Command, environment and files that start an agent."""

    argv: tuple[str, ...]
    """Program and arguments, without the key and the prompt."""
    cwd: Path
    """The folder that it is started in."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables in addition to the workspace's."""
    files: Mapping[Path, str] = field(default_factory=dict[Path, str])
    """Files to write before the start, readable by their owner only."""
    stdin: str = ""
    """Its standard input."""


class AgentOutput(NamedTuple):
    """Output of an agent's program."""

    stdout: str
    """Its standard output; a line stands for bytes that were left out."""
    stderr: str = ""
    """Its standard error."""
    files: Mapping[str, str] = MappingProxyType({})
    """The files of its HOME that its adapter reads, by name, as far as they exist."""
    exit: int | None = 0
    """Its exit code. None: a signal ended it."""


@dataclass(frozen=True, kw_only=True)
class AgentReport:
    """Report of an agent, parsed from its output; `verdict` decides from it whether the work is done."""

    reports_success: bool = False
    """Whether the agent reports success."""
    valid_exit_codes: tuple[int, ...] = (0,)
    """The exit codes that are valid with this report."""
    text: str = ""
    """Its final message."""
    structured: JsonValue = None
    """Its answer, if it returned structured output."""
    tokens: Tokens | None = None
    """Its token counts. None: it reports none, or only a part."""
    cost_usd: float | None = None
    """The cost that it reports."""
    errors: tuple[str, ...] = ()
    """Its error messages."""
    denials: tuple[str, ...] = ()
    """Actions that it was not allowed to do; one fails the work."""
    refusals: tuple[str, ...] = ()
    """Actions that its own policy refused, so that it had to find another way; reported, and no failure by itself."""
    no_sandbox: str = ""
    """Why its sandbox can't be created on this machine, if that kept all of its commands from running."""
    status: int | None = None
    """The HTTP status of its provider's final refusal."""
    limit: Literal["", "max_turns", "max_usd"] = ""
    """Which limit ended it."""
    is_transient: bool = False
    """Whether its failure is transient: a lost connection, a provider in trouble."""
    agent_version: str = ""
    """Its version, if its output has it."""


class Adapter(Protocol):
    """Adapter for one coding agent."""

    @property
    def name(self) -> str:
        """Name of the agent in jobs, and of its program."""
        ...

    @property
    def provider(self) -> str:
        """Default provider of its models, as litellm names it; empty if a model must include its provider."""
        ...

    @property
    def version_arguments(self) -> tuple[str, ...]:
        """The arguments that make it print its version; empty if the version isn't checked."""
        ...

    @property
    def tested_versions(self) -> tuple[str, str]:
        """The tested versions: the oldest one, and the first one that is too new."""
        ...

    @property
    def install(self) -> str:
        """How to install it, as part of a message."""
        ...

    @property
    def params_model(self) -> type[Strict]:
        """The model that validates the executor's `params`."""
        ...

    @property
    def output_files(self) -> tuple[str, ...]:
        """Names of the files in its HOME that are read after a run."""
        ...

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the command, the environment and the files that start it."""
        ...

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output; never raises, whatever the output is."""
        ...


def iter_json_objects(text: str) -> Iterator[dict[str, Any]]:
    r"""Yield the JSON objects among the lines of a text; other lines are skipped.

    Example:
        >>> list(iter_json_objects('Hello\n{"a": 1}\n[2]\n{"b":'))
        [{'a': 1}]
    """
    for line in text.splitlines():
        if isinstance(value := parse_json(line), dict):
            yield value


def parse_json(text: str) -> JsonValue:
    """Parse a JSON text; None if it is invalid."""
    try:
        return cast("JsonValue", json.loads(text))
    except (ValueError, RecursionError):
        return None


def value_at(value: object, *path: str) -> Any:  # noqa: ANN401 -- any JSON value
    """Return the value at a path of keys, or None if there is none; safe for any untrusted value.

    Example:
        >>> value_at({"a": {"b": 1}}, "a", "b"), value_at({"a": [1]}, "a", "b")
        (1, None)
    """
    for key in path:
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return value


def parse_token_count(value: object) -> int:
    """Return a number of tokens, or 0 for any value that isn't a positive integer.

    Example:
        >>> parse_token_count(3), parse_token_count(-1), parse_token_count("3"), parse_token_count(None)
        (3, 0, 0, 0)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usd(value: object) -> float | None:
    """Return an amount in US dollars, or None for any value that isn't a finite number of at least 0.

    Example:
        >>> [parse_usd(each) for each in (0.5, 2, -1, float("nan"), "1")]
        [0.5, 2.0, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return None
    return float(value)


def as_list(value: object) -> list[Any]:
    """Return a list unchanged, and an empty one for any other value.

    Example:
        >>> as_list([1]), as_list({"a": 1}), as_list(None)
        ([1], [], [])
    """
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType] -- of any values


def as_texts(values: object) -> tuple[str, ...]:
    """Return the elements of a list as texts; an empty tuple for any other value."""
    return tuple(map(str, as_list(values)))
