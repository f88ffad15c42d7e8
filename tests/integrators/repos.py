"""Small repositories, and changes of them, made by git itself without a checkout."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prefect_dispatch import MergeBranches
from prefect_dispatch.models.outcome import Change, Failure, Outcome, encode_patch
from prefect_dispatch.testing import ScriptedExecutor
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import diff_trees, to_changed_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import Question
    from prefect_dispatch.models.ledger import Merge

Files = dict[str, "bytes | str | tuple[str, bytes]"]
"""Files by path; a mode goes before the content where it isn't that of a plain file."""
Edits = dict[str, "bytes | str | tuple[str, bytes] | None"]
"""What becomes of files by path; None: they go."""
WHO = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "somebody"), ("EMAIL", "somebody@example.org"), ("DATE", "@1700000000 +0000"))
}
"""Who made the repository, and when."""
PATCH = (
    *("diff-tree", "-r", "-p", "--unified=0", "--binary", "--full-index", "--no-renames", "--no-ext-diff"),
    *("--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"),
)


def repository(folder: Path, files: Mapping[str, bytes | str | tuple[str, bytes]]) -> tuple[Git, str]:
    """Return a new repository with one commit on `main`, which is checked out, and that commit."""
    git = Git(folder)
    git.output("init", "--quiet", "--initial-branch=main")
    commit = git.output("commit-tree", tree(git, files), stdin=b"The base\n", env=WHO)
    git.output("update-ref", "refs/heads/main", commit)
    git.output("reset", "--hard", "--quiet")
    return git, commit


def tree(git: Git, files: Mapping[str, bytes | str | tuple[str, bytes]]) -> str:
    """Return the tree of some files."""
    lines = ""
    for path, found in files.items():
        mode, content = found if isinstance(found, tuple) else ("100644", found)
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        lines += f"{mode} {git.output('hash-object', '-w', '--stdin', stdin=data)}\t{path}\0"
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": os.fspath(Path(folder, "index"))}
        git.output_bytes(
            "update-index", "-z", "--index-info", stdin=lines.encode("utf-8", "surrogateescape"), env=index
        )
        return git.output("write-tree", env=index)


def change_of(git: Git, base: str, files: Mapping[str, bytes | str | tuple[str, bytes]]) -> Change:
    """Return the change that makes some files of a base: these and no others."""
    made = tree(git, files)
    patch = encode_patch(git.output_bytes(*PATCH, base, made))
    return Change(base=base, tree=made, patch=patch, files=to_changed_files(diff_trees(git, base, made)))


def done(name: str, change: Change | None, *, item: str = "repo", priority: int = 0, value: str = "") -> Outcome:
    """Return the outcome of a brief that made a change."""
    said = value or f"{name} is done."
    return Outcome(brief=name, item=item, status="succeeded", value=said, change=change, brief_priority=priority)


def lost(name: str, item: str = "repo") -> Outcome:
    """Return the outcome of a brief that failed."""
    return Outcome(brief=name, item=item, status="failed", error=Failure(kind="timeout", message="Too late."))


def files_at(git: Git, commit: str) -> dict[str, bytes]:
    """Return the files of a commit."""
    names = (
        git.output_bytes("ls-tree", "-r", "-z", "--name-only", commit)
        .decode("utf-8", "surrogateescape")
        .split("\0")[:-1]
    )
    return {name: git.output_bytes("cat-file", "blob", f"{commit}:{name}") for name in names}


class Nobody:
    """Has no answer: a merge that asks it is wrong."""

    @property
    def executor(self) -> Executor:
        """Somebody without any answer, and without a repository."""
        return ScriptedExecutor({})

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:
        """Refuse to be asked."""
        raise AssertionError(questions)


def merging(git: Git, **more: Any) -> MergeBranches:  # noqa: ANN401 -- fields of the integrator
    """Return an integrator of changes of a repository, as it is before a run."""
    return MergeBranches.model_validate({"workspace": {"repo": str(git.repo)}, **more}).resolve_paths(git.repo)


def value(merge: Merge) -> dict[str, Any]:
    """Return the value of a merge."""
    found: Any = merge.value
    return dict(found)


def ends(merge: Merge) -> dict[str, tuple[str, str | None]]:
    """Return where each brief ended, and for whose sake."""
    return {row.brief: (row.disposition, row.by.brief if row.by else None) for row in merge.ledger}


def rows(merge: Merge, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    return [row for table in merge.tables if table.name == name for row in table.rows]
