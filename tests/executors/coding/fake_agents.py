"""Programs that stand for coding agents: scripts of a few words, which note how they were called.

agent = FakeAgent(folder, "claude")
agent.does("echo 1 > a.py", agent.prints(claude_end(result="Done.")))
...
assert agent.calls[0].env["HOME"]
"""

from __future__ import annotations

import asyncio
import json
import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.executors.base import Ask
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from prefect_dispatch.errors import ExecutorError
    from prefect_dispatch.executors.base import Reply
    from prefect_dispatch.executors.coding.coding_agent import CodingAgent

VERSIONS = {
    "claude": "2.1.197 (Claude Code)",
    "codex": "codex-cli 0.169.0",
    "opencode": "1.18.33",
    "mini": "This is mini-swe-agent version 2.4.6.",
}
"""What the programs that are played say of their version."""
KEY = "correct-horse-battery-staple"
"""A key; nothing about it looks like one."""
BRIEF = Brief(name="a", instructions="Set A to 1.", writes=("a.py",))
ITEM = Item(key="a", value="The letter A.")

_SCRIPT = """#!/bin/sh
case "$1" in --version|--help) printf '%s\\n' {version}; exit 0;; esac
n=0
while ! mkdir "{calls}/$n" 2>/dev/null; do n=$((n+1)); done
printf '%s\\0' "$@" > "{calls}/$n/argv"
env -0 > "{calls}/$n/env"
cat > "{calls}/$n/stdin"
pwd > "{calls}/$n/cwd"
{body}
"""
_numbers = count()


@dataclass(frozen=True)
class Call:
    """One call of a program."""

    argv: tuple[str, ...]
    env: dict[str, str]
    stdin: str
    cwd: Path


class FakeAgent:
    """A program that plays a coding agent.

    Example:
        agent = FakeAgent(folder, "claude")
        agent.does("echo 1 > a.py", agent.prints(claude_end(result="Done.")))
        assert agent.calls[0].env["HOME"]
    """

    def __init__(self, folder: Path, name: str, *body: str, version: str | None = None) -> None:
        """Put it into a folder; `body` is what it does, in lines of shell, in which `$n` is the number of the call."""
        self.path, self._calls = folder / name, folder / f"{name}-calls"
        self._calls.mkdir(parents=True)
        self._version = shlex.quote(VERSIONS.get(name, "") if version is None else version)
        self.does(*body)

    def does(self, *body: str) -> None:
        """Have it do something else from now on."""
        text = _SCRIPT.format(version=self._version, calls=self._calls, body="\n".join(body))
        new = self.path.with_suffix(f".{next(_numbers)}")
        new.write_text(text)
        new.chmod(0o755)
        new.replace(self.path)

    def prints(self, *lines: object) -> str:
        """Return what prints some lines: texts as they are, and the rest as JSON."""
        file = self.path.with_suffix(f".{next(_numbers)}.out")
        file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return f"cat {shlex.quote(str(file))}"

    @property
    def calls(self) -> list[Call]:
        """How it was called, but for its version."""
        return [_call(self._calls / str(number)) for number in range(len([*self._calls.iterdir()]))]


def _call(folder: Path) -> Call:
    argv, env = ((folder / name).read_text().split("\0")[:-1] for name in ("argv", "env"))
    variables = dict(line.split("=", 1) for line in env)
    return Call(tuple(argv), variables, (folder / "stdin").read_text(), Path((folder / "cwd").read_text().strip()))


def asked(executor: CodingAgent, brief: Brief = BRIEF, item: Item = ITEM, **more: Any) -> Reply:  # noqa: ANN401 -- of an ask
    """Return what an executor replies that is placed."""
    return asyncio.run(executor.answer(Ask(brief=brief, item=item, **more)))


def failed(executor: CodingAgent, kind: type[ExecutorError], brief: Brief = BRIEF) -> ExecutorError:
    """Return the error with which an executor fails that is placed, which is of a certain class exactly."""
    with pytest.raises(kind) as caught:
        asked(executor, brief)
    assert type(caught.value) is kind, caught.value
    return caught.value


def claude_end(**more: object) -> dict[str, object]:
    """Return the last object that `claude` prints, by default of a success."""
    usage = {"inputTokens": 90, "cacheReadInputTokens": 10, "cacheCreationInputTokens": 5, "outputTokens": 20}
    return {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "api_error_status": None,
        "result": "Done.",
        "total_cost_usd": 0.25,
        "modelUsage": {"claude-sonnet-4-5": usage},
        "permission_denials": [],
        **more,
    }


def claude_start() -> dict[str, object]:
    """Return the first object that `claude` prints."""
    return {"type": "system", "subtype": "init", "claude_code_version": "2.1.197"}


def codex_said(text: str = "Done.") -> dict[str, object]:
    """Return what `codex` prints of a message of its model."""
    return {"type": "item.completed", "item": {"id": "item_1", "type": "agent_message", "text": text}}


def codex_end(**more: object) -> dict[str, object]:
    """Return the last object that `codex` prints, by default of a success."""
    return {
        "type": "turn.completed",
        "usage": {"input_tokens": 100, "cached_input_tokens": 40, "output_tokens": 20},
        **more,
    }
