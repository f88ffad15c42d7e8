"""A workspace while it is open: a folder, an environment, and what is changed in it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import anyio

from prefect_dispatch.attempts import Usage
from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.processes.environment import environment
from prefect_dispatch.processes.leases import Lease, lease
from prefect_dispatch.processes.runner import Program, run
from prefect_dispatch.workspaces.collecting import NOTHING_LEFT, Collected, Left
from prefect_dispatch.workspaces.git import Git, GitError
from prefect_dispatch.workspaces.leash import leashed, pull
from prefect_dispatch.workspaces.ports import block
from prefect_dispatch.workspaces.sharing import MAIL, NAME, Objects, checked_out, sharing
from prefect_dispatch.workspaces.workspace import resolved
from prefect_dispatch.workspaces.writing import write_change

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from prefect_dispatch.change import Change
    from prefect_dispatch.command import Command
    from prefect_dispatch.workspaces.workspace import Workspace

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger("prefect_dispatch")
_TAIL = 2_000
"""Characters of what a set-up said that its error quotes."""
_PASSING = re.compile(
    r"(?i)no space left|quota exceeded|too many open files|cannot allocate|out of memory|temporarily unavailable|"
    r"input/output error|interrupted system call"
)
"""What git says of a machine that may do better later."""
_AGENTS_GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_EDITOR": "true", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}
"""So that a git that is called in a workspace waits for nobody."""
_AGENTS_SETTINGS = f"[user]\n\tname = {NAME}\n\temail = {MAIL}\n[gc]\n\tauto = 0\n"


@dataclass(frozen=True)
class Room:
    """An open workspace."""

    path: Path
    """Its folder: a repository of its own, with the base checked out, HEAD detached."""
    env: Mapping[str, str]
    """The whole environment of what is run in it: HOME, TMPDIR and ports are its own."""
    base: str
    """The commit that it began from."""
    lease: Lease
    """The folder that holds it, and can hold more, such as logs."""
    objects: Objects
    """Where the base is."""
    keeps: bool = False
    """Whether it stays if what is done in it fails."""
    left: Left = NOTHING_LEFT
    """What differed from the base before the work began."""

    async def apply(self, change: Change) -> None:
        """Write what an earlier try had changed.

        Raises:
            RejectedError: If the change has another base, or isn't what it says.
        """
        if change.base != self.base:
            raise RejectedError(
                f"A change of {change.base[:12]} can't go on in a workspace of {self.base[:12]}.", kind="change"
            )
        await _cut_short(self._apply, change)

    async def change(self, writes: Sequence[str]) -> Change:
        """Return what was changed, however it was done: content is compared with the base.

        Args:
            writes: The globs, from the top of the repository, of the files that may be.

        Raises:
            RejectedError: If others were (`scope`), or if a secret was written (`secret`), or too much (`size`), or
                what can't be collected (`submodule`, `workspace`).
            BriefError: If a glob can't be used.
        """
        return await _cut_short(self._change, writes)

    def failed(self) -> str:
        """Keep it, if that was asked for; return the sentence that says so, or nothing."""
        if not self.keeps:
            return ""
        self.lease.keep()
        return f"The workspace was kept: {self.path}"

    def _apply(self, change: Change) -> None:
        with self._own() as own:
            write_change(change, sharing(self.objects, own, checkout=False), self.path)

    def _change(self, writes: Sequence[str]) -> Change:
        with self._own() as own:
            return Collected(self.objects, self.base, self.path, own, writes).change(writes, self.left)

    def so_far(self) -> Left:
        """Return what differs from the base by now."""
        with self._own() as own:
            return Collected(self.objects, self.base, self.path, own).left

    @contextmanager
    def _own(self) -> Generator[Path, None, None]:
        """Have a place for a repository of ours, which whoever worked here has never seen."""
        with tempfile.TemporaryDirectory(prefix="git-", dir=self.lease.path) as folder:
            yield Path(folder, "git")


@asynccontextmanager
async def opened(workspace: Workspace, *, pass_env: Sequence[str] = ()) -> AsyncGenerator[Room, None]:
    """Have a workspace: a checkout of the base, set up; it is removed at the end.

    Whatever happens inside, and however often this is cancelled, is cleared away before this ends. If the process
    dies, `clear_abandoned` does it at the next start.

    Args:
        workspace: What it begins from.
        pass_env: Names of variables that are passed on to what runs in it.

    Raises:
        TransientError: If it can't be made, or its set-up says that it is worth another try.
        RejectedError: If its set-up fails (`setup`).
        TerminalError: If the base or a variable isn't there any more.
    """
    stack = ExitStack()
    try:
        with _nothing_spent():
            room = await _cut_short(_made, stack, workspace, tuple(pass_env))
        try:
            if workspace.setup:
                with _nothing_spent():
                    await _set_up(room, workspace.setup)
                    room = replace(room, left=await _cut_short(room.so_far))
            yield room
        except BaseException as error:
            _tell(error, room.failed())
            raise
    finally:
        await finished(stack.close)


async def finished(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a function returns in a thread, which is waited for even if this is cancelled meanwhile."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        pull()
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody else looks at it
        raise


async def _cut_short(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a function returns in a thread; if this is cancelled, the git that it runs is ended."""
    with leashed():
        return await finished(function, *args, **kwargs)


@contextmanager
def _nothing_spent() -> Generator[None, None, None]:
    """Have errors say so: nobody was asked yet."""
    try:
        yield
    except JobError as error:  # what was there when the job was looked at
        raise TerminalError(str(error), kind="workspace", usage=Usage()) from None
    except ExecutorError as error:
        error.usage = Usage()
        raise


def _made(stack: ExitStack, workspace: Workspace, pass_env: Sequence[str]) -> Room:
    git = Git(Path(workspace.repo))
    try:
        mine = stack.enter_context(lease(about={"repo": workspace.repo, "base": workspace.base}))
        ports = stack.enter_context(block(workspace.ports))
        path, objects = Path(os.path.realpath(mine.path), "work"), Objects.of(git)
        base = resolved(git, workspace.base)
        _check_out(git, objects, base, path)
    except OSError as error:
        raise TransientError(f"A workspace can't be made: {error.strerror or error}.", kind="workspace") from None
    numbers = [str(port) for port in ports]
    own = {"COMPOSE_PROJECT_NAME": f"work-{mine.id}"}  # else it goes by the folder's name, which all share
    more = {**_AGENTS_GIT, **own, **({"PORT": numbers[0], "PORTS": " ".join(numbers)} if numbers else {})}
    env = environment(mine, pass_env=pass_env, more=more)
    Path(env["HOME"], ".gitconfig").write_text(_AGENTS_SETTINGS, encoding="utf-8")
    return Room(path, env, base, mine, objects, workspace.keep == "failed")


def _check_out(git: Git, objects: Objects, base: str, path: Path) -> None:
    """Check a commit out.

    Raises:
        GitError: If it can't be for now: the disk is full, say.
        RejectedError: If it can't be here: a name is too long, say, or is none that the system takes.
    """
    try:
        checked_out(git, objects, base, path)
    except GitError as error:
        if error.exit is None or _PASSING.search(error.said):
            raise
        raise RejectedError(
            f"The commit {base[:12]} can't be checked out here: {error.said}", kind="workspace"
        ) from None


async def _set_up(room: Room, command: Command) -> None:
    program = Program(argv=command.argv, env={**room.env, **command.env}, cwd=room.path)
    ran = await run(program, log=room.lease.path / "setup.log")
    if ran.exit in command.ok:
        return
    ended = f"exit code {ran.exit}" if ran.signal is None else f"signal {ran.signal}"
    said = "\n".join(text for text in (ran.stdout.text.strip(), ran.stderr.text.strip()) if text)
    message = f"The workspace's set-up failed ({ended}): {said[-_TAIL:] or 'it said nothing'}"
    raise (TransientError if ran.exit in command.retry else RejectedError)(message, kind="setup")


def _tell(error: BaseException, kept: str) -> None:
    if kept and isinstance(error, ExecutorError):
        error.traced(kept)
    elif kept:
        _log.warning("%s", kept)
