"""Adapter for any other agent, configured by data: its command, its signs of success, and the places of its results."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, field_validator

from prefect_dispatch.executors.coding.adapter import (
    Adapter,
    AgentOutput,
    AgentReport,
    Launch,
    LaunchRequest,
    Tokens,
    iter_json_objects,
    parse_json,
    parse_token_count,
    parse_usd,
    value_at,
)
from prefect_dispatch.models.base import NON_EMPTY, Strict
from prefect_dispatch.models.brief import Name
from prefect_dispatch.processes.state_folder import RESERVED, Variable
from prefect_dispatch.security.redaction import is_secret_name, redact

ANSWER, PROMPT, SCHEMA = "answer.txt", "prompt.txt", "schema.json"
_WORD = re.compile(r"\{(model|workspace|home|prompt_file|answer_file|schema_file|api_base|max_usd|max_turns)\}")

Word = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00]+$")]
Pointer = Annotated[str, StringConstraints(pattern=r"^(/[^/]*)+$", max_length=200)]
"""A JSON Pointer, such as `/usage/input_tokens`."""
_Place = Annotated[Pointer, Field(title="Place")]
_Code = Annotated[int, Field(ge=0, le=255)]


class Done(Strict):
    """Conditions for finished work; all of them must hold."""

    exit: Annotated[tuple[_Code, ...], NON_EMPTY] = Field(default=(0,), title="Exit codes of success")
    """The exit codes that mean success."""
    json_last: dict[Pointer, JsonValue] = Field(default_factory=dict[str, JsonValue], title="In its last JSON object")
    """Required values in the last JSON object that it prints, by place: {"/status": "done"}."""
    retry: tuple[_Code, ...] = Field(default=(), title="Exit codes of another try")
    """The exit codes that mean: try again later."""


class Spent(Strict):
    """Places of the usage in the last JSON object that it prints."""

    prompt_tokens: _Place | None = Field(default=None, title="Tokens sent")
    """Tokens sent: a place such as /usage/input_tokens. None: it doesn't report them."""
    completion_tokens: _Place | None = Field(default=None, title="Tokens received")
    """Tokens received: a place such as /usage/output_tokens. None: it doesn't report them."""
    cost_usd: _Place | None = Field(default=None, title="US dollars")
    """US dollars: a place such as /total_cost_usd. None: it doesn't report them."""


class Generic(Strict):
    """A coding agent, described by data.

    In its arguments and variables the placeholders `{model}`, `{workspace}`, `{home}`, `{prompt_file}`,
    `{answer_file}`, `{schema_file}`, `{api_base}`, `{max_usd}` and `{max_turns}` are replaced by their values for the
    current run. Nothing else is replaced, no shell interprets them, and no text of a brief or an item is inserted.

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
    """Its name in reports: small letters, digits and hyphens."""
    argv: Annotated[tuple[Word, ...], NON_EMPTY] = Field(title="Program and arguments")
    """Its program and arguments, a word each, such as gemini, -m and {model}."""
    stdin: Literal["prompt", "nothing"] = Field(default="prompt", title="Standard input")
    """What it gets on standard input; without the prompt there, it needs `{prompt_file}`."""
    env: dict[Variable, str] = Field(default_factory=dict[str, str], title="Variables")
    """More variables that it gets, and their values; no keys."""
    key: Annotated[Variable, Field(title="Variable")] | None = Field(default=None, title="Variable of its key")
    """The variable in which it looks for its provider's key. None: it needs no key from this job."""
    done: Done = Field(default=Done(), title="When it is done")
    """The conditions for finished work."""
    text: Annotated[Literal["stdout", "file"], Field(title="All of it")] | _Place = Field(
        default="stdout", title="Where its answer is"
    )
    """Where its answer is: all that it prints, the file `{answer_file}`, or a place in its last JSON object."""
    usage: Spent = Field(default=Spent(), title="Where it says what it spent")
    """Where it reports its usage."""

    @field_validator("argv", "env")
    @classmethod
    def _holds_no_secret(cls, words: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        variables = words if isinstance(words, dict) else {}
        for name, value in (variables or dict.fromkeys(words, "")).items():
            if redact(name) != name or redact(value) != value or (name in variables and is_secret_name(name)):
                raise ValueError(
                    f"{redact(name)!r} looks like a secret; name the variable with the agent's key under 'key'"
                )
            if name in variables and RESERVED.fullmatch(name):
                raise ValueError(f"{name!r} is set separately for each run")
        return words

    @property
    def names_model(self) -> bool:
        """Whether its command has the placeholder `{model}`."""
        return "{model}" in " ".join((*self.argv, *self.env.values()))

    @property
    def names_address(self) -> bool:
        """Whether its command has the placeholder `{api_base}`."""
        return "{api_base}" in " ".join((*self.argv, *self.env.values()))


class GenericAdapter(Adapter):
    """Adapter for an agent that is described by data."""

    version_arguments = ()
    install = "it is the first of the words in executor.agent.argv"

    def __init__(self, agent: Generic) -> None:
        """Create the adapter for a description."""
        self.name = agent.name
        self.output_files = (ANSWER,) if agent.text == "file" else ()
        self._agent = agent

    def launch(self, request: LaunchRequest) -> Launch:
        """Return the command, the environment and the files that start it."""
        home, agent = request.home, self._agent
        words = {
            "model": request.model,
            "workspace": str(request.workspace),
            "home": str(home),
            "prompt_file": str(home / PROMPT),
            "answer_file": str(home / ANSWER),
            "schema_file": str(home / SCHEMA),
            "api_base": request.api_base,
            "max_usd": "" if request.max_usd is None else f"{request.max_usd:f}",
            "max_turns": str(request.max_turns or ""),
        }

        def fill(text: str) -> str:
            return _WORD.sub(lambda found: words[found[1]], text)

        key = {agent.key: request.key} if agent.key and request.key else {}
        return Launch(
            argv=(request.program, *map(fill, agent.argv[1:])),
            cwd=request.workspace,
            env={name: fill(value) for name, value in agent.env.items()} | key,
            files={home / PROMPT: request.prompt, home / SCHEMA: _json(request.schema)},
            stdin=request.prompt if agent.stdin == "prompt" else "",
        )

    def parse(self, output: AgentOutput) -> AgentReport:
        """Parse its output, by the places in its description."""
        agent = self._agent
        last = _last_object(output.stdout)
        # 1. The required values.
        wrong = [
            f"{pointer} is {found} and not {_json(value)}"
            for pointer, value in agent.done.json_last.items()
            if (found := _json(value_at(last, pointer))) != _json(value)
        ]
        # 2. The usage, as far as it is reported.
        usage = agent.usage
        sent, got, cost = (
            pointer and value_at(last, pointer)
            for pointer in (usage.prompt_tokens, usage.completion_tokens, usage.cost_usd)
        )
        has_tokens = isinstance(sent, int) and isinstance(got, int)
        # 3. Its answer: all that it printed, a file, or a place in its last JSON object.
        text: Any = output.stdout if agent.text == "stdout" else output.files.get(ANSWER, "")
        if agent.text not in ("stdout", "file"):
            text = value_at(last, agent.text)
        return AgentReport(
            reports_success=not wrong,
            text=text.strip() if isinstance(text, str) else "" if text is None else _json(text),
            tokens=Tokens(parse_token_count(sent), parse_token_count(got)) if has_tokens else None,
            cost_usd=parse_usd(cost),
            errors=tuple(wrong),
            valid_exit_codes=agent.done.exit,
            is_transient=output.exit in agent.done.retry,
        )


def _last_object(text: str) -> JsonValue:
    """Return the last JSON object of a text: the whole text, or else its last line that is an object."""
    whole = parse_json(text)
    return whole if isinstance(whole, dict) else next(reversed([*iter_json_objects(text)]), None)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
