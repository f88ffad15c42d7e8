"""Capture the files of a workspace as a patch against its base commit, validate patches, and apply them.

A workspace is untrusted after an agent's work: it may hold attributes, settings and hooks that name programs, links,
named pipes, nested repositories, or another repository in place of its own. So its files are read with a fresh
repository of ours, which compares their content with the base byte for byte. The workspace's own HEAD, commits,
index, stash and `.git` folder are ignored.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.errors import RejectedError
from prefect_dispatch.models.globs import Glob, matches_path
from prefect_dispatch.models.outcome import Change, ChangedFile, encode_patch
from prefect_dispatch.security.escaping import join_names, shorten, strip_control_chars
from prefect_dispatch.security.redaction import redactor, secret_detector
from prefect_dispatch.workspaces.git import MAIL, NAME, Git, GitError, create_with_alternates, with_work_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Generator, Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.workspaces.git import ObjectStore


_READ_BY_GIT = frozenset({b".gitattributes", b".gitignore", b".gitmodules"})
"""Names of files that git reads itself; at a named pipe in place of one it would wait for ever."""
SUBMODULE = "160000"
"""The mode of a submodule, which is a commit of another repository."""
MAX_NAMED_PATHS = 10
"""Most paths that a message names."""
_RAW = ("-r", "-z", "--raw", "--no-abbrev", "--no-renames", "--ignore-submodules=none")
_KINDS = {"A": "added", "M": "modified", "D": "deleted", "T": "typechange"}
_WIDEST = 200


class Entry(NamedTuple):
    """Entry of a tree or an index at one path; all zeros where there is none."""

    mode: str
    """The file mode, as git writes it."""
    object: str
    """The object id of the content."""


class Difference(NamedTuple):
    """One path on which two trees differ."""

    path: bytes
    """The path; names may be any bytes."""
    before: Entry
    """The old entry."""
    after: Entry
    """The new entry."""
    kind: str
    """`A`, `M`, `D` or `T`: added, modified, deleted, or changed in type."""


def diff_trees(git: Git, one: str, other: str) -> list[Difference]:
    """Return the differences between two trees, or the trees of two commits, in the order of the paths."""
    return [*_iter_differences(git, "diff-tree", one, other)]


def diff_index(git: Git, base: str) -> list[Difference]:
    """Return the differences between a tree and the index of a repository, in the order of the paths."""
    return [*_iter_differences(git, "diff-index", "--cached", base)]


def to_changed_files(differences: Sequence[Difference]) -> tuple[ChangedFile, ...]:
    """Convert differences to the changed files of a `Change`.

    Raises:
        RejectedError: If a submodule is among them.
    """
    if found := [each.path for each in differences if SUBMODULE in (each.before.mode, each.after.mode)]:
        raise RejectedError(
            f"{summarize_paths(found)}: a submodule was added, moved or removed, which can't be collected; leave it "
            "as it is.",
            kind="submodule",
        )
    return tuple(
        ChangedFile.model_validate(
            {"path": display_path(path), "change": _KINDS[kind], "mode": "" if kind == "D" else after.mode}
        )
        for path, _, after, kind in differences
    )


def display_path(path: bytes) -> str:
    r"""Decode a path to text; bytes that are no UTF-8 become `\xNN`.

    Example:
        >>> display_path(b"caf\xe9.txt")
        'caf\\xe9.txt'
    """
    return path.decode("utf-8", "backslashreplace")


def summarize_paths(paths: Iterable[bytes | str]) -> str:
    """Format paths for a message: escaped, at most `MAX_NAMED_PATHS` of them, long ones cut.

    Example:
        >>> summarize_paths([b"a.py", "b.py"])
        "'a.py', 'b.py'"
    """
    texts = [strip_control_chars(display_path(path) if isinstance(path, bytes) else path) for path in paths]
    return join_names((repr(shorten(text, _WIDEST)) for text in texts), MAX_NAMED_PATHS)


def _iter_differences(git: Git, *command: str) -> Iterator[Difference]:
    """Yield the differences that a command of git prints."""
    parts = iter(git.output_bytes(*command, *_RAW).split(b"\0"))
    for head in filter(None, parts):
        before, after, one, other, kind = head[1:].decode().split(" ")
        yield Difference(next(parts), Entry(before, one), Entry(after, other), kind)


_SECTION = re.compile(rb"^(?=diff --git )", re.MULTILINE)
_BINARY = re.compile(rb"^index [0-9a-f]+\.\.([0-9a-f]+)[^\n]*\nGIT binary patch$", re.MULTILINE)
_ADDED, _REMOVED = re.compile(rb"^\+(.*)$", re.MULTILINE), re.compile(rb"^-(.*)$", re.MULTILINE)
_PRINTABLE = re.compile(rb"[\t -~]{6,}")
_LINES_AT_ONCE = 2_000
"""Lines that are searched for secrets at a time, as one search of a long text is slow."""
_QUOTED = 120


def require_declared(files: Iterable[ChangedFile], writes: Sequence[str]) -> None:
    """Check that the brief's `writes` covers every changed file; a rename counts as two.

    Args:
        files: The changed files.
        writes: The globs that the brief declares, from the top of the repository; case-sensitive.

    Raises:
        RejectedError: If a file isn't covered; the message lists such files.
        BriefError: If a glob is invalid.
    """
    globs = [Glob.parse(glob) for glob in writes]
    outside = [each.path for each in files if not any(matches_path(glob, each.path) for glob in globs)]
    if outside:
        declared = f"it declares {', '.join(map(repr, writes))}" if writes else "it declares no 'writes'"
        raise RejectedError(
            f"The brief changed what it doesn't declare: {summarize_paths(outside)}; {declared}. Declare these under "
            "'writes', or instruct it to leave them alone.",
            kind="scope",
        )


def require_no_secrets(git: Git, files: Sequence[ChangedFile], patch: bytes) -> None:
    """Check that neither added content nor a file name contains a secret.

    Removed lines may, and so may lines that were in the repository before and were only moved.

    Args:
        git: The repository that has the written objects.
        files: The changed files.
        patch: The patch, without context lines.

    Raises:
        RejectedError: If one does; the message names the file, and not the secret.
    """
    # 1. Names of files.
    contains_secret = secret_detector()
    for each in files:
        if contains_secret(each.path):
            raise _secret_error(redactor()(each.path), "its name")
    # 2. Added content, file by file; a line that is also removed somewhere was only moved.
    removed = {line.strip() for line in _REMOVED.findall(patch)}
    # A change of type has two sections in the patch: one removes the old entry, the next adds the new one.
    paths = [each.path for each in files for _ in range(1 + (each.change == "typechange"))]
    for path, section in zip(paths, _SECTION.split(patch)[1:], strict=True):
        lines = _added_text(git, section, removed)
        for start in range(0, len(lines), _LINES_AT_ONCE):
            part = lines[start : start + _LINES_AT_ONCE]
            if contains_secret("\n".join(part)):
                line = strip_control_chars(next(filter(contains_secret, part), "")).strip()
                where = f"the line {redactor()(line)[:_QUOTED]!r}" if line else "some lines of it"
                raise _secret_error(path, where)


def _added_text(git: Git, section: bytes, removed: Container[bytes]) -> list[str]:
    """Return the lines added to one file; of a binary file, its runs of printable characters."""
    if binary := _BINARY.search(section):
        blob = binary[1].decode()
        added = _PRINTABLE.findall(git.output_bytes("cat-file", "blob", blob)) if blob.strip("0") else []
    else:
        added = [line for line in _ADDED.findall(section) if line.strip() not in removed]
    return [each.decode("utf-8", "replace") for each in added]


def _secret_error(path: str, where: str) -> RejectedError:
    return RejectedError(
        f"{summarize_paths([path])} holds what looks like a secret: {where}. Nothing of the change is kept; have the "
        "brief read secrets from the environment, and make up none that look like one.",
        kind="secret",
    )


LARGEST_FILE = 100_000_000
"""Most bytes of a file that can be captured."""
LARGEST_PATCH = 32_000_000
"""Most bytes of a patch that can be stored as an answer."""
_PATCH = (
    *("-r", "-p", "--unified=0", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=histogram", "--no-indent-heuristic"),
)


class WorkspaceState(NamedTuple):
    """State of a workspace before the work begins: what the set-up command changed against the base."""

    differences: frozenset[Difference] = frozenset()
    """The differences between base and workspace."""
    modules: frozenset[bytes] = frozenset()
    """Submodules whose folders had content, or were replaced."""


UNCHANGED_STATE = WorkspaceState()
"""State of a workspace without a set-up command."""


class WorkspaceSnapshot:
    """Snapshot of a workspace's files in the index of a repository of ours."""

    def __init__(self, objects: ObjectStore, base: str, files: Path, own: Path, writes: Sequence[str] = ()) -> None:
        """Capture the files.

        Ignored files are left out, unless they are in the base or named individually in `writes`. The files of a
        nested repository are captured as plain files. Links are not followed.

        Args:
            objects: The object store that has the base.
            base: The base commit of the workspace.
            files: The folder of the workspace; its path must not contain a link.
            own: Where to create the repository.
            writes: Globs; a file that one of them names without a wildcard is captured even if it is ignored.

        Raises:
            RejectedError: If a file can't be captured.
            BriefError: If a glob is invalid.
        """
        self._base, self._own = base, own
        self._git = with_work_tree(create_with_alternates(objects, own, checkout=False), files)
        self._folder = os.fsencode(files)
        self._modules: dict[bytes, bool] = {}
        try:
            if not files.is_dir() or os.path.realpath(files) != str(files):
                raise _capture_error(f"its folder {str(files)!r} is gone, or has become a link")
            self._git.output("read-tree", base)
            self._stage(_plain_paths(writes))
        except GitError as error:
            lacks_base = Git(own).run("cat-file", "-e", base)[0] != 0
            gone = f"its base {base[:12]} is gone: the repository was moved, or pruned of what no branch has"
            raise _capture_error(gone if lacks_base else error.stderr or str(error)) from None

    @property
    def state(self) -> WorkspaceState:
        """Differences between the base and the captured files."""
        return WorkspaceState(
            frozenset(diff_index(self._git, self._base)),
            frozenset(path for path, is_filled in self._modules.items() if is_filled),
        )

    def capture_change(self, writes: Sequence[str], before: WorkspaceState) -> Change:
        """Return the work's change as a validated patch.

        Args:
            writes: The globs of the files that may be changed.
            before: The state when the work began; differences that are still the same are left out.

        Raises:
            RejectedError: If another file was changed, or a secret or too much was written.
            BriefError: If a glob is invalid.
        """
        # 1. Submodules can't be captured: their folders must have content only where they had before.
        if found := sorted(self.state.modules - before.modules):
            raise RejectedError(
                f"{summarize_paths(found)}: what is changed in a submodule can't be collected.", kind="submodule"
            )
        # 2. Reset in the index what the set-up command wrote, and the work left as it was.
        self._update_index(
            (each.path, each.before) for each in diff_index(self._git, self._base) if each in before.differences
        )
        # 3. The rest is the change.
        tree = self._git.output("write-tree")
        files = to_changed_files(diff_index(self._git, self._base))
        # 4. Check its scope, its size and its content.
        require_declared(files, writes)
        patch = self._patch(tree)
        require_no_secrets(self._git, files, patch)
        return Change(base=self._base, tree=tree, patch=encode_patch(patch), files=files)

    def _patch(self, tree: str) -> bytes:
        """Return the binary patch from the base to a tree.

        Raises:
            RejectedError: If it is larger than `LARGEST_PATCH`.
        """
        file = self._own / "patch"
        self._git.output("diff-tree", *_PATCH, f"--output={file}", self._base, tree)
        if (size := file.stat().st_size) > LARGEST_PATCH:
            raise _size_error(f"a patch of {size:,} bytes, and {LARGEST_PATCH:,} can be kept")
        return file.read_bytes()

    def _stage(self, plain: Iterable[bytes]) -> None:
        """Update the index, which has the base, to the files in the folder.

        Args:
            plain: Paths that are added even if they are ignored.
        """
        # 1. Tracked files that are gone leave the index; submodules stay as they are in the base.
        tracked = dict(self._iter_index())
        self._modules = {
            path: _is_filled(os.path.join(self._folder, path))  # noqa: PTH118 -- a `Path` has no bytes
            for path, entry in tracked.items()
            if entry.mode == SUBMODULE
        }
        sizes = self._find_files()
        gone = tracked.keys() - self._modules.keys() - sizes.keys()
        self._update_index((path, Entry("0", tracked[path].object)) for path in gone)
        # 2. New files are added, also those of nested repositories: those that aren't ignored, or explicitly named.
        new = sizes.keys() - tracked.keys()
        staged = sorted(sizes.keys() - (self._filter_ignored(new) - {*plain}))
        for path in staged:
            self._require_small(path, sizes[path], tracked)
        self._git.output("update-index", "--add", "--remove", "-z", "--stdin", stdin=_nul_lines(staged))
        # 3. git silently skips names that it forbids, such as `.git` in another case.
        if refused := {*staged} - {path for path, _ in self._iter_index()}:
            raise _capture_error(f"git takes no files that are called {summarize_paths(sorted(refused))}")

    def _find_files(self) -> dict[bytes, int]:
        """Return the sizes of all plain files and links in the folder, by path; submodules and `.git` are left out.

        Raises:
            RejectedError: If git can't read them all: there is a special file that blocks it, or a folder that can't
                be read and isn't ignored.
        """
        sizes, pipes, unreadable = dict[bytes, int](), list[bytes](), list[bytes]()
        pending = [b""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(self._folder, folder)) as found:  # noqa: PTH118 -- the same
                    entries = [entry for entry in found if entry.name != b".git"]
            except OSError:
                unreadable.append(folder)
                continue
            for entry in entries:
                path = os.path.join(folder, entry.name)  # noqa: PTH118 -- the same
                if entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    sizes[path] = entry.stat(follow_symlinks=False).st_size
                elif entry.is_dir(follow_symlinks=False):
                    pending += [path] if path not in self._modules else []
                elif entry.name in _READ_BY_GIT:
                    pipes.append(path)
        if pipes:
            raise _capture_error(f"{summarize_paths(pipes)} should be a file")
        if not_ignored := {*unreadable} - self._filter_ignored(unreadable):
            raise _capture_error(f"the folder {summarize_paths(sorted(not_ignored))} can't be read")
        return sizes

    def _iter_index(self) -> Iterator[tuple[bytes, Entry]]:
        """Yield the paths and entries of the index."""
        for line in self._git.output_bytes("ls-files", "-z", "--stage").split(b"\0"):
            head, _, path = line.partition(b"\t")
            if head:
                mode, name, _ = head.decode().split(" ")
                yield path, Entry(mode, name)

    def _filter_ignored(self, paths: Collection[bytes]) -> set[bytes]:
        """Return which of some paths git ignores."""
        if not paths:
            return set()
        query = _nul_lines(b"./" + path for path in paths)  # so that none of them looks like a pattern
        _, output = self._git.run(
            "check-ignore", "-z", "--stdin", stdin=query, env={"GIT_LITERAL_PATHSPECS": "0"}, most=1
        )
        return {path.removeprefix(b"./") for path in output.split(b"\0")}

    def _update_index(self, entries: Iterable[tuple[bytes, Entry]]) -> None:
        """Write entries to the index; an entry of mode 0 removes its path."""
        if lines := _nul_lines(f"{mode} {name}\t".encode() + path for path, (mode, name) in entries):
            self._git.output("update-index", "-z", "--index-info", stdin=lines)

    def _require_small(self, path: bytes, size: int, tracked: Mapping[bytes, Entry]) -> None:
        """Check that a file doesn't exceed `LARGEST_FILE`; one of the same size as in the base may."""
        if size <= LARGEST_FILE:
            return
        if path not in tracked or int(self._git.output("cat-file", "-s", tracked[path].object)) != size:
            raise _size_error(f"{summarize_paths([path])} has {size:,} bytes, and {LARGEST_FILE:,} can be collected")


def _is_filled(folder: bytes) -> bool:
    """Return whether the folder of a submodule has any content, or is none."""
    try:
        return os.path.islink(folder) or bool(os.listdir(folder))  # noqa: PTH114, PTH208 -- the same
    except OSError as error:
        return not isinstance(error, FileNotFoundError)


def _plain_paths(writes: Iterable[str]) -> Iterator[bytes]:
    """Yield those globs that are plain paths of one file or folder."""
    for glob in map(Glob.parse, writes):
        names = [name for name in glob.names if isinstance(name, str)]
        if names and not glob.start and len(names) == len(glob.names) - 1:  # the last stands for all below it
            yield os.fsencode("/".join(names))


def _nul_lines(parts: Iterable[bytes]) -> bytes:
    """Join parts for git's `-z` options: each is ended by a NUL."""
    return b"".join(part + b"\0" for part in parts)


def _capture_error(why: str) -> RejectedError:
    return RejectedError(f"What stands in the workspace can't be collected: {why}.", kind="workspace")


def _size_error(why: str) -> RejectedError:
    return RejectedError(
        f"The change is too large: {why}. Have .gitignore name what is built or downloaded.", kind="size"
    )


_APPLY = ("apply", "--cached", "--unidiff-zero", "--binary", "--whitespace=nowarn", "--no-ignore-whitespace")


def create_commit(git: Git, change: Change, message: str) -> str:
    """Create a commit for a change: a child of its base, with its tree, and the date of the base.

    The object id depends on nothing but the change and the message. Only objects are written to the repository; no
    branch, tag, index or file of a checkout is touched.

    Args:
        git: A repository that has the base.
        change: The change.
        message: The commit message.

    Returns:
        The object id of the commit.

    Raises:
        RejectedError: If the repository lacks the base, or the patch doesn't result in the declared tree, or touches
            other files than the change lists.
    """
    with apply_to_index(git, change):
        date = git.output("show", "--no-patch", "--format=%ct", change.base)
    who = {
        f"GIT_{role}_{name}": value
        for role in ("AUTHOR", "COMMITTER")
        for name, value in (("NAME", NAME), ("EMAIL", MAIL), ("DATE", f"@{date} +0000"))
    }
    return git.output("commit-tree", change.tree, "-p", change.base, stdin=f"{message}\n".encode(), env=who)


@contextmanager
def apply_to_index(git: Git, change: Change) -> Generator[dict[str, str], None, None]:
    """Apply a change to a temporary index, and validate the result; yield the variable that selects that index.

    Raises:
        RejectedError: If the change's base is missing, or its patch doesn't result in its tree and its files.
    """
    _require_base(git, change)
    with tempfile.TemporaryDirectory(prefix="prefect-dispatch-") as folder:
        # 1. Apply the patch to the base in an index of its own.
        index = {"GIT_INDEX_FILE": os.fspath(Path(folder, "index"))}
        git.output("read-tree", change.base, env=index)
        try:
            if change.patch:
                git.output(*_APPLY, stdin=change.bytes, env=index)
            tree = git.output("write-tree", env=index)
        except GitError as error:
            raise _change_error(change, f"its patch can't be applied ({error.stderr})") from None
        # 2. The result has to be the declared tree, with the declared files.
        if tree != change.tree:
            raise _change_error(change, f"its patch makes the tree {tree[:12]}, not {change.tree[:12]}")
        if to_changed_files(diff_trees(git, change.base, tree)) != change.files:
            raise _change_error(change, "its patch touches other files than it says")
        yield index


def _require_base(git: Git, change: Change) -> None:
    try:
        kind = git.output("cat-file", "-t", change.base)
    except GitError:
        kind = ""
    if kind != "commit":
        raise _change_error(change, "its base isn't a commit that this repository has; fetch it first")


def _change_error(change: Change, why: str) -> RejectedError:
    return RejectedError(f"The change of {change.base[:12]} is not used: {why}.", kind="change")


def write_change(change: Change, git: Git, files: Path) -> None:
    """Validate a change, and apply it to the checked-out files of its base, without following links.

    Args:
        change: The change.
        git: A repository of ours that has the base.
        files: The folder with the files.

    Raises:
        RejectedError: If the change is invalid; see `apply_to_index`.
    """
    with apply_to_index(git, change) as index:
        # 1. Remove the deleted files first, as a new file may have the path of a folder that becomes empty.
        differences = diff_trees(git, change.base, change.tree)
        for each in differences:
            if each.kind == "D":
                _remove_file(files, each.path)
        # 2. Write the added and modified files.
        written_paths = _nul_lines(each.path for each in differences if each.kind != "D")
        with_work_tree(git, files, index).output("checkout-index", "--force", "-z", "--stdin", stdin=written_paths)


def _remove_file(files: Path, path: bytes) -> None:
    """Remove a file unless it is behind a link, and the parent folders that become empty."""
    file = files / os.fsdecode(path)
    if os.path.realpath(file.parent) == str(file.parent):
        with suppress(OSError):  # there is no such file, or its folder isn't empty
            file.unlink()
            for folder in takewhile(lambda parent: parent != files, file.parents):
                folder.rmdir()
