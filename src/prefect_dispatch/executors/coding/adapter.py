"""What an adapter is: how one coding agent is started, and what its output means. All of it pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from prefect_dispatch.strict import Strict

LONGEST_ARGUMENT = 100_000
"""Bytes of one argument; Linux takes 131,072."""


class Tokens(NamedTuple):
    """What an agent says that it sent and received."""

    prompt: int = 0
    """Sent, what came from a cache included."""
    completion: int = 0
    """Received, what was only thought included."""
    cached: int = 0
    """Those of the prompt that came from a cache."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What an agent is told for one run."""

    program: str
    """The agent's program."""
    model: str
    """The model, as the job names it."""
    prompt: str
    """The whole prompt."""
    schema: dict[str, Any] | None
    """The form of its answer; empty for text."""
    home: Path
    """Its own HOME, which nobody else can look into."""
    workspace: Path
    """The folder that it works in."""
    answer: Path
    """A file that an agent without a way to answer may write its answer into."""
    params: Any
    """What its adapter's `Params` made of the executor's params."""
    api_base: str = ""
    """The address of the provider; empty for the provider's own."""
    key: str = ""
    """The provider's key; empty where the environment has all that is needed."""
    max_usd: float | None = None
    """US dollars that it may spend."""
    max_turns: int | None = None
    """How often it may ask its model."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How an agent is started."""

    argv: tuple[str, ...]
    """Program and arguments; no key, and nothing of the prompt."""
    cwd: Path
    """The folder that it is started in."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """What its environment has beside the workspace's."""
    files: Mapping[Path, str] = field(default_factory=dict[Path, str])
    """What is written beforehand, for nobody else to read."""
    stdin: str = ""
    """What it reads."""


class Printed(NamedTuple):
    """What an agent left behind."""

    stdout: str
    """What it printed; where something was left out, a line says so."""
    stderr: str = ""
    """What it complained of."""
    files: Mapping[str, str] = MappingProxyType({})
    """The files of its HOME that its adapter reads, by name; what isn't there is missing."""
    exit: int | None = 0
    """Its exit code; empty if a signal ended it."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What that means; by itself no promise that the work is done."""

    done: bool = False
    """Whether it came to the end that it calls success."""
    exits: tuple[int, ...] = (0,)
    """The exit codes that go with such an end."""
    text: str = ""
    """Its last words."""
    structured: JsonValue = None
    """Its answer, where it gave one by a schema of its own accord."""
    tokens: Tokens | None = None
    """What it sent and received; empty if it didn't say, or only in part."""
    cost_usd: float | None = None
    """What it says that was spent."""
    errors: tuple[str, ...] = ()
    """What went wrong, in its words."""
    denials: tuple[str, ...] = ()
    """What it wanted to do, and was not allowed to: its work doesn't count."""
    refusals: tuple[str, ...] = ()
    """What its own policy refused and left it to do in another way: reported, and no failure by itself."""
    no_sandbox: str = ""
    """Why its sandbox can't be made on this machine, where none of its commands could be run for that."""
    status: int | None = None
    """The HTTP status by which its provider refused it at last."""
    limit: Literal["", "max_turns", "max_usd"] = ""
    """Which limit ended it."""
    may_pass: bool = False
    """Whether what went wrong may pass by itself: a connection, a provider in trouble."""
    agent_version: str = ""
    """Its version, where its output has it."""


class Adapter(Protocol):
    """One coding agent."""

    @property
    def name(self) -> str:
        """What a job calls it, and its program is called."""
        ...

    @property
    def provider(self) -> str:
        """Whose models it asks if a model doesn't say, as litellm names it; empty if a model must say."""
        ...

    @property
    def version(self) -> tuple[str, ...]:
        """The arguments that make it print its version; none, and nobody asks."""
        ...

    @property
    def tested(self) -> tuple[str, str]:
        """The versions that it was tested with: the oldest, and the first that is too new."""
        ...

    @property
    def install(self) -> str:
        """How to get it."""
        ...

    @property
    def own(self) -> type[Strict]:
        """What of the executor's params it takes."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of files in its HOME that are read afterwards."""
        ...

    def launch(self, told: Told) -> Launch:
        """Return how it is started."""
        ...

    def parse(self, printed: Printed) -> Said:
        """Return what it said; whatever it printed, nothing is raised."""
        ...


def events(text: str) -> Iterator[dict[str, Any]]:
    r"""Yield the JSON objects among the lines of a text; whatever else is there is passed over.

    Example:
        >>> list(events('Hello\n{"a": 1}\n[2]\n{"b":'))
        [{'a': 1}]
    """
    for line in text.splitlines():
        if isinstance(found := loaded(line), dict):
            yield found


def loaded(text: str) -> JsonValue:
    """Return the JSON value that a text is, or None."""
    try:
        return cast("JsonValue", json.loads(text))
    except (ValueError, RecursionError):
        return None


def at(value: object, *path: str) -> Any:  # noqa: ANN401 -- whatever is there
    """Return what stands at a path of keys, or None: an agent's output may be anything.

    Example:
        >>> at({"a": {"b": 1}}, "a", "b"), at({"a": [1]}, "a", "b")
        (1, None)
    """
    for key in path:
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return value


def count(value: object) -> int:
    """Return a number of tokens, or 0 for whatever is none.

    Example:
        >>> count(3), count(-1), count("3"), count(None)
        (3, 0, 0, 0)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def dollars(value: object) -> float | None:
    """Return an amount of money, or None for whatever is none.

    Example:
        >>> dollars(0.5), dollars(2), dollars(-1), dollars(float("nan")), dollars("1")
        (0.5, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return None
    return float(value)


def listed(value: object) -> list[Any]:
    """Return a list as it is, and an empty one for whatever is none.

    Example:
        >>> listed([1]), listed({"a": 1}), listed(None)
        ([1], [], [])
    """
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType] -- of whatever


def texts(values: object) -> tuple[str, ...]:
    """Return the texts of a list, or nothing for whatever is none."""
    return tuple(map(str, listed(values)))
