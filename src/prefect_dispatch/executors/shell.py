"""A command, run once for each item: a script, a test suite, any program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, PrivateAttr

from prefect_dispatch.errors import ExecutorError, JobError
from prefect_dispatch.executors.base import Ask, Ceiling, Reply
from prefect_dispatch.executors.command_fit import require_command, require_program, within
from prefect_dispatch.executors.command_run import carried_out
from prefect_dispatch.executors.operation import OperationName, fresh_operation, operation
from prefect_dispatch.executors.read_files import digests
from prefect_dispatch.fingerprint import digest
from prefect_dispatch.models import Brief, Item, Text, Usage
from prefect_dispatch.processes.environment import Variable, require_set
from prefect_dispatch.processes.guard import guard_here
from prefect_dispatch.processes.leases import state_folder
from prefect_dispatch.processes.reaper import reap_now_and_then
from prefect_dispatch.strict import Strict
from prefect_dispatch.workspaces.rooms import finished
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence


class Shell(Strict):
    """Runs the command of a brief, once for each item, and answers with what it prints.

    An item is in variables (`ITEM_KEY`, `ITEM_VALUE`, `ITEM_<FIELD>`) or on standard input, never in the command's
    text. A command sees few variables of this environment, and a HOME and TMPDIR of its own; whatever it starts is
    gone when it ends, is ended, or the process that runs it dies.

    Example:
        >>> Shell(pass_env=["HTTPS_PROXY"], idle_s=60).cwd
        '.'
    """

    abrupt: ClassVar[bool] = True
    deaf: ClassVar[bool] = True

    kind: Literal["shell"] = "shell"
    """Tells the executors apart."""
    cwd: Text = "."
    """The folder to run in, within the job's folder, or within the workspace."""
    pass_env: tuple[Variable, ...] = ()
    """Variables of this environment that commands get to see, such as a key. Values of names that tell of a secret
    are hidden in all that commands print."""
    idle_s: Annotated[float, Field(title="Idle limit", gt=0, le=86400)] | None = Field(
        default=None, title="Idle limit in seconds"
    )
    """Seconds without any output after which a command is ended. None: only the time limit ends it."""
    operation: OperationName | None = None
    """A ShellOperation block whose commands are run in place of those of briefs."""
    workspace: Workspace | None = None
    """A checkout of its own for each item. None: commands run in the job's folder, side by side."""

    _home: Path | None = PrivateAttr(default=None)
    _digests: dict[tuple[str, ...], JsonValue] = PrivateAttr(default_factory=dict[tuple[str, ...], JsonValue])

    @property
    def folder(self) -> Path:
        """The folder that commands run in, without a workspace."""
        return Path(self._home or "", self.cwd)

    @property
    def name(self) -> str:
        """What its pace goes by: commands share one."""
        return "shell"

    @property
    def fingerprint(self) -> str:
        """Everything that can change an answer, and no value of a variable that is passed on.

        Raises:
            JobError: If its folder, its block or its workspace can't be found.
        """
        if self._home is None:
            return self.placed(Path()).fingerprint
        return digest(
            {
                "shell": 1,
                "folder": self.cwd if self.workspace else str(self.folder),
                "pass_env": [*sorted(self.pass_env)],
                "operation": operation(self.operation).identity if self.operation else None,
                "workspace": self.workspace.identity if self.workspace else None,
            }
        )

    def placed(self, folder: Path) -> Shell:
        """Return the executor with its folder, its block and its workspace looked up.

        Args:
            folder: The job's.

        Raises:
            JobError: If one isn't there, or leads out of the folder that it has to be in.
        """
        require_set(self.pass_env)
        state_folder()
        block = fresh_operation(self.operation) if self.operation else None
        if block and block.cwd and self.workspace:
            raise JobError(
                f"executor.operation: the block {self.operation!r} names a working directory, and a workspace is one: "
                "leave one of them out."
            )
        cwd = within(self.cwd, None if self.workspace else folder)
        workspace = self.workspace.placed(folder) if self.workspace else None
        if workspace and not workspace.setup and not workspace.has_folder(cwd):
            raise JobError(
                f"executor.cwd: the commit {workspace.base[:12]} has no folder {cwd!r}; name one that it has."
            )
        placed = self.model_copy(update={"workspace": workspace, "cwd": cwd})
        placed._home, placed._digests = folder.resolve(), {}  # noqa: SLF001 -- its own copy
        return placed

    def require_fit(self, briefs: Sequence[Brief]) -> None:
        """Check that it can answer some briefs.

        Raises:
            JobError: If it can't; the message says what to change.
        """
        set_up = self.workspace is not None and self.workspace.setup is not None
        for brief in briefs:
            command = require_command(brief, self.operation)
            if command and not set_up:  # a set-up may install the program
                require_program(brief.name, command, None if self.workspace else self.folder)

    def situation(self, brief: Brief, item: Item) -> JsonValue:
        """Return the content of the files that a brief reads; in a workspace its base says it all.

        Raises:
            JobError: If one can't be read.
        """
        if self.workspace:
            return None
        if self._home is None:
            return self.placed(Path()).situation(brief, item)
        if brief.reads not in self._digests:  # once a run: what commands write meanwhile is not what they read
            self._digests[brief.reads] = dict(sorted(digests(brief.reads, self._home).items()))
        return self._digests[brief.reads]

    async def warm_up(self) -> None:
        """See to it that nothing of a program can be left, and clear away what runs that died have left.

        Raises:
            JobError: If the state folder can't be used.
            TerminalError: If the guard doesn't start.
        """
        await finished(_warm_up)

    async def answer(self, ask: Ask) -> Reply:
        """Run the command; cancelling ends it, with whatever it started.

        Raises:
            ExecutorError: If it fails, or can't be run.
            JobError: If its folder, its block, its workspace or a variable isn't there.
        """
        here = self if self._home else self.placed(Path())
        try:
            return await carried_out(here, ask)
        except ExecutorError as error:
            error.usage = error.usage or Usage(requests=1)  # however it ended, it cost nothing
            raise

    def require_known(self) -> None:
        """Check nothing: `placed` has."""

    def count_tokens(self, brief: Brief, item: Item) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return 0: a command takes no tokens."""
        return 0

    def expected_completion_tokens(self, brief: Brief) -> int:  # noqa: ARG002 -- the protocol's signature
        """Return 0."""
        return 0

    def price(self) -> tuple[float, float]:
        """Return no price: a command costs nothing that could be counted here."""
        return 0.0, 0.0

    def ceiling(self, ask: Ask) -> Ceiling:  # noqa: ARG002 -- the protocol's signature
        """Return the most that a command can take of a budget: nothing but a request."""
        return Ceiling(prompt_tokens=0, completion_tokens=0, cost_usd=0.0)


def _warm_up() -> None:
    guard_here()
    reap_now_and_then()
