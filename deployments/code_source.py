"""Code source of a deployment: where its runs find a job's folder, with its data and the user's own code.

By default that is the folder of the job file, by its absolute path. Workers that do not share it clone the job's git
repository before each run (a pull step of Prefect's), or have a copy of it at another path or in an image. In each of
these cases one folder of this machine, the root, corresponds to one folder of the run.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
from prefect.runner.storage import GitRepository
from typing_extensions import override

from prefect_dispatch.errors import JobError
from prefect_dispatch.security.redaction import MARK, redact
from prefect_dispatch.workspaces.git import Git, GitError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
_SSH = re.compile(r"[^/:]+:")
"""Beginning of an SSH address without a scheme, such as `git@example.org:team/jobs.git`."""
MAX_NAMED = 3
"""Maximum number of files that a note names."""


@dataclass(frozen=True)
class CodeOptions:
    """Options of the command line for the code source."""

    git: bool = False
    """Whether workers clone the job's git repository."""
    url: str | None = None
    """The repository's address for workers; by default that of the branch's remote."""
    branch: str | None = None
    """The branch that they clone; by default the current one."""
    commit: str | None = None
    """The commit that they check out, in place of a branch."""
    credentials: str | None = None
    """A block with the credentials for it, as `type/name`."""
    image: str | None = None
    """The image that runs are started from."""
    folder: str | None = None
    """The folder of a run that corresponds to the current folder."""
    job_variables: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the work pool's jobs."""

    def __post_init__(self) -> None:
        """Check the combination of options.

        Raises:
            JobError: If two of them contradict each other, or a value is invalid.
        """
        git_options = {"--git-url": self.url, "--git-branch": self.branch, "--git-commit": self.commit}
        lone = next((name for name, value in git_options.items() if value is not None), None)
        if not self.git and lone is not None:
            raise JobError(f"{lone} says how workers clone the job's repository: add --git.")
        if not self.git and self.credentials is not None:
            raise JobError("--git-credentials are for the clone of the job's repository: add --git.")
        if self.branch is not None and self.commit is not None:
            raise JobError("--git-branch and --git-commit: say one of them.")
        if self.git and self.folder is not None:
            raise JobError("--folder: with --git the folder is that in the clone; leave --folder out.")
        if self.credentials is not None and not _BLOCK.fullmatch(self.credentials):
            raise JobError(  # without quoting the value, which may be a token
                "--git-credentials: name a saved block by its type and name, such as secret/github or "
                "github-credentials/mine; never the token itself."
            )
        for name, value in self.job_variables.items():
            if redact(text := json.dumps(value)) != text:
                raise JobError(
                    f"--job-variable {name}: its value holds a secret, which everybody could read in the deployment: "
                    f'save it as a block, and write {name}="{{{{ prefect.blocks.secret.NAME }}}}".'
                )


class Repository(GitRepository):
    """Git repository that a worker clones before a run, with credentials from a block."""

    def __init__(
        self, url: str, *, branch: str | None, commit: str | None, submodules: bool, block: str | None
    ) -> None:
        """Describe the repository.

        Args:
            url: Its address.
            branch: A branch.
            commit: A commit, in place of a branch.
            submodules: Whether it has submodules.
            block: A block with credentials, as `type/name`.
        """
        super().__init__(url, branch=branch, commit_sha=commit, include_submodules=submodules)
        self.url, self.commit, self.block = url, commit, block

    @override
    def to_pull_step(self) -> dict[str, Any]:
        """Return the pull step, in which credentials are a reference that the worker resolves."""
        step = super().to_pull_step()
        if self.block is not None:
            kind, _, name = self.block.partition("/")
            key = "access_token" if kind == "secret" else "credentials"
            step["prefect.deployments.steps.git_clone"][key] = f"{{{{ prefect.blocks.{kind}.{name} }}}}"
        return step


_OUTPUT_GROUPS = ("report", "results")
"""The groups of forms that name files which a run writes."""


@dataclass(frozen=True)
class CodeSource:
    """Resolved code source: where runs find a job's folder."""

    root: Path | None = None
    """The local folder that corresponds to `run_root`; None: runs have the same paths as this machine."""
    run_root: str = "."
    """The folder of a run that corresponds to the root, absolute or relative to the run's working directory."""
    name: str = ""
    """A prefix of paths below the root that makes the origin of a job file unique."""
    repository: Repository | None = None
    """The repository that workers clone."""
    job_variables: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the work pool's jobs."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""

    def folder(self, place: Path) -> str:
        """Return the parameter `folder` for a folder of this machine.

        Raises:
            JobError: If runs do not have it.
        """
        if self.root is None:
            return str(place)
        found = Path(os.path.normpath(place))
        if not found.is_relative_to(self.root):
            what = "the repository that workers clone" if self.repository else "the current folder"
            fix = "" if self.repository else ": deploy from a folder above it"
            raise JobError(f"The job's folder {str(found)!r} is outside {what}, {str(self.root)!r}{fix}.")
        return os.path.normpath(Path(self.run_root, found.relative_to(self.root)))

    def origin(self, file: Path) -> str:
        """Return the unique origin of a job file: its path, with the repository or image."""
        if self.root is None or not file.is_relative_to(self.root):
            return str(file)
        return f"{self.name}{file.relative_to(self.root)}"

    def origins(self, file: Path) -> tuple[str, ...]:
        """Return all origins of a job file, for any code source; that of this source first."""
        found = [self.origin(file), str(file)]
        with suppress(JobError):  # there is no git
            checkout = Checkout.find(file.parent)
            if checkout is not None and checkout.url:
                found.append(f"{checkout.url}: {file.relative_to(checkout.root)}")
        return tuple(dict.fromkeys(found))

    def lost_write_notes(self, parameters: dict[str, Any]) -> Iterator[str]:
        """Yield a note on each output of a run that would be lost with its temporary clone."""
        if self.repository is None:
            return
        integrator = parameters.get("integrator")
        aliases = cast("dict[str, Any]", integrator).get("aliases") if isinstance(integrator, dict) else None
        # For `test_matrix`, `report` is no group.
        groups = [
            cast("dict[str, Any]", each) for each in map(parameters.get, _OUTPUT_GROUPS) if isinstance(each, dict)
        ]
        given = {name: value for group in (*groups, parameters) for name, value in group.items()}
        outputs = {"out": given.get("out"), "decisions": given.get("decisions") or aliases}
        for name, path in outputs.items():
            if isinstance(path, str) and path and not Path(path).is_absolute():
                yield (
                    f"{name} {path!r} is a path in the clone, which is removed when a run ends: what a run writes "
                    "there is lost. Name an absolute path that the workers have."
                )


LOCAL = CodeSource()


def code_source(options: CodeOptions, here: Path) -> CodeSource:
    """Resolve the code source for the options of the command line.

    Args:
        options: The options.
        here: With `git`, a folder of the repository; else the folder that runs have a copy of.

    Raises:
        JobError: If there is no such repository, remote, branch or commit.
    """
    variables = {**options.job_variables, **({} if options.image is None else {"image": options.image})}
    if options.git:
        checkout = Checkout.find(here)
        if checkout is None:
            raise JobError(f"--git: {str(here)!r} is in no git repository.")
        repository = checkout.repository(options)
        return CodeSource(
            root=checkout.root,
            name=f"{repository.url}: ",
            repository=repository,
            job_variables=variables,
            notes=() if options.url else tuple(checkout.notes(here, repository.commit or "HEAD")),
        )
    if options.folder is None and options.image is None:
        return CodeSource(job_variables=variables)
    there = options.folder or "."
    name = f"{_without_tag(options.image)}: " if options.image else f"{there}/"
    return CodeSource(root=here.resolve(), run_root=there, name=name, job_variables=variables)


@dataclass(frozen=True)
class Checkout:
    """Local checkout of a git repository."""

    root: Path
    """Its top folder."""

    @classmethod
    def find(cls, folder: Path) -> Checkout | None:
        """Return the checkout that contains a folder, or None.

        Raises:
            JobError: If git isn't installed.
        """
        try:
            return cls(Path(Git(folder).output("rev-parse", "--show-toplevel")).resolve())
        except GitError:  # no repository, or a bare one
            return None

    def is_committed(self, file: Path) -> bool:
        """Return whether a file of the checkout is committed."""
        return bool(
            self._git_output("ls-tree", "--name-only", "--full-tree", "HEAD", "--", str(file.relative_to(self.root)))
        )

    @property
    def branch(self) -> str:
        """The current branch; empty with a detached HEAD."""
        return self._git_output("symbolic-ref", "--quiet", "--short", "HEAD")

    @property
    def remote(self) -> str:
        """The remote of the current branch, or else `origin`."""
        return self._git_config(f"branch.{self.branch}.remote") or "origin"

    @property
    def upstream(self) -> str:
        """The name of the current branch at the remote; empty with a detached HEAD."""
        return self._git_config(f"branch.{self.branch}.merge").removeprefix("refs/heads/") or self.branch

    @property
    def url(self) -> str:
        """The address of the remote; empty if there is none, or one with a password in it."""
        url = self._git_config(f"remote.{self.remote}.url")
        return "" if _has_password(url) else url

    def repository(self, options: CodeOptions) -> Repository:
        """Return the repository that workers clone.

        Raises:
            JobError: If there is no such remote, branch or commit, or the address has a password in it.
        """
        # 1. The address.
        url = (options.url or self._git_config(f"remote.{self.remote}.url")).strip()
        if not url:
            raise JobError(f"--git: the repository {str(self.root)!r} has no remote {self.remote!r}: name --git-url.")
        if _has_password(url):
            safe = re.sub(r"//[^@/]*@", f"//{MARK}@", url)
            raise JobError(
                f"--git: the address {safe!r} has credentials in it, which everybody could read in the deployment: "
                "save them as a block, and name --git-url without them and --git-credentials, such as secret/github."
            )
        if options.credentials is not None and not url.startswith("https://"):
            raise JobError(f"--git-credentials: they are for an address that begins with https://, not {url!r}.")
        if "://" not in url and not _SSH.match(url):  # a folder of this machine
            url = str(Path(self.root, url).resolve())
        # 2. A commit, if one is named; otherwise a branch, which has to be known at the remote.
        branch = commit = None
        if options.commit is not None:
            commit = self._git_output(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{options.commit}^{{commit}}"
            )
            if not commit:
                raise JobError(f"--git-commit {options.commit!r}: there is no such commit in {str(self.root)!r}.")
        else:
            branch = options.branch or self.upstream
            if not branch:
                raise JobError("--git: no branch is checked out here: name --git-branch, or --git-commit HEAD.")
            if branch.startswith("-"):
                raise JobError(f"--git-branch {branch!r}: the name of a branch does not begin with a hyphen.")
            tracking = f"refs/remotes/{self.remote}/{branch}"
            if options.url is None and not self._git_output("rev-parse", "--verify", "--quiet", tracking):
                raise JobError(
                    f"--git: the remote {self.remote!r} has no branch {branch!r} as far as is known here: git push it "
                    "(or git fetch) first."
                )
        submodules = (self.root / ".gitmodules").is_file()
        return Repository(url, branch=branch, commit=commit, submodules=submodules, block=options.credentials)

    def notes(self, folder: Path, commit: str) -> Iterator[str]:
        """Yield a note on what workers will lack of a folder: what was not committed, or not pushed."""
        status = self._git_output("status", "--porcelain", "-z", "--", str(folder)).split("\0")
        # No worker misses Python's cache, as each machine compiles for itself.
        changed = [line[3:] for line in status if line and not line.endswith("__pycache__/")]
        if changed:
            named = ", ".join(changed[:MAX_NAMED]) + (", …" if len(changed) > MAX_NAMED else "")
            yield f"Not committed, so workers do not have it: {named}"
        if self._git_output("rev-list", "--max-count=1", commit, "--not", f"--remotes={self.remote}"):
            yield f"{commit} has commits that are not pushed to {self.remote!r}, so workers do not have them."

    def _git_config(self, name: str) -> str:
        return self._git_output("config", "--get", name)

    def _git_output(self, *args: str) -> str:
        """Return the output of a git command; empty if it fails."""
        try:
            return Git(self.root).output(*args)
        except GitError:
            return ""


def _has_password(url: str) -> bool:
    """Return whether an address has credentials in it; an SSH user such as `git@` is none.

    Example:
        >>> _has_password("https://token@example.org/a.git"), _has_password("ssh://git@example.org/a.git")
        (True, False)
    """
    if "://" not in url:
        return False
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "@" in url.partition("://")[2].partition("/")[0]
    return bool(parsed.password or (parsed.username and parsed.scheme != "ssh"))


def _without_tag(image: str) -> str:
    """Return an image's name without its tag or digest.

    Example:
        >>> _without_tag("localhost:5000/jobs:v1"), _without_tag("localhost:5000/jobs")
        ('localhost:5000/jobs', 'localhost:5000/jobs')
    """
    return re.sub(r"(:[^/]*)?(@.*)?$", "", image)
