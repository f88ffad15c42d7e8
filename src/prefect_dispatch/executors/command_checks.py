"""Checks of a brief's command before it is run, and the variables in which it gets an item."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError, RejectedError, TerminalError
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.models.test_run import TestRun
from prefect_dispatch.processes.state_folder import SET_PER_PROGRAM
from prefect_dispatch.security.redaction import is_secret_name, redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief, Command
    from prefect_dispatch.models.item import Item


def require_command(brief: Brief, operation: str | None) -> Command | None:
    """Validate and return the command of a brief; None if a ShellOperation block has the commands.

    Args:
        brief: The brief.
        operation: The name of the block, if there is one.

    Raises:
        JobError: If there is no command, or two, or it has a secret, or its report doesn't match the brief's output.
    """
    command = brief.command
    if operation:
        if command:
            raise JobError(
                f"Brief {brief.name!r} has a command, and the block {operation!r} is to be run in place of it: leave "
                "the command out, or executor.operation."
            )
        return None
    if command is None:
        raise JobError(
            f"Brief {brief.name!r} has no command, and a shell runs one: give it a command, such as "
            "{run: 'wc -w'}, or name a ShellOperation block under executor.operation."
        )
    require_valid_env(brief.name, command)
    if command.report and brief.output is not TestRun:
        raise JobError(
            f"Brief {brief.name!r}: its command has a report, so that the answer is what that says: set output: "
            "prefect_dispatch.test_run:TestRun, or leave the report out."
        )
    return command


def require_valid_env(brief: str, command: Command) -> None:
    """Check that the variables which a command sets contain no secret and no reserved name.

    Args:
        brief: The brief's name.
        command: Its command.

    Raises:
        JobError: If one does.
    """
    for name, value in command.env.items():
        if SET_PER_PROGRAM.fullmatch(name):
            raise JobError(f"Brief {brief!r}: command.env: {name!r} is set for each item; call it something else.")
        if is_secret_name(name) or redact(value) != value:
            raise JobError(
                f"Brief {brief!r}: command.env: {name!r} looks like a secret, and a job holds none: set it in the "
                "environment of the run, and name it under 'pass_env'."
            )


def normalize_cwd(cwd: str, folder: Path | None) -> str:
    """Normalize a relative path, and check that it doesn't lead out of a folder.

    Args:
        cwd: The path in the job.
        folder: The job's folder; None for a workspace, which doesn't exist yet.

    Raises:
        JobError: If it leads out of the folder, or doesn't exist.
    """
    relative = Path(os.path.normpath(cwd))
    if relative.is_absolute() or ".." in relative.parts:
        raise JobError(f"executor.cwd: {cwd!r} leads out of the job's folder; name a folder in it.")
    if folder is not None and not Path(folder, relative).is_dir():
        raise JobError(f"executor.cwd: there is no folder {cwd!r} in {str(folder)!r}.")
    if folder is not None and not Path(folder, relative).resolve().is_relative_to(folder.resolve()):
        raise JobError(f"executor.cwd: {cwd!r} is a link that leads out of the job's folder; name a folder in it.")
    return relative.as_posix()


def resolve_cwd(workspace: Path, cwd: str) -> Path:
    """Return the absolute path of a folder in an open workspace.

    Args:
        workspace: The workspace's folder; its path must not contain a link.
        cwd: The folder's relative path.

    Raises:
        TerminalError: If it doesn't exist, or a link leads out of the workspace.
    """
    folder = workspace / cwd
    if folder.is_dir() and folder.resolve().is_relative_to(workspace):
        return folder
    raise TerminalError(
        f"executor.cwd: {cwd!r} is no folder of the workspace, or a link that leads out of it, once it is set up.",
        kind="folder",
        usage=Usage(),
    )


def require_program(brief: str, command: Command, folder: Path | None) -> None:
    """Check that a command's program exists and is executable.

    Args:
        brief: The brief's name.
        command: The command.
        folder: The folder that it will run in; None if that doesn't exist yet.

    Raises:
        JobError: If it isn't.
    """
    name = command.argv[0]
    if "/" in name:
        path = Path(name) if folder is None else folder / name
        if (folder is None and not path.is_absolute()) or os.access(path, os.X_OK):
            return
    elif shutil.which(name, path=command.env.get("PATH", os.environ.get("PATH", os.defpath))):
        return
    raise JobError(
        f"Brief {brief!r}: command.run: the program {name!r} isn't here, or can't be run; install it, or name it by "
        "its path. A list is a program and its arguments, a text is a line for a shell."
    )


MAX_VARIABLE_BYTES = 100_000
"""Most bytes of one environment variable; Linux allows 128 KiB."""
KEY, VALUE = "ITEM_KEY", "ITEM_VALUE"
_NO_LETTER = re.compile(r"[^A-Z0-9]")
_STDIN = "set the command's stdin: true, so that the value is on standard input, read or not"


def stdin_bytes(item: Item) -> bytes:
    """Return an item's value as standard input for a command: a text as it is, anything else as JSON."""
    return _text(item.value).encode()


def item_environment(item: Item, *, stdin: bool) -> dict[str, str]:
    """Return the environment variables for an item.

    `ITEM_KEY` is its key. Unless the value is on standard input, `ITEM_VALUE` is its value, a text as it is and
    anything else as JSON; and if the value is an object, each of its texts, numbers and booleans has a variable of
    its own, such as `ITEM_UNIT_PRICE` for `unit-price`.

    Args:
        item: The item.
        stdin: Whether the value is on standard input.

    Raises:
        RejectedError: If a value doesn't fit into a variable, or two fields have the same variable.

    Example:
        >>> from prefect_dispatch.models.item import Item
        >>> item = Item(key="a", value={"unit-price": 2.5, "ok": True, "tags": []})
        >>> list(item_environment(item, stdin=False).items())[2:]
        [('ITEM_UNIT_PRICE', '2.5'), ('ITEM_OK', 'true')]
    """
    item_env, clash = _map_fields(item, stdin=stdin)
    if clash:
        raise _item_error("fields", clash)
    for name, text in item_env.items():
        if "\0" in text:
            way_out = "give it a key without one" if name == KEY else _STDIN
            raise _item_error("nul", f"{name} can't hold a NUL character", way_out)
        if len(text.encode()) > MAX_VARIABLE_BYTES:
            raise _item_error(
                "too_large", f"{name} would take {len(text.encode()):,} bytes, and holds {MAX_VARIABLE_BYTES:,}"
            )
    return item_env


def require_distinct_variables(items: Iterable[Item]) -> None:
    """Check that no two fields of an item map to the same variable, for a command that doesn't read standard input.

    Raises:
        JobError: If two do; it names the item, the variable and both fields.
    """
    for item in items:
        if clash := _map_fields(item, stdin=False)[1]:
            raise JobError(f"Item {item.key!r}: {clash}: call one of them something else, or {_STDIN}.")


def _map_fields(item: Item, *, stdin: bool) -> tuple[dict[str, str], str]:
    """Return the variables of an item, and a message on the first two fields with the same one, or an empty text."""
    if stdin:
        return {KEY: item.key}, ""
    item_env = {KEY: item.key, VALUE: _text(item.value)}
    sources = {KEY: "the key", VALUE: "the whole value"}
    for field, value in plain_fields(item).items():
        name = variable_name(field)
        if item_env.get(name) == _text(value):  # equal values are no conflict: a table's key column, say
            continue
        if name in sources:
            return item_env, f"{name} would be {sources[name]} and the field {field!r}"
        sources[name] = f"the field {field!r}"
        item_env[name] = _text(value)
    return item_env, ""


def plain_fields(item: Item) -> dict[str, JsonValue]:
    """Return the fields of an item that have variables of their own: its texts, numbers and booleans."""
    if not isinstance(item.value, dict):
        return {}
    fields = item.value.items()
    return {name: value for name, value in fields if value is not None and not isinstance(value, (list, dict))}


def variable_name(field: str) -> str:
    """Return the name of the variable for a field of an item.

    Example:
        >>> variable_name("unit-price")
        'ITEM_UNIT_PRICE'
    """
    return "ITEM_" + _NO_LETTER.sub("_", field.upper())


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _item_error(kind: str, why: str, way_out: str = _STDIN) -> RejectedError:
    message = f"The item doesn't fit into a command's environment: {why}; {way_out}."
    return RejectedError(message, kind=kind, usage=Usage())


MAX_NAMED_VARIABLES = 12
"""Most variables that a message names."""
_TEMPLATE = re.compile(
    r"\{\{-?\s*(?P<outer>[A-Za-z_]\w*)[^{}]*\}\}|(?<![$\w{])\{(?P<inner>[A-Za-z_]\w*)(?:\.[\w.]+)?\}"
)
"""`{{ name }}` and `{name}`, but not a shell's `${name}`."""
_EXPANDED = re.compile(r"\$(?:(ITEM_[A-Z0-9_]+)|\{(ITEM_[A-Z0-9_]+)\})")
"""A shell's `$ITEM_X` and `${ITEM_X}`, but not `${ITEM_X:-}`: with a default, the variable may be missing."""
_SET = r"\b(?:{0}=|for\s+{0}\b|read\s[^;&|\n]*\b{0}\b)"


def require_item_variables(briefs: Sequence[Brief], items: Sequence[Item]) -> None:
    """Check that commands use only variables that they get, and no template placeholders for an item.

    Args:
        briefs: The briefs.
        items: All items.

    Raises:
        JobError: If a command uses another variable or a placeholder, or two fields have the same variable; the
            message says what to write.

    Example:
        >>> from prefect_dispatch import Brief, Command, Item
        >>> count = Brief(name="count", instructions="Count.", command=Command(run="wc -w {{ item }}"))
        >>> require_item_variables([count], [Item(key="a", value="a.txt")])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        prefect_dispatch.errors.JobError: Brief 'count': command.run: '{{ item }}' would stay as it stands, ...
    """
    commands = [(brief.name, brief.command) for brief in briefs if brief.command]
    if not commands or not items:
        return
    if not all(command.stdin for _, command in commands):
        require_distinct_variables(items)
    fields = {field for item in items for field in plain_fields(item)}
    for brief, command in commands:
        _check_command(brief, command, fields)


def _check_command(brief: str, command: Command, fields: Iterable[str]) -> None:
    """Check the text of one command.

    Args:
        brief: The brief's name.
        command: Its command.
        fields: The fields that any item has.

    Raises:
        JobError: If it has a placeholder, or a variable that is never set.
    """
    text = command.run if isinstance(command.run, str) else "\n".join(command.run)
    # 1. Placeholders such as `{{ item }}`, which would stay in the command as they are.
    by_field = {field: variable_name(field) for field in fields}
    names = {"item": VALUE, "value": VALUE, "key": KEY, **by_field}
    for found in _TEMPLATE.finditer(text):
        if (name := found["outer"] or found["inner"]) in names:
            write = f'write "${names[name]}" for it'
            read = "read it from standard input" if command.stdin else f"{write}, or set stdin: true and read it there"
            raise JobError(
                f"Brief {brief!r}: command.run: {found[0]!r} would stay as it stands, as an item never becomes a part "
                f"of a command: {write if name == 'key' else read}."
            )
    # 2. Variables that neither the item, nor the command's `env`, nor its text sets.
    offered = [KEY] if command.stdin else [KEY, VALUE, *sorted(set(by_field.values()))]
    for found in _EXPANDED.finditer(text):
        name = found[1] or found[2]
        if name not in offered and name not in command.env and not re.search(_SET.format(name), text):
            read = "; with stdin: true its value is on standard input only" if command.stdin else ""
            more = ", …" if len(offered) > MAX_NAMED_VARIABLES else ""
            raise JobError(
                f"Brief {brief!r}: command.run: ${name} is never set: an item gives "
                f"{', '.join(offered[:MAX_NAMED_VARIABLES])}{more}{read}. Where it may be missing, write ${{{name}:-}}."
            )


SKIPPED_FOLDERS = frozenset({".git", "__pycache__"})
"""Folders whose content changes when files are only read."""


def file_digests(patterns: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that matches some globs, by its path in the form of the globs.

    Args:
        patterns: Globs, as in a brief's `reads`.
        folder: The folder that relative globs count from.

    Raises:
        BriefError: If a glob is invalid.
        JobError: If a file can't be read.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for name, path in _files(Glob.parse(pattern), folder):
            if name not in found:
                found[name] = _digest(path, pattern)
    return found


def _files(glob: Glob, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the paths of the files that a glob matches; links to files are followed, links to folders are not."""
    # Walk only below the part of the glob that has no wildcard.
    fixed = [*takewhile(lambda name: isinstance(name, str), glob.names)]
    top = Path(folder, glob.start, *map(str, fixed))
    rest = replace(glob, names=glob.names[len(fixed) :], start="")
    if _is_file(top):
        if rest.names in ((), (None,)) and not glob.text.endswith("/"):
            yield glob.text, top
        return
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for file in sorted(files):
            path = Path(parent, file)
            below = path.relative_to(top).as_posix()
            if matches_path(rest, below) and _is_file(path):
                yield glob.start + "/".join((*map(str, fixed), below)), path


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _digest(path: Path, pattern: str) -> str:
    try:
        with path.open("rb") as file:
            content = hashlib.sha256()
            while chunk := file.read(1 << 20):
                content.update(chunk)
    except OSError as error:
        raise JobError(f"reads: {pattern!r} means {str(path)!r}, which can't be read: {error.strerror}.") from None
    return content.hexdigest()
