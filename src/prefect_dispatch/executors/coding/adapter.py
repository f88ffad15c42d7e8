"""Base class of an adapter, which starts one coding agent and parses its output, with its data types.

Adapters consist of pure functions: they neither start programs nor read or write files.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from prefect_dispatch.models.base import Strict
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pydantic import JsonValue

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
LONGEST_ARGUMENT = 100_000
"""Most bytes of one command-line argument; Linux allows 131,072."""
MAX_STEP = 4_000
"""Characters of the text of a step."""
_DIGITS = 9
"""Most digits of an index in a JSON Pointer."""


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
    web_search: bool = False
    """Whether it may search the web and read pages."""
    read_only: bool = False
    """Whether it is to write no files."""
    resume: str = ""
    """The session in its HOME that it is to continue; empty: a new one."""


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
    session: str = ""
    """The id of its session, which `LaunchRequest.resume` continues; empty if it has none."""
    agent_version: str = ""
    """Its version, if its output has it."""
    pages: tuple[dict[str, Any], ...] = ()
    """The web pages that its tools returned or opened, each with `url` and, if it is known, `title`."""


class Step(NamedTuple):
    """One step of an agent that works, parsed from a line of its log."""

    kind: Literal["message", "command", "edit", "tool"] = "message"
    """What it does: it says something, runs a command, changes a file, or uses another tool."""
    text: str = ""
    """The message, the command, the path of the file, or the tool with its target; without control characters."""
    tokens: Tokens | None = None
    """The tokens so far of one call of its model, or of all its work. None: the step says nothing about them."""
    cost_usd: float | None = None
    """The cost of the same."""
    call: str = ""
    """The id of the model's call, whose tokens and cost count once; empty: they are those of all its work."""

    def __str__(self) -> str:
        """Return the step as a reader sees it.

        Example:
            >>> str(Step("command", "pytest -q")), str(Step("edit", "a.py")), str(Step(text="Done."))
            ('$ pytest -q', 'edit a.py', 'Done.')
        """
        return {"command": "$ ", "edit": "edit "}.get(self.kind, "") + self.text


StepParser = Callable[[str], "Step | None"]
"""Parser of the lines of a log, which gets them one after another; None: a line is no step."""


class NoParams(Strict):
    """No params: all settings of such an agent are in its arguments."""


class Adapter(ABC):
    """Adapter for one coding agent."""

    name: str
    """Name of the agent in jobs, and of its program."""
    provider: ClassVar[str] = ""
    """Default provider of its models, as litellm names it; empty if a model must include its provider."""
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)
    """The arguments that make it print its version; empty if the version isn't checked."""
    tested_versions: ClassVar[tuple[str, str]] = ("", "")
    """The tested versions: the oldest one, and the first one that is too new."""
    install: ClassVar[str]
    """How to install it, as part of a message."""
    searches_web: ClassVar[bool] = False
    """Whether it has tools for the web that can be switched on, and reports the pages that these return."""
    reports_session_total: ClassVar[bool] = False
    """Whether its token counts are those of the whole session: all processes that have continued it, added up."""
    params_model: ClassVar[type[Strict]] = NoParams
    """The model that validates the executor's `params`."""
    output_files: tuple[str, ...] = ()
    """Names of the files in its HOME that are read after a run."""

    @abstractmethod
    def launch(self, request: LaunchRequest) -> Launch:
        """Return the command, the environment and the files that start it."""

    @abstractmethod
    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output; never raises."""

    def create_step_parser(self) -> StepParser:
        """Return a parser of its log while it works, which never raises. By default each line is a message."""
        return parse_text_line


def parse_text_line(line: str) -> Step | None:
    r"""Return a line that is no event as a message; None if it is blank.

    Example:
        >>> parse_text_line("  1 passed\x1b[0m"), parse_text_line(" ")
        (Step(kind='message', text='1 passed [0m', tokens=None, cost_usd=None, call=''), None)
    """
    text = clean_text(line)
    return Step(text=text) if text else None


def clean_text(text: str) -> str:
    """Return a text of an agent for a reader: redacted, bounded, and without control characters except line breaks.

    A log is redacted as it is written, but a secret in an event may be written there with escapes.
    """
    lines = (strip_control_chars(line) for line in redact(text).splitlines())
    return shorten("\n".join(lines).strip(), MAX_STEP)


def create_tool_step(tool: object, arguments: object, commands: Collection[str], edits: Collection[str]) -> Step:
    """Return the step of a tool call.

    Args:
        tool: The name of the tool.
        arguments: Its arguments.
        commands: Names of the tools that run a command.
        edits: Names of the tools that change a file.
    """
    if tool in commands:
        return Step("command", clean_text(text_at(arguments, "/command")))
    file = text_at(arguments, "/file_path") or text_at(arguments, "/filePath")
    if tool in edits and file:
        return Step("edit", clean_text(file))
    return Step("tool", clean_text(describe_call(tool, arguments)))


def drop_empty(entries: Mapping[_Key, _Value]) -> dict[_Key, _Value]:
    """Return the entries that have a value.

    Example:
        >>> drop_empty({"a": "1", "b": "", "c": None})
        {'a': '1'}
    """
    return {key: value for key, value in entries.items() if value}


def build_options(options: Mapping[str, object]) -> list[str]:
    """Return command-line options, without those that have no value.

    Example:
        >>> build_options({"--model": "m", "--effort": None})
        ['--model', 'm']
    """
    return [word for name, value in drop_empty(options).items() for word in (name, str(value))]


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


def value_at(value: object, pointer: str) -> Any:  # noqa: ANN401 -- any JSON value
    """Return the value at a JSON Pointer, or None if there is none; safe for any untrusted value.

    Example:
        >>> value_at({"a": [{"b": 1}]}, "/a/0/b"), value_at({"a": [1]}, "/a/b")
        (1, None)
    """
    for token in pointer.split("/")[1:]:
        if isinstance(value, dict):
            value = cast("dict[str, object]", value).get(token.replace("~1", "/").replace("~0", "~"))
        else:
            is_index = token.isdecimal() and len(token) <= _DIGITS
            value = next(iter(as_list(value)[int(token) :]), None) if is_index else None
    return value


def text_at(value: object, pointer: str) -> str:
    """Return the value at a JSON Pointer as text; empty if there is none."""
    return str(value_at(value, pointer) or "")


def describe_call(tool: object, arguments: object) -> str:
    """Return a tool call as text: the tool, and its command, file or address."""
    targets = (text_at(arguments, place) for place in ("/command", "/file_path", "/filePath", "/url"))
    return f"{tool} {next(filter(None, targets), '')}".strip()


def parse_token_count(value: object) -> int:
    """Return a number of tokens, or 0 for any value that isn't a positive integer.

    Example:
        >>> parse_token_count(3), parse_token_count(-1), parse_token_count("3"), parse_token_count(None)
        (3, 0, 0, 0)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_tokens(usage: object, prompt: Iterable[str], completion: Iterable[str], cached: str) -> Tokens:
    """Return the token counts of a usage, given the JSON Pointers of their parts.

    Example:
        >>> parse_tokens({"in": 2, "cached": 3, "out": 1}, ("/in", "/cached"), ("/out",), "/cached")
        Tokens(prompt=5, completion=1, cached=3)
    """
    return Tokens(
        *(sum(parse_token_count(value_at(usage, place)) for place in part) for part in (prompt, completion, (cached,)))
    )


def sum_tokens(counts: Iterable[Tokens]) -> Tokens:
    """Return the sum of token counts."""
    return Tokens(*map(sum, zip(Tokens(), *counts, strict=True)))


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
