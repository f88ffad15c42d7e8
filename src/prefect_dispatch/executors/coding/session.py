"""Parts of a session of a coding agent: its program, acceptance command, cost, credentials, and writes outside."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import JobError, RejectedError, TerminalError
from prefect_dispatch.executors.block_references import credentials, load_credentials, require_matching_provider
from prefect_dispatch.executors.coding.adapter import AgentOutput
from prefect_dispatch.executors.coding.mini_swe_agent import key_variable
from prefect_dispatch.executors.command_checks import item_environment, stdin_bytes
from prefect_dispatch.executors.llm.litellm_adapter import load_litellm
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.log_files import new_log
from prefect_dispatch.processes.runner import CompletedProgram, Program, run
from prefect_dispatch.security.redaction import register_secrets
from prefect_dispatch.workspaces.git import Git, GitError, ObjectStore, create_with_alternates, with_work_tree
from prefect_dispatch.workspaces.patches import display_path, summarize_paths
from prefect_dispatch.workspaces.workspace import to_thread_shielded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.executors.coding.adapter import Adapter, AgentReport, Launch, Tokens
    from prefect_dispatch.models.brief import Command
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.workspaces.workspace import OpenWorkspace


_PLACES = (("--show-toplevel",), ("--git-path", "index"))


_STATUS = ("status", "--porcelain", "-z", "--untracked-files=all", "--ignore-submodules=all", "--no-renames")


_SETTINGS = ("config", "info/attributes", "info/exclude")


"""Files of a git folder that configure git; the snapshot has the hooks, too."""


_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class CheckoutSnapshot:
    """Snapshot of a checkout; two are compared by `changes_since`."""

    top: Path
    """Its top folder; for a bare repository the git folder."""
    files: Mapping[bytes, tuple[bytes, _Stamp | None]] = field(
        default_factory=dict[bytes, tuple[bytes, "_Stamp | None"]]
    )
    """Files that differ from HEAD: their status, and a stamp that changes with the file."""
    git: Mapping[str, object] = field(default_factory=dict[str, object])
    """HEAD, branches, tags and settings, by their names in messages."""

    @classmethod
    def take(cls, repo: Path) -> CheckoutSnapshot | None:
        """Take a snapshot of a checkout; None if it can't be read.

        Args:
            repo: A folder in it; of a bare repository only HEAD, branches, tags and settings are read.
        """
        git = Git(repo)
        try:
            common = ObjectStore.of(git).common
            state = dict(_git_state(git, common))
            if git.output("rev-parse", "--is-inside-work-tree") != "true":
                return cls(common, {}, state)
            top = Path(git.output("rev-parse", "--path-format=absolute", "--show-toplevel"))
            lines = _read_status(repo)
        except (GitError, JobError, OSError):
            return None
        return cls(top, {line[3:]: (line[:2], _stamp(top, line[3:])) for line in lines}, state)

    def changes_since(self, before: CheckoutSnapshot) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the changed files, and the changed refs and settings, both as text for messages."""
        files = {path for path in {*self.files, *before.files} if self.files.get(path) != before.files.get(path)}
        parts = {name for name in {*self.git, *before.git} if self.git.get(name) != before.git.get(name)}
        return tuple(map(display_path, sorted(files))), tuple(sorted(parts))


def _read_status(repo: Path) -> list[bytes]:
    """Return the lines of `git status` for files that differ from HEAD: two letters, a space, and a path."""
    git = Git(repo)
    top, index = (git.output("rev-parse", "--path-format=absolute", *what) for what in _PLACES)
    head = git.output("rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^{commit}")
    with tempfile.TemporaryDirectory() as folder:
        own = create_with_alternates(ObjectStore.of(git), Path(folder, "git"), checkout=False)
        (own.repo / "HEAD").write_text(f"{head}\n", encoding="ascii")
        # A split index refers to these files, which git expects in its own folder.
        for part in Path(index).parent.glob("sharedindex.*"):
            shutil.copy(part, own.repo)
        reader = with_work_tree(own, Path(top), {"GIT_INDEX_FILE": index})
        return [line for line in reader.output_bytes(*_STATUS).split(b"\0") if line]


def _git_state(git: Git, common: Path) -> Iterator[tuple[str, object]]:
    """Yield HEAD, every ref and every file of settings, each with its name for messages."""
    yield "HEAD", git.run("symbolic-ref", "--quiet", "HEAD") + git.run("rev-parse", "--verify", "--quiet", "HEAD")
    for line in git.output_bytes("for-each-ref", "--format=%(refname) %(objectname)").splitlines():
        ref, _, target = line.rpartition(b" ")
        yield display_path(ref), target
    hooks = common / "hooks"
    names = sorted(os.listdir(hooks)) if hooks.is_dir() else []  # noqa: PTH208 -- names alone
    for setting in (*_SETTINGS, *(f"hooks/{name}" for name in names)):
        yield setting, _stamp(common, os.fsencode(setting))


def _stamp(folder: Path, path: bytes) -> _Stamp | None:
    """Return mode, size, modification time and inode of a file, which identify its state; None if it doesn't exist."""
    try:
        status = os.lstat(os.path.join(os.fsencode(folder), path))  # noqa: PTH118 -- a `Path` has no bytes
    except OSError:
        return None
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino


KEEP = 4 * 1024 * 1024


"""Bytes of the beginning and of the end of an agent's output that are kept."""


MAX_FILE_BYTES = 64 * 1024 * 1024


"""Most bytes of a file that is read from an agent's HOME."""


PAUSES_S = (2.0, 8.0, 30.0)


"""Seconds to wait before each further try of an acceptance command whose exit code asks for one."""


FEEDBACK_BYTES = 2_000


"""Bytes of the end of an acceptance command's output that the agent gets as feedback."""


async def run_agent(
    adapter: Adapter, launch: Launch, workspace: OpenWorkspace, idle_s: float | None, log: Path
) -> tuple[CompletedProgram, AgentOutput]:
    """Run an agent's program in a workspace; return its result, and its output with the files that it wrote.

    Args:
        adapter: The agent's adapter.
        launch: How to start it; the files that are written for it are removed afterwards.
        workspace: The open workspace.
        idle_s: Seconds without any output after which it is ended.
        log: The file for its whole output.

    Raises:
        ExecutorError: If it can't be started.
    """
    await to_thread_shielded(_write_files, launch)
    program = Program(
        argv=launch.argv,
        env={**workspace.env, **launch.env},
        cwd=launch.cwd,
        stdin=launch.stdin.encode("utf-8", "replace"),
        idle_s=idle_s,
        keep=KEEP,
    )
    try:
        ran = await run(program, log=log)
    finally:  # these files may hold a key, which later commands in the workspace must not find
        for path in launch.files:
            with suppress(OSError):  # the agent has removed or replaced it
                path.unlink()
    files = await to_thread_shielded(_read_files, Path(workspace.env["HOME"]), adapter.output_files)
    return ran, AgentOutput(ran.stdout.text, ran.stderr.text, files, ran.exit)


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
    ran = await run(program, log=new_log())
    for pause_s in PAUSES_S:
        if ran.exit not in command.retry or ran.exit in command.ok:
            break
        await asyncio.sleep(pause_s)
        ran = await run(program, log=new_log())
    if ran.exit in command.ok:
        return ""
    status = f"exit code {ran.exit}" if ran.signal is None else f"signal {ran.signal}"
    output = "\n".join(text for each in (ran.stdout, ran.stderr) if (text := each.end_text(FEEDBACK_BYTES).strip()))
    # Sent to the agent as feedback: part of a prompt, so the wording must not change.
    return f"The acceptance command ended with {status}, and said at last:\n{output or '(nothing)'}"


def _write_files(launch: Launch) -> None:
    """Write the files of a launch, readable by their owner only, without following links."""
    for path, text in launch.files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(text.encode("utf-8", "replace"))


def _read_files(home: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the text of files in an agent's HOME, by name; missing, large and special files are left out."""
    return {name: text for name in names if (text := _read_text(home / name)) is not None}


def _read_text(path: Path) -> str | None:
    """Return the text of a plain file; None if it is missing, too large, a link or a special file."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        with os.fdopen(number, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(number)


def usage_of(report: AgentReport, model: str) -> Usage:
    """Return the usage of a run, with an estimated cost if the agent reports tokens only.

    Args:
        report: The agent's report.
        model: The model, as litellm names it.
    """
    tokens = report.tokens
    if tokens is None:  # the agent broke off, or never reports tokens; its cost may be incomplete
        return Usage(requests=1, unsettled=1, cost_usd=report.cost_usd)
    usage = Usage(
        requests=1, prompt_tokens=tokens.prompt, completion_tokens=tokens.completion, cost_usd=report.cost_usd
    )
    if report.cost_usd is not None or (cost := estimate_cost(tokens, model)) is None:
        return usage
    return usage.model_copy(update={"cost_usd": cost, "estimated_usd": cost})


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


MAX_COMPARED_BYTES = 16 * 1024 * 1024


"""Most bytes of a file that is compared with one that an agent wrote."""


_MAX_COMPARED_FILES = 100


"""Most files of the checkout that are compared with those of the workspace."""


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
        if not files and not parts:
            return ""
        note = f"While it worked, the checkout {str(now.top)!r} changed: {summarize_paths((*files, *parts))}"
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
        if same := [path for path in compared if self._is_same(now.top / path, self._workspace / path)]:
            return f"The content of {summarize_paths(same)} is what it left in its workspace"
        # 3. The agent's output names the checkout.
        folders = {str(now.top), str(now.top.resolve()), str(self._repo), str(self._repo.resolve())}
        naming = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(folders)))})(?![\w.-])")
        texts = (output.stdout, output.stderr, *output.files.values())
        is_named = any(naming.search(text.replace(self._program, "")) for text in texts)
        return "Its output names that folder" if is_named else ""

    @staticmethod
    def _is_same(one: Path, other: Path) -> bool:
        """Return whether two plain files have the same content, which isn't empty."""
        with suppress(OSError):
            if one.is_symlink() or other.is_symlink() or not one.is_file() or not other.is_file():
                return False
            size = one.stat().st_size
            return 0 < size == other.stat().st_size <= MAX_COMPARED_BYTES and one.read_bytes() == other.read_bytes()
        return False


class Access(NamedTuple):
    """Credentials of an agent for its provider."""

    key: str
    """The key; empty if there is none, or if the agent finds one itself."""
    passed_variables: tuple[str, ...]
    """The variables that are passed to all programs in its workspace, which excludes those of the key."""


def key_names(model: str) -> tuple[str, ...]:
    """Return the environment variables that may hold the key of a model's provider, in order of preference.

    Example:
        >>> key_names("openai/gpt-5")
        ('OPENAI_API_KEY', 'CODEX_API_KEY')
    """
    more = {"openai": ("CODEX_API_KEY",), "anthropic": ("ANTHROPIC_AUTH_TOKEN",), "gemini": ("GOOGLE_API_KEY",)}
    return (key_variable(model), *more.get(model.partition("/")[0], ()))


def require_access(model: str, block: str | None, pass_env: Sequence[str], api_base: str, names: Sequence[str]) -> str:
    """Check that there is a key for a model's provider; return the provider's address.

    Args:
        model: The model, with its provider.
        block: The name of an LLMCredentials block.
        pass_env: The variables that are passed to the agent.
        api_base: The address in the job; wins over that of the block.
        names: The variables that may hold the key.

    Raises:
        JobError: If the block doesn't exist, has no key or is for another provider, or if there is no key at all.
    """
    if block is not None:
        found = load_credentials(block, "executor.credentials")
        require_matching_provider(found.model, model, block)
        if not found.arguments.get("api_key"):
            raise JobError(f"executor.credentials: the block {block!r} has no key, and an agent needs one; add it.")
        return api_base or found.api_base
    if not pass_env and not api_base:
        raise JobError(
            f"executor: the agent has no key for {model!r}: name the variable that holds it under 'executor.pass_env' "
            f"({names[0]}, say), or an LLMCredentials block under 'executor.credentials'."
        )
    return api_base


async def resolve_access(block: str | None, pass_env: Sequence[str], names: Sequence[str]) -> Access:
    """Return the credentials of an agent; its key is redacted in all texts from here on.

    Raises:
        TerminalError: If the block no longer exists.
    """
    passed = tuple(name for name in pass_env if name not in names)
    if block is not None:
        try:
            key = str((await asyncio.to_thread(credentials, block)).arguments.get("api_key", ""))
        except JobError as error:
            raise TerminalError(str(error), kind="credentials", usage=Usage()) from None
    else:
        # The first variable that is passed on and set.
        key = next((os.environ[name] for name in names if name in pass_env and os.environ.get(name)), "")
    register_secrets([key])
    return Access(key, passed)
