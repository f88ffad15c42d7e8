"""What stands in a workspace, collected as a change of its base.

Whoever worked there may have left anything: attributes, settings and hooks that name programs, links, named pipes,
repositories inside, another repository in place of its own. So the files are read by a repository of ours, made
afterwards: content is compared with the base, byte for byte. Where HEAD stands, what was committed, staged or
stashed, and what `.git` is by now, doesn't matter.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.change import Change, written
from prefect_dispatch.errors import RejectedError
from prefect_dispatch.globs import Glob
from prefect_dispatch.workspaces.difference import SUBMODULE, Entry, files_of, named, staged
from prefect_dispatch.workspaces.git import Git, GitError
from prefect_dispatch.workspaces.scope import require_declared, require_no_secrets
from prefect_dispatch.workspaces.sharing import reading, sharing
from prefect_dispatch.workspaces.standing import Standing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from prefect_dispatch.workspaces.difference import Difference
    from prefect_dispatch.workspaces.sharing import Objects

LARGEST_FILE = 100_000_000
"""Bytes of a file that can be collected."""
LARGEST_PATCH = 32_000_000
"""Bytes of a patch that can be kept as an answer."""

_PATCH = (
    *("-r", "-p", "--unified=0", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=histogram", "--no-indent-heuristic"),
)


class Left(NamedTuple):
    """What differed from the base before the work began: what the set-up wrote."""

    differences: frozenset[Difference] = frozenset()
    """Where, and how."""
    modules: frozenset[bytes] = frozenset()
    """Submodules whose folders held something."""


NOTHING_LEFT = Left()
"""Where there was no set-up."""


class Collected:
    """The files of a workspace, in the index of a repository of ours."""

    def __init__(self, objects: Objects, base: str, files: Path, own: Path, writes: Sequence[str] = ()) -> None:
        """Collect the files.

        Ignored files aren't collected, unless they are in the base, or named one by one. Of a repository inside,
        its files are. Nothing is read through a link.

        Args:
            objects: Whose objects the base is among.
            base: The commit that the workspace began from.
            files: The folder of the workspace; its path leads through no link.
            own: Where the repository is made.
            writes: Globs; a file that one of them names without a wildcard is collected even if it is ignored.

        Raises:
            RejectedError: If something can't be collected.
            BriefError: If a glob can't be used.
        """
        self._base, self._own = base, own
        self._git = reading(sharing(objects, own, checkout=False), files)
        self._standing = Standing(os.fsencode(files))
        self._modules: dict[bytes, bool | None] = {}
        try:
            if not files.is_dir() or os.path.realpath(files) != str(files):
                raise _refusal(f"its folder {str(files)!r} is gone, or has become a link")
            self._require_readable()
            self._git.out("read-tree", base)
            self._stage(_plain(writes))
        except GitError as error:
            raise _refusal(self._gone() or error.said or str(error)) from None

    @property
    def left(self) -> Left:
        """What differs from the base by now."""
        return Left(
            frozenset(staged(self._git, self._base)), frozenset(path for path, full in self._modules.items() if full)
        )

    def change(self, writes: Sequence[str], before: Left) -> Change:
        """Return what was changed.

        Args:
            writes: The globs of what may be.
            before: What differed when the work began; where that is as it was then, it is no change.

        Raises:
            RejectedError: If anything else was changed, or a secret or too much was written.
            BriefError: If a glob can't be used.
        """
        if found := [
            path for path, full in self._modules.items() if full is None or (full and path not in before.modules)
        ]:
            raise RejectedError(f"{named(found)}: what is changed in a submodule can't be collected.", kind="submodule")
        self._put((each.path, each.before) for each in staged(self._git, self._base) if each in before.differences)
        tree = self._git.out("write-tree")
        files = files_of(staged(self._git, self._base))
        require_declared(files, writes)
        patch = self._patch(tree)
        require_no_secrets(self._git, files, patch)
        return Change(base=self._base, tree=tree, patch=written(patch), files=files)

    def _gone(self) -> str:
        """Return the sentence that says that the base isn't there any more, or nothing."""
        if not Git(self._own).tried("cat-file", "-e", self._base)[0]:
            return ""
        return f"its base {self._base[:12]} is gone: the repository was moved, or pruned of what no branch has"

    def _patch(self, tree: str) -> bytes:
        file = self._own / "patch"
        self._git.out("diff-tree", *_PATCH, f"--output={file}", self._base, tree)
        if (size := file.stat().st_size) > LARGEST_PATCH:
            raise _too_large(f"a patch of {size:,} bytes, and {LARGEST_PATCH:,} can be kept")
        return file.read_bytes()

    def _require_readable(self) -> None:
        pipes, closed = self._standing.obstacles()
        if pipes:
            raise _refusal(f"{named(pipes)} should be a file")
        if left := {*closed} - self._ignored(closed):
            raise _refusal(f"the folder {named(sorted(left))} can't be read")

    def _stage(self, plain: Iterable[bytes]) -> None:
        """Bring the index to what stands in the folder."""
        tracked = dict(self._tracked())
        self._modules = {
            path: self._standing.module(path) for path, entry in tracked.items() if entry.mode == SUBMODULE
        }
        files = tracked.keys() - self._modules.keys()
        gone = {path for path in files if not self._standing.file(path)}
        self._put((path, Entry("0", tracked[path].object)) for path in gone)
        others = {*self._git.raw("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")} - {b""}
        inside = {path for folder in others if folder.endswith(b"/") for path, _ in self._standing.below(folder)}
        more = {path for path in {*others, *(inside - self._ignored(inside)), *plain} if self._standing.file(path)}
        found = sorted((files - gone) | more)
        self._require_small(found, tracked)
        self._git.out("update-index", "--add", "--remove", "-z", "--stdin", stdin=_lines(found))
        if refused := {*found} - {path for path, _ in self._tracked()}:
            raise _refusal(f"git takes no files that are called {named(sorted(refused))}")

    def _tracked(self) -> Iterator[tuple[bytes, Entry]]:
        for line in self._git.raw("ls-files", "-z", "--stage").split(b"\0"):
            head, _, path = line.partition(b"\t")
            if head:
                mode, name, _ = head.decode().split(" ")
                yield path, Entry(mode, name)

    def _ignored(self, paths: Collection[bytes]) -> set[bytes]:
        """Return which of some paths are ignored."""
        if not paths:
            return set()
        asked = _lines(b"./" + path for path in paths)  # so that none of them looks like a pattern
        _, said = self._git.tried(
            "check-ignore", "-z", "--stdin", stdin=asked, env={"GIT_LITERAL_PATHSPECS": "0"}, most=1
        )
        return {path.removeprefix(b"./") for path in said.split(b"\0")}

    def _put(self, entries: Iterable[tuple[bytes, Entry]]) -> None:
        """Put entries into the index; those of mode 0 are taken out."""
        if lines := _lines(f"{mode} {name}\t".encode() + path for path, (mode, name) in entries):
            self._git.out("update-index", "-z", "--index-info", stdin=lines)

    def _require_small(self, paths: Iterable[bytes], tracked: dict[bytes, Entry]) -> None:
        """Check the sizes of files; one that has the size that it has in the base may be as large as that."""
        for path in paths:
            found = self._standing.file(path)
            if found and found.st_size > LARGEST_FILE:
                known = path in tracked and int(self._git.out("cat-file", "-s", tracked[path].object))
                if known != found.st_size:
                    raise _too_large(
                        f"{named([path])} has {found.st_size:,} bytes, and {LARGEST_FILE:,} can be collected"
                    )


def _plain(writes: Iterable[str]) -> Iterator[bytes]:
    """Yield the paths among globs that name one file or folder."""
    for glob in map(Glob.parse, writes):
        names = [name for name in glob.names if isinstance(name, str)]
        if names and not glob.start and len(names) == len(glob.names) - 1:  # the last stands for all below it
            yield os.fsencode("/".join(names))


def _lines(parts: Iterable[bytes]) -> bytes:
    return b"".join(part + b"\0" for part in parts)


def _refusal(why: str) -> RejectedError:
    return RejectedError(f"What stands in the workspace can't be collected: {why}.", kind="workspace")


def _too_large(why: str) -> RejectedError:
    return RejectedError(
        f"The change is too large: {why}. Have .gitignore name what is built or downloaded.", kind="size"
    )
