"""The command `plugin`: install skill and MCP server into Claude Code or Codex, with what jobs may do and spend."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.cli.commands import COMPLETE
from prefect_dispatch.cli.jobs import create_policy, require_extra
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.coding.open_source_agents import key_variable
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.serialization.durable_files import write_atomically

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from prefect_dispatch.agents.policy import Policy

NAME = "prefect-dispatch"
"""Name of the plugin, of its marketplace, and of the command."""
RECORD = "installed.json"
"""The file with the digests of what was installed, by which later installations recognize their own files."""
SERVERS = ".mcp.json"
"""The file with the MCP server and its options."""
AGENT_S = 120
"""Seconds that a command of an agent may take."""
MAX_ERROR = 600
"""Characters of an agent's error that a message quotes."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def install(arguments: argparse.Namespace) -> int:
    """Write the plugin where an agent finds it, and register it there; with `--print`, print that instead.

    Raises:
        JobError: If an option is wrong, a file of others is in the way, or the agent's program is missing or fails.
    """
    agent: str = arguments.agent
    require_extra()
    # 1. The files, and the commands of the agent that register them.
    folder = _agent_folder(agent)
    words = _server_words(arguments, create_policy(arguments, check_root=_has_root(arguments)))
    content = _plugin_files(words, _key_variables(arguments.models or []))
    commands = [] if agent == "claude" else _codex_commands(folder)
    if arguments.print_only:
        lines = [f"{folder / name}" for name in content]
        lines += [f"\n{folder / SERVERS}:\n{content[SERVERS].decode()}", *map(shlex.join, commands)]
        print("\n".join(lines).rstrip())
        return COMPLETE
    if commands and shutil.which(agent) is None:
        raise JobError(f"{agent!r} is not on the PATH, so the plugin can't be registered there; nothing was written.")
    # 2. Write and register them.
    _write_files(folder, content)
    for command in commands:
        _run(command)
    print(f"Installed in {folder}; {agent} loads it in its next session.")
    print(f"What jobs may do and spend: {shlex.join(words)}\nTo change it, run this command again with other options.")
    return COMPLETE


def _agent_folder(agent: str) -> Path:
    """Return the folder of the plugin: Claude Code loads plugins below `skills`, Codex is given a marketplace."""
    if agent == "claude":
        return Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude").absolute() / "skills" / NAME
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex").absolute() / NAME


def _codex_commands(folder: Path) -> list[list[str]]:
    return [
        ["codex", "plugin", "marketplace", "add", str(folder)],
        ["codex", "plugin", "add", f"{NAME}@{NAME}"],  # copies the files: run again, it copies them again
    ]


def _has_root(arguments: argparse.Namespace) -> bool:
    """Return whether a root is named; otherwise it is the folder in which the agent works."""
    return bool(arguments.root != Path())


def _server_words(arguments: argparse.Namespace, policy: Policy) -> list[str]:
    """Return the command of the server, with every limit, so that it can be read what is allowed.

    The command is a script by its path: `python -m` would import from the folder in which the agent works.

    Raises:
        JobError: If the script isn't found.
    """
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    program = shutil.which(NAME, path=places)
    if program is None:
        raise JobError(f"The command {NAME!r} is not on the PATH, so no agent could start it.")
    words = [os.path.abspath(program), "mcp"]  # noqa: PTH100 -- links stay: an environment's is one
    if _has_root(arguments):
        words += ["--root", policy.root]
    if arguments.models:
        words += ["--models", ",".join(arguments.models)]
    words += ["--max-usd", str(policy.max_usd), "--max-usd-total", str(policy.total_usd)]
    words += ["--max-items", str(policy.max_items), "--max-concurrency", str(policy.max_concurrency)]
    return [*words, "--allow", *policy.allow] if policy.allow else words


def _key_variables(models: list[str]) -> list[str]:
    """Return the variables with the keys of models' providers, which Codex passes to a server only by their names."""
    found = [key_variable(model) for model in models if "/" in model]
    return [name for name in found if _VARIABLE.fullmatch(name)]


def _plugin_files(words: list[str], variables: list[str]) -> dict[str, bytes]:
    """Return the files of the plugin by their names, with the command of the server."""
    root = Path(str(files("prefect_dispatch.agents") / "plugin"))
    content = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }
    document: dict[str, Any] = json.loads(content[SERVERS])
    server = document["mcpServers"]["dispatch"]
    server |= {"command": words[0], "args": words[1:]}
    server["env_vars"] = list(dict.fromkeys([*server["env_vars"], *variables]))
    content[SERVERS] = f"{json.dumps(document, indent=2)}\n".encode()
    return content


def _write_files(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write files into a folder; files that earlier installations wrote are replaced, and removed if they are gone.

    Raises:
        JobError: If a file is in the way that no installation wrote, or that was changed since.
    """
    # 1. Check everything, so that nothing is written if something is in the way.
    record = _read_record(folder)
    new = {name: _digest(data) for name, data in content.items()}
    if path := _find_foreign(folder, record, new):
        raise JobError(f"{str(path)!r} was not written by an installation, or changed since; move it away first.")
    # 2. Record what is about to be written beside what is there, so that an interrupted installation can be repeated.
    try:
        _write_record(folder, {name: sorted({*record.get(name, ()), *new.get(name, ())}) for name in {*record, *new}})
        for name in record.keys() - new.keys():
            (folder / name).unlink(missing_ok=True)
        for name, data in content.items():
            write_atomically(folder / name, [data])
        _write_record(folder, new)
    except OSError as error:
        raise JobError(f"{str(folder)!r} can't be written to: {error.strerror}.") from None


def _find_foreign(folder: Path, record: Mapping[str, list[str]], new: Mapping[str, list[str]]) -> Path | None:
    """Return what no installation wrote: the folder itself, if it has no record, or a file that is in the way."""
    if not record and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return folder
    real = folder.resolve()
    for name in sorted({*record, *new}):
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        is_own = not path.is_symlink() and path.is_file() and path.resolve().is_relative_to(real)
        if not is_own or _digest(path.read_bytes())[0] not in {*record.get(name, ()), *new.get(name, ())}:
            return path
    return None


def _digest(data: bytes) -> list[str]:
    return [hashlib.sha256(data).hexdigest()]


def _read_record(folder: Path) -> dict[str, list[str]]:
    """Return the digests of what was installed, by names; empty if there is no such record."""
    try:
        found: object = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, list[str]]", found) if isinstance(found, dict) else {}


def _write_record(folder: Path, digests: Mapping[str, list[str]]) -> None:
    write_atomically(folder / RECORD, [f"{json.dumps(digests, indent=2, sort_keys=True)}\n".encode()])


def _run(command: list[str]) -> None:
    """Run a command of an agent.

    Raises:
        JobError: If it fails; the message quotes what it printed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AGENT_S, check=False)  # noqa: S603 -- ours
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"{shlex.join(command)} can't be run: {redact(str(error))}") from None
    if done.returncode:
        raise JobError(f"{shlex.join(command)} failed: {redact(done.stderr or done.stdout).strip()[-MAX_ERROR:]}")
