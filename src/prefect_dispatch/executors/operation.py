"""A `ShellOperation` block of prefect-shell, read by its name: what it says is run, by our runner."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BeforeValidator, WithJsonSchema

from prefect_dispatch.command import Command
from prefect_dispatch.credentials import SLUGS, loaded, named, shell_operation
from prefect_dispatch.errors import JobError
from prefect_dispatch.scrub import SECRET_NAME, hide, secrets_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh"})
"""The shells that end at the first command that fails, if they are told to."""

_known: dict[str, Operation] = {}
"""What this process knows of blocks: what is secret in one is nowhere else."""

OperationName = Annotated[
    str,
    BeforeValidator(partial(named, "operation")),
    WithJsonSchema({"title": "Shell Operation", "type": "object", "block_type_slug": SLUGS["operation"]}),
]
"""The name of a ShellOperation block; in a form its picker, in Python the block itself, too."""


@dataclass(frozen=True)
class Operation:
    """What a block says."""

    command: Command
    """Its commands, one after another, up to the first that fails."""
    env: Mapping[str, str]
    """Its variables, some of which may be secret."""
    cwd: Path | None
    """The folder that it names."""

    @property
    def identity(self) -> dict[str, JsonValue]:
        """What of it can change an answer, and no secret."""
        said = {name: value for name, value in self.env.items() if not SECRET_NAME.search(name)}
        return {
            "command": self.command.model_dump(mode="json"),
            "env": cast("JsonValue", dict(sorted(said.items()))),
            "secrets": cast("JsonValue", sorted(self.env.keys() - said.keys())),
            "cwd": None if self.cwd is None else str(self.cwd),
        }


def operation(name: str) -> Operation:
    """Return what a block says, as this process knows it; loaded if it doesn't yet.

    Raises:
        JobError: If there is no such block, or it can't be used.
    """
    return _known.get(name) or fresh_operation(name)


def fresh_operation(name: str) -> Operation:
    """Return what a block says now; the values of its secret variables are hidden from here on.

    Raises:
        JobError: If there is no such block, or its shell or its folder can't be used.
    """
    block = cast("Any", loaded(shell_operation(), name, "executor.operation"))
    shell = block.shell or "bash"
    if PurePath(shell).name not in SHELLS:
        raise JobError(
            f"executor.operation: the block {name!r} wants the shell {shell!r}; these can be used: "
            f"{', '.join(sorted(SHELLS))}."
        )
    hide(secrets_in(block.env))
    command = Command(run=(shell, "-e", "-c", "\n".join(block.commands)))
    _known[name] = Operation(command, dict(block.env), block.working_dir and Path(block.working_dir))
    return _known[name]
