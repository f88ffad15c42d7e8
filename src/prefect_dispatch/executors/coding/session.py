"""One session of a coding agent: its program, acceptance command, cost, credentials, and writes outside."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import stat
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import JobError, RejectedError
from prefect_dispatch.executors.coding.adapter import Tokens
from prefect_dispatch.executors.command_checks import item_environment, stdin_bytes
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.program_logs import new_log
from prefect_dispatch.processes.runner import Program
from prefect_dispatch.processes.state_folder import Lease, lease
from prefect_dispatch.workspaces.git import Git, GitError, ObjectStore, create_with_alternates, with_work_tree
from prefect_dispatch.workspaces.patches import display_path, summarize_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.executors.coding.adapter import AgentOutput, AgentReport, Launch
    from prefect_dispatch.models.brief import Brief, Command
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Change
    from prefect_dispatch.workspaces.workspace import OpenWorkspace


_STATUS = ("status", "--porcelain", "-z", "--untracked-files=all", "--ignore-submodules=all", "--no-renames")
_SETTINGS = ("config", "info/attributes", "info/exclude")
"""Files of a git folder that configure git; the snapshot has the hooks, too."""
MAX_COMPARED_BYTES = 16 * 1024 * 1024
"""Most bytes of a file that is compared with one that an agent wrote."""
_MAX_COMPARED_FILES = 100
"""Most files of the checkout that are compared with those of the workspace."""


class CheckoutSnapshot(NamedTuple):
    """Snapshot of a checkout; two are compared by `changes_since`."""

    top: Path
    """Its top folder; for a bare repository the git folder."""
    files: Mapping[bytes, object]
    """Files that differ from HEAD: their status, and a stamp that changes with the file."""
    git: Mapping[str, object]
    """HEAD, branches, tags and settings, by their names in messages."""

    @classmethod
    def take(cls, repo: Path) -> CheckoutSnapshot | None:
        """Take a snapshot of a checkout; None if it can't be read.

        Args:
            repo: A folder in it; of a bare repository only HEAD, branches, tags and settings are read.
        """
        git = Git(repo)
        try:
            objects = ObjectStore.of(git)
            state = dict(_iter_git_state(git, objects.common))
            if git.output("rev-parse", "--is-inside-work-tree") != "true":
                return cls(objects.common, {}, state)
            top = Path(git.output("rev-parse", "--path-format=absolute", "--show-toplevel"))
            return cls(top, dict(_iter_dirty_files(git, objects, top)), state)
        except (GitError, JobError, OSError):
            return None

    def changes_since(self, before: CheckoutSnapshot) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the changed files, and the changed refs and settings, both as text for messages."""
        files = {path for path, _ in self.files.items() ^ before.files.items()}
        parts = {name for name, _ in self.git.items() ^ before.git.items()}
        return tuple(map(display_path, sorted(files))), tuple(sorted(parts))


def _iter_dirty_files(git: Git, objects: ObjectStore, top: Path) -> Iterator[tuple[bytes, object]]:
    """Yield the files that differ from HEAD, each with its two letters of `git status` and its stamp."""
    index = git.output("rev-parse", "--path-format=absolute", "--git-path", "index")
    head = git.output("rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^{commit}")
    with tempfile.TemporaryDirectory() as folder:
        own = create_with_alternates(objects, Path(folder, "git"), checkout=False)
        (own.repo / "HEAD").write_text(f"{head}\n", encoding="ascii")
        # A split index refers to these files, which git expects in its own folder.
        for part in Path(index).parent.glob("sharedindex.*"):
            shutil.copy(part, own.repo)
        status = with_work_tree(own, top, {"GIT_INDEX_FILE": index}).output_bytes(*_STATUS)
    for line in filter(None, status.split(b"\0")):
        yield line[3:], (line[:2], _stamp(top, line[3:]))


def _iter_git_state(git: Git, common: Path) -> Iterator[tuple[str, object]]:
    """Yield HEAD, every ref and every file of settings, each with its name for messages."""
    yield "HEAD", git.run("symbolic-ref", "--quiet", "HEAD") + git.run("rev-parse", "--verify", "--quiet", "HEAD")
    for line in git.output_bytes("for-each-ref", "--format=%(refname) %(objectname)").splitlines():
        ref, _, target = line.rpartition(b" ")
        yield display_path(ref), target
    hooks = (f"hooks/{path.name}" for path in (common / "hooks").glob("*"))
    for setting in (*_SETTINGS, *hooks):
        yield setting, _stamp(common, os.fsencode(setting))


def _stamp(folder: Path, path: bytes) -> object:
    """Return mode, size, modification time and inode of a file, which identify its state; None if it doesn't exist."""
    try:
        status = (folder / os.fsdecode(path)).lstat()
    except OSError:
        return None
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino


class OutsideWriteDetector:
    """Detector for writes outside of the workspace: compares the user's checkout before and after; calls block."""

    def __init__(self, repo: Path, workspace: Path, writes: Sequence[str], program: str) -> None:
        """Record the state of the checkout before the work begins.

        Args:
            repo: A folder in the checkout.
            workspace: The folder that the agent is to work in.
            writes: The globs, from the top of the repository, of the files that it is to write.
            program: The path of the agent's program, which may be in the checkout and occur in the agent's output.
        """
        self._repo, self._workspace, self._program = repo, workspace, program
        self._writes = [Glob.parse(glob) for glob in writes]
        self._before = CheckoutSnapshot.take(repo)

    def require_inside(self, output: AgentOutput) -> str:
        """Check that the agent didn't change the checkout; return a note on changes of unknown origin, or no text.

        Args:
            output: The agent's output.

        Raises:
            RejectedError: If a change of the checkout can be traced to the agent.
        """
        if self._before is None:
            return ""
        now = CheckoutSnapshot.take(self._repo)
        if now is None:
            return f"While it worked, the repository {str(self._repo)!r} became unreadable; nothing says who did that."
        files, parts = now.changes_since(self._before)
        if not (changes := (*files, *parts)):
            return ""
        note = f"While it worked, the checkout {str(now.top)!r} changed: {summarize_paths(changes)}"
        if why := self._find_evidence(now, files, output):
            raise RejectedError(
                f"{note}. {why}, so the agent wrote outside of its workspace, and nothing of its work is used. Undo "
                "there what isn't yours, and give the agent a sandbox, fewer permissions or a machine of its own.",
                kind="outside",
            )
        return f"{note}; nothing traces that to the agent."

    def _find_evidence(self, now: CheckoutSnapshot, files: Iterable[str], output: AgentOutput) -> str:
        """Return the evidence that a change was made by the agent, or an empty text if there is none."""
        # 1. A changed file is one that the brief has the agent write.
        if written := [path for path in files if any(matches_path(glob, path) for glob in self._writes)]:
            return f"The brief has it write {summarize_paths(written)}"
        # 2. A changed file has the same content as in the workspace. A file that the user has reset to the base commit
        #    has, too, but git doesn't list it as modified.
        dirty = {display_path(path) for path in now.files}
        compared = [path for path in files if path in dirty][:_MAX_COMPARED_FILES]
        same = [
            path
            for path in compared
            if (content := read_plain_file(now.top / path, MAX_COMPARED_BYTES))
            and content == read_plain_file(self._workspace / path, MAX_COMPARED_BYTES)
        ]
        if same:
            return f"The content of {summarize_paths(same)} is what it left in its workspace"
        # 3. The agent's output names the checkout.
        folders = {str(now.top), str(now.top.resolve()), str(self._repo), str(self._repo.resolve())}
        naming = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(folders)))})(?![\w.-])")
        texts = (output.stdout, output.stderr, *output.files.values())
        is_named = any(naming.search(text.replace(self._program, "")) for text in texts)
        return "Its output names that folder" if is_named else ""


@dataclass
class Conversation:
    """Conversation with an agent about one item: the folder and the session that a re-ask continues."""

    stack: ExitStack
    """Closing it removes the folder."""
    lease: Lease | None = None
    """The leased folder with its HOME, in which its session is; None before the first ask."""
    session: str = ""
    """The id of its session; empty if there is none to continue."""
    work: tuple[Brief, Item] | None = None
    """What the session is about."""
    tokens: Tokens = field(default_factory=Tokens)
    """The tokens that the session has reported so far."""

    def open_lease(self, about: Mapping[str, JsonValue]) -> Lease:
        """Return the leased folder; the same one for each ask."""
        if self.lease is None:
            self.lease = self.stack.enter_context(lease(about=about))
        return self.lease

    def session_for(self, ask: Ask) -> str:
        """Return the session that an ask continues: only a re-ask does, of the work that the session is about."""
        continues = self.lease is not None and ask.rejections and self.work == (ask.brief, ask.item)
        return self.session if continues else ""

    def record(self, ask: Ask, report: AgentReport, *, resumed: bool, reports_session_total: bool) -> AgentReport:
        """Record the session of a run; return its report with the tokens of this run alone.

        Args:
            ask: The ask.
            report: The report as the agent gave it.
            resumed: Whether the run continued the session.
            reports_session_total: Whether the agent reports the tokens of the whole session.
        """
        before = self.tokens if resumed and reports_session_total else Tokens()
        self.session, self.work = report.session, (ask.brief, ask.item)
        if report.tokens is None:  # unknown: the next report of a whole session includes them
            self.tokens = before
            return report
        self.tokens = report.tokens
        own = Tokens(*(max(0, now - then) for now, then in zip(report.tokens, before, strict=True)))
        return replace(report, tokens=own)


UNCHANGED = "Nothing was changed in the repository, and the brief says that something is to be written."
"""Problem of work that changed no file; part of a prompt, so the wording must not change."""
KEEP = 4 * 1024 * 1024
"""Bytes of the beginning and of the end of an agent's output that are kept."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Most bytes of a file that is read from an agent's HOME."""
PAUSES_S = (2.0, 8.0, 30.0)
"""Seconds to wait before each further try of an acceptance command whose exit code asks for one."""
FEEDBACK_BYTES = 2_000
"""Bytes of the end of an acceptance command's output that the agent gets as feedback."""
_log = logging.getLogger("prefect_dispatch")


async def find_problems(workspace: OpenWorkspace, ask: Ask, change: Change) -> list[str]:
    """Return the problems of finished work: an empty change, or a failed acceptance command."""
    brief = ask.brief
    problems = [UNCHANGED] if brief.writes and not change.files else []
    if brief.command and (problem := await run_acceptance_command(brief.command, ask.item, workspace)):
        problems.append(problem)
    if problems and (kept_note := workspace.keep_after_failure()):
        problems.append(kept_note)
    return problems


async def require_unchanged(workspace: OpenWorkspace) -> None:
    """Check that work which may only read left every file as it was; files that git ignores don't count.

    Raises:
        RejectedError: If a file was changed; the message names it.
    """
    before, now = workspace.setup_state, await workspace.capture_state()
    changed = {each.path for each in now.differences ^ before.differences} | (now.modules ^ before.modules)
    if changed:
        raise RejectedError(
            f"It may only read, and changed {summarize_paths(sorted(changed))}; nothing of its work is used. Instruct "
            "it to change no file, or set executor.access to 'write' and declare the files under 'writes'.",
            kind="read_only",
        )


async def run_acceptance_command(command: Command, item: Item, workspace: OpenWorkspace) -> str:
    """Run the acceptance command in a workspace; return the problem, or an empty text if it passes.

    The command gets the workspace's environment, in which there is no key of the agent. If its exit code asks for
    another try, it is repeated after each of `PAUSES_S`, so that the agent's work, which was paid for, isn't lost.

    Args:
        command: The brief's command.
        item: The item, which the command gets in the same way as one that a `Shell` runs.
        workspace: The open workspace, as the agent left it.

    Raises:
        ExecutorError: If it can't be started, or can't get the item.
    """
    item_env = item_environment(item, stdin=command.stdin)
    program = Program(
        argv=command.argv,
        env={**workspace.env, **command.env, **item_env},
        cwd=workspace.path,
        stdin=stdin_bytes(item) if command.stdin else b"",
    )
    ran = await workspace.runner(program, new_log("acceptance command"))
    for pause_s in PAUSES_S:
        if ran.exit not in command.retry or ran.exit in command.ok:
            break
        await asyncio.sleep(pause_s)
        ran = await workspace.runner(program, new_log("acceptance command"))
    if ran.exit in command.ok:
        return ""
    status, output = ran.describe(FEEDBACK_BYTES)
    # Sent to the agent as feedback: part of a prompt, so the wording must not change.
    return f"The acceptance command ended with {status}, and said at last:\n{output or '(nothing)'}"


def write_files(launch: Launch, home: Path) -> None:
    """Write the files of a launch, readable by their owner only, without following links in HOME."""
    for path, text in launch.files.items():
        _remove_links(path, home)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "wb", opener=_open_plain_file) as file:
            file.write(text.encode("utf-8", "replace"))


def remove_files(launch: Launch, home: Path) -> None:
    """Remove the files of a launch, as they may hold a key, without following links in HOME."""
    for path in launch.files:
        _remove_links(path, home)
        with suppress(OSError):  # the agent has removed or replaced it
            path.unlink()


def _remove_links(path: Path, home: Path) -> None:
    """Remove what an agent has left in place of the folders in HOME that a file lies in, such as links to others."""
    for parent in reversed(path.relative_to(home).parents[:-1]):
        with suppress(OSError):  # there is none, or it is a folder
            (home / parent).unlink()


def read_files(home: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the text of files in an agent's HOME, by name; missing, large and special files are left out."""
    contents = {name: read_plain_file(home / name, MAX_FILE_BYTES) for name in names}
    return {name: content.decode("utf-8", "replace") for name, content in contents.items() if content is not None}


def read_plain_file(path: Path, most: int) -> bytes | None:
    """Return the content of a plain file; None if it is missing, larger than `most` bytes, a link or a special file."""
    with suppress(OSError), open(path, "rb", opener=_open_plain_file) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size <= most:
            return file.read(most)
    return None


def _open_plain_file(path: str, flags: int) -> int:
    """Open a file, and neither follow a link nor wait at a named pipe; only its owner can read a new one."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def usage_of(report: AgentReport, model: str) -> Usage:
    """Return the usage of a run, with an estimated cost if the agent reports tokens only.

    Args:
        report: The agent's report.
        model: The model, as litellm names it.
    """
    tokens, cost = report.tokens, report.cost_usd
    if tokens is None:  # the agent broke off, or never reports tokens; its cost may be incomplete
        return Usage(requests=1, unsettled=1, cost_usd=cost)
    estimate = estimate_cost(tokens, model) if cost is None else None
    return Usage(
        requests=1,
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cost_usd=estimate if cost is None else cost,
        estimated_usd=estimate or 0.0,
    )


def estimate_cost(tokens: Tokens, model: str) -> float | None:
    """Return the cost of tokens in US dollars by litellm's price table, or None if the model isn't in it.

    Cached tokens have their own price where the table has one.
    """
    if not tokens.prompt and not tokens.completion:
        return 0.0
    try:
        sent, got = load_litellm().cost_per_token(
            model=model,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cache_read_input_tokens=min(tokens.cached, tokens.prompt),
        )
    except Exception:  # noqa: BLE001 -- litellm raises a plain Exception for an unknown model
        return None
    return float(sent) + float(got)
