"""Any other agent, described by data: how it is started, when it is done, and where it says what. No code."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, cast

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, field_validator

from prefect_dispatch.executors.coding.adapter import Launch, Printed, Said, Tokens, Told, at, count, dollars, loaded
from prefect_dispatch.models import Name
from prefect_dispatch.processes.environment import RESERVED, Variable
from prefect_dispatch.scrub import is_secret_name, scrub
from prefect_dispatch.strict import SOME, Strict

ANSWER, PROMPT, SCHEMA = "answer.txt", "prompt.txt", "schema.json"
_WORD = re.compile(r"\{(model|workspace|home|prompt_file|answer_file|schema_file|api_base|max_usd|max_turns)\}")

Word = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00]+$")]
Pointer = Annotated[str, StringConstraints(pattern=r"^(/[^/]*)+$", max_length=200)]
"""A JSON Pointer, such as `/usage/input_tokens`."""
_Place = Annotated[Pointer, Field(title="Place")]
_DIGITS = 9
_Code = Annotated[int, Field(ge=0, le=255)]


class Done(Strict):
    """What has to be so for the work to be done; all of it."""

    exit: Annotated[tuple[_Code, ...], SOME] = Field(default=(0,), title="Exit codes of success")
    """The exit codes that mean success."""
    json_last: dict[Pointer, JsonValue] = Field(default_factory=dict[str, JsonValue], title="In its last JSON object")
    """What must stand where in the last JSON object that it prints: {"/status": "done"}."""
    retry: tuple[_Code, ...] = Field(default=(), title="Exit codes of another try")
    """The exit codes that mean: try again later."""


class Spent(Strict):
    """Where the last JSON object that it prints says what was spent."""

    prompt_tokens: _Place | None = Field(default=None, title="Tokens sent")
    """Tokens sent: a place such as /usage/input_tokens. None: it doesn't say."""
    completion_tokens: _Place | None = Field(default=None, title="Tokens received")
    """Tokens received: a place such as /usage/output_tokens. None: it doesn't say."""
    cost_usd: _Place | None = Field(default=None, title="US dollars")
    """US dollars: a place such as /total_cost_usd. None: it doesn't say."""


class NoParams(Strict):
    """Nothing: all that such an agent is told is in its arguments."""


class Generic(Strict):
    """A coding agent, described by data.

    In its arguments and variables `{model}`, `{workspace}`, `{home}`, `{prompt_file}`, `{answer_file}`,
    `{schema_file}`, `{api_base}`, `{max_usd}` and `{max_turns}` stand for what they are in the run at hand; nothing
    else is replaced, no shell reads them, and nothing of a brief or an item is ever among them.

    Example:
        >>> gemini = Generic(
        ...     name="gemini",
        ...     argv=["gemini", "-m", "{model}", "-o", "json", "--approval-mode", "yolo"],
        ...     key="GEMINI_API_KEY",
        ...     text="/response",
        ... )
        >>> gemini.done.exit
        (0,)
    """

    model_config = ConfigDict(title="Any other")

    name: Name
    """What it is called in reports: small letters, digits and hyphens."""
    argv: Annotated[tuple[Word, ...], SOME] = Field(title="Program and arguments")
    """Its program and arguments, a word each, such as gemini, -m and {model}."""
    stdin: Literal["prompt", "nothing"] = Field(default="prompt", title="Standard input")
    """What it reads on standard input; without the prompt there, it needs `{prompt_file}`."""
    env: dict[Variable, str] = Field(default_factory=dict[str, str], title="Variables")
    """More variables that it gets, and their values; no keys."""
    key: Annotated[Variable, Field(title="Variable")] | None = Field(default=None, title="Variable of its key")
    """The variable in which it looks for its provider's key. None: it needs none that would have to be given to it."""
    done: Done = Field(default=Done(), title="When it is done")
    """When its work is done."""
    text: Annotated[Literal["stdout", "file"], Field(title="All of it")] | _Place = Field(
        default="stdout", title="Where its answer is"
    )
    """Where its answer is: all that it prints, the file `{answer_file}`, or a place in its last JSON object."""
    usage: Spent = Field(default=Spent(), title="Where it says what it spent")
    """Where it says what it spent."""

    @field_validator("argv", "env")
    @classmethod
    def _holds_no_secret(cls, told: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        named = told if isinstance(told, dict) else dict.fromkeys(told, "")
        for name, value in named.items():
            if scrub(name) != name or scrub(value) != value or (isinstance(told, dict) and is_secret_name(name)):
                msg = f"{scrub(name)!r} looks like a secret; name the variable with the agent's key under 'key'"
                raise ValueError(msg)
            if isinstance(told, dict) and RESERVED.fullmatch(name):
                msg = f"{name!r} is set for each run anew"
                raise ValueError(msg)
        return told

    @property
    def names_model(self) -> bool:
        """Whether it is told which model to ask."""
        return any("{model}" in word for word in (*self.argv, *self.env.values()))

    @property
    def names_address(self) -> bool:
        """Whether it is told the address of its provider."""
        return any("{api_base}" in word for word in (*self.argv, *self.env.values()))


class GenericAdapter:
    """An agent that is described by data."""

    provider = ""
    version = ()
    tested = ("", "")
    install = "it is the first of the words in executor.agent.argv"
    own = NoParams

    def __init__(self, agent: Generic) -> None:
        """Keep what is said of it."""
        self.name = agent.name
        self.reads = (ANSWER,) if agent.text == "file" else ()
        self._agent = agent

    def launch(self, told: Told) -> Launch:
        """Return how it is started."""
        home, agent = told.home, self._agent
        words = {
            "model": told.model,
            "workspace": str(told.workspace),
            "home": str(home),
            "prompt_file": str(home / PROMPT),
            "answer_file": str(home / ANSWER),
            "schema_file": str(home / SCHEMA),
            "api_base": told.api_base,
            "max_usd": "" if told.max_usd is None else f"{told.max_usd:f}",
            "max_turns": "" if told.max_turns is None else str(told.max_turns),
        }

        def filled(text: str) -> str:
            return _WORD.sub(lambda found: words[found[1]], text)

        env = {name: filled(value) for name, value in agent.env.items()}
        env |= {agent.key: told.key} if agent.key and told.key else {}
        files = {home / PROMPT: told.prompt, home / SCHEMA: _json(told.schema)}
        stdin = told.prompt if agent.stdin == "prompt" else ""
        argv = (told.program, *map(filled, agent.argv[1:]))
        return Launch(argv=argv, cwd=told.workspace, env=env, files=files, stdin=stdin)

    def parse(self, printed: Printed) -> Said:
        """Return what it said."""
        agent = self._agent
        last = _last_object(printed.stdout)
        wrong = [
            f"{pointer} is {_json(found)} and not {_json(value)}"
            for pointer, value in agent.done.json_last.items()
            if _json(found := _found(last, pointer)) != _json(value)
        ]
        usage = agent.usage
        sent, got = (_found(last, pointer) for pointer in (usage.prompt_tokens, usage.completion_tokens))
        known = isinstance(sent, int) and isinstance(got, int)
        return Said(
            done=not wrong,
            text=self._text(printed, last),
            tokens=Tokens(count(sent), count(got)) if known else None,
            cost_usd=dollars(_found(last, usage.cost_usd)),
            errors=tuple(wrong),
            exits=agent.done.exit,
            may_pass=printed.exit in agent.done.retry,
        )

    def _text(self, printed: Printed, last: JsonValue) -> str:
        if self._agent.text == "stdout":
            return printed.stdout.strip()
        if self._agent.text == "file":
            return printed.files.get(ANSWER, "").strip()
        found = _found(last, self._agent.text)
        return found if isinstance(found, str) else "" if found is None else _json(found)


def _last_object(text: str) -> JsonValue:
    """Return the last JSON object of a text: all of it, or the last line that is one."""
    if isinstance(whole := loaded(text), dict):
        return whole
    lines = reversed(text.splitlines())
    return next((found for line in lines if isinstance(found := loaded(line), dict)), None)


def _found(value: object, pointer: str | None) -> JsonValue:
    """Return what stands at a JSON Pointer, or None; without one, nothing does."""
    if pointer is None:
        return None
    for token in pointer.split("/")[1:]:
        value = _inside(value, token.replace("~1", "/").replace("~0", "~"))
    return cast("JsonValue", value)


def _inside(value: object, name: str) -> object:
    if not isinstance(value, list):
        return at(value, name)
    items = cast("list[object]", value)
    index = int(name[:_DIGITS]) if name.isdecimal() else len(items)
    return items[index] if index < len(items) else None


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
