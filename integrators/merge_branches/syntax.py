"""What a merge line by line doesn't see: names that both sides define, and the merge by syntax of `mergiraf`.

Git pairs lines. Where both sides add a definition of one name in different places, such as a key of a configuration or
a class, it merges both without a conflict. Definitions are recognized here by their form alone, in any language that
indents; what is found is a doubt for a reader, and changes no result.

Mergiraf (https://mergiraf.org, GPL-3.0) merges by the syntax trees of some thirty languages. It is called as a program
where it is on `PATH`; nothing of it is part of this package.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope = tuple[str, ...]
"""The lines that enclose a definition: of smaller indentation, from the outermost one."""

MAX_BYTES = 1_000_000
"""Largest file that is searched for definitions."""
MAX_SHOWN = 5
"""Most names of a file that are reported."""
_PROSE = frozenset({".adoc", ".md", ".rst", ".tex", ".txt"})
"""Suffixes of files in which a word before a colon defines nothing."""
_SECTION = re.compile(r"\[+\s*(?P<name>[^\[\]]+?)\s*\]+")
"""A section of an INI or TOML file, to which the lines after it belong."""
_DECLARATION = re.compile(
    r"(?:[\w@]+\s+){0,4}?(?:class|struct|enum|interface|trait|record|def|fn|func|fun|function|sub|type|module|namespace"
    r"|object|union|macro|proc)\s+(?P<name>[A-Za-z_$][\w$.]*)"
)
_ASSIGNMENT = re.compile(
    r"(?P<before>(?:[A-Za-z_@][\w<>\[\],.*&?@]*\s+){0,4})"
    r"(?P<quote>[\"']?)(?P<name>[A-Za-z_$@][\w.$-]*)(?P=quote)\s*(?::?=(?![=>])|:(?![:=/]))"
)
_STATEMENTS = frozenset(
    {
        *("assert", "await", "break", "case", "catch", "continue", "default", "del", "do", "elif", "else", "except"),
        *("finally", "for", "from", "if", "import", "in", "lambda", "match", "print", "private", "protected", "public"),
        *("raise", "return", "switch", "throw", "try", "until", "when", "while", "with", "yield"),
    }
)
"""Words that begin a statement, which defines nothing."""


def list_definitions(text: str) -> dict[tuple[Scope, str], list[str]]:
    r"""Return the lines that define a name, by enclosing lines and name.

    Example:
        >>> list_definitions("class A:\n    size = 1\n\nsize = 2\n")
        {((), 'A'): ['class A:'], (('class A:',), 'size'): ['size = 1'], ((), 'size'): ['size = 2']}
    """
    found: dict[tuple[Scope, str], list[str]] = defaultdict(list)
    section: Scope = ()
    enclosing: list[tuple[int, str]] = []
    for line in text.splitlines():
        content = line.strip()
        if not content:
            continue
        # 1. The lines around it: each of smaller indentation than the next.
        indentation = len(line.expandtabs()) - len(line.expandtabs().lstrip())
        while enclosing and enclosing[-1][0] >= indentation:
            enclosing.pop()
        scope = (*section, *(text for _, text in enclosing))
        enclosing.append((indentation, content))
        # 2. What it defines.
        if header := _SECTION.fullmatch(content):
            section, enclosing = (content,), []
            found[(), header["name"]].append(content)
        elif (name := _defined_name(content)) is not None:
            found[scope, name].append(content)
    return dict(found)


def _defined_name(line: str) -> str | None:
    """Return the name that a line defines, or None."""
    if declaration := _DECLARATION.match(line):
        return declaration["name"]
    assignment = _ASSIGNMENT.match(line)
    if assignment is None or not _STATEMENTS.isdisjoint((*assignment["before"].split(), assignment["name"])):
        return None
    return assignment["name"]


def find_double_definitions(path: str, base: bytes, ours: bytes, theirs: bytes, merged: bytes) -> list[str]:
    """Return the names that both sides of a merge define anew, so that the merged file defines each of them twice.

    Args:
        path: The path of the file; prose defines nothing.
        base: The common base.
        ours: One side.
        theirs: The other side.
        merged: The merge of both, without conflict markers.
    """
    if PurePosixPath(path).suffix.lower() in _PROSE or len(merged) > MAX_BYTES:
        return []
    before, one, other, both = (
        list_definitions(text.decode("utf-8", "replace")) for text in (base, ours, theirs, merged)
    )
    return [
        name
        for (scope, name), lines in both.items()
        if (key := (scope, name)) not in before and len(lines) > max(len(one.get(key, ())), len(other.get(key, ())))
    ]


class SyntaxMerge(NamedTuple):
    """Result of a merge by syntax."""

    text: bytes | None
    """The merged file; None if there are conflicts."""


PROGRAM = "mergiraf"
"""Name of the program that merges by syntax."""
_OURS_MARKER = b"<<<<<<< ours"
LIMIT_S = 60.0
"""Seconds after which a merge by syntax is given up."""


def merge_by_syntax(path: str, versions: Mapping[str, bytes]) -> SyntaxMerge | None:
    """Return the merge of a file by `mergiraf`; None if the program isn't there, or can't merge the file.

    Args:
        path: The path of the file, of which the program takes the language.
        versions: The texts of `base`, `ours` and `theirs`.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    return _run(program, PurePosixPath(path).name, versions["base"], versions["ours"], versions["theirs"])


@lru_cache(maxsize=256)  # the audit of a run merges the same files again, and must get the same result
def _run(program: str, name: str, base: bytes, ours: bytes, theirs: bytes) -> SyntaxMerge | None:
    """Run the program in a folder of its own, without the user's configuration and repository."""
    with tempfile.TemporaryDirectory(prefix="prefect-dispatch-") as folder:
        for label, text in (("base", base), ("ours", ours), ("theirs", theirs)):
            Path(folder, label).write_bytes(text)
        # It keeps copies of what it merged in the user's cache.
        env = {"HOME": folder, "XDG_CACHE_HOME": folder, "LC_ALL": "C", "PATH": str(Path(program).parent)}
        labels = ("-s", "base", "-x", "ours", "-y", "theirs")
        command = [program, "merge", "base", "ours", "theirs", f"--path-name={name}", "--timeout=0", *labels]
        try:
            done = subprocess.run(  # noqa: S603 -- no shell; the name of a file is the value of an option
                command,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return None
    if done.returncode not in (0, 1):
        return None
    return SyntaxMerge(done.stdout if done.returncode == 0 and _OURS_MARKER not in done.stdout else None)


@lru_cache(maxsize=8)
def _read_version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=LIMIT_S, check=False)  # noqa: S603 -- as above
    except (OSError, subprocess.TimeoutExpired):
        return PROGRAM
    return done.stdout.decode("utf-8", "replace").strip()[:100] or PROGRAM


def describe_syntax_merge() -> str:
    """Return a sentence on how files are merged by syntax; empty if the program isn't there."""
    program = shutil.which(PROGRAM)
    if program is None:
        return ""
    return (
        f"Where lines conflict, a file is merged by its syntax by {_read_version(program)}, if that finds no conflict, "
        "and flagged; where it finds one that git doesn't, the file is flagged, too."
    )
