"""Publication of a merged branch on a remote: `git push`, and a pull request by the hosting service's own program.

Both are done with the user's own settings and credentials, which are neither read nor kept. Of what the programs print,
only the address and the number of the pull request are used, and of their errors the end, redacted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import StringConstraints, model_validator

from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.models.base import Strict
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

_Ref = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^(?:[^-\x00-\x20\x7f][^\x00-\x20\x7f]*)?$")
]
LIMIT_S = 120.0
"""Seconds after which a push, or a request to the hosting service, is ended."""
MAX_BODY_CHARS = 60_000
"""Maximum length of a pull request's text, in characters; GitHub takes 65,536."""
MAX_TITLE_CHARS = 200
"""Maximum length of a title, in characters."""
_QUOTED = 500
"""Characters of the end of a program's error output that a message quotes."""
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_ADDRESS = re.compile(
    r"(?:(?:https?|ssh|git)://)?(?:[^@/\s]*@)?(?P<host>[A-Za-z0-9.-]+)(?::\d+/|[:/])/?(?P<project>[^\s:?#]+/[^\s:?#]+?)"
    r"(?:\.git)?/?"
)
"""Address of a repository at a hosting service, as git takes it."""


class Publish(Strict):
    """What becomes of the merged branch outside of the repository. Without it, nothing leaves the machine.

    Example:
        >>> Publish(push=True, pull_request="draft").remote
        'origin'
    """

    push: bool = False
    """Whether the branch is pushed to the remote, with the user's own settings and credentials."""
    pull_request: Literal["none", "draft", "open"] = "none"
    """Whether a pull request (a merge request on GitLab) is opened, or the open one of the branch is updated."""
    remote: _Ref = "origin"
    """The remote of the repository."""
    into: _Ref = ""
    """The branch that the pull request is for. Empty: the default branch of the remote's repository."""

    @model_validator(mode="after")
    def _is_pushed(self) -> Self:
        if self.pull_request != "none" and not self.push:
            raise ValueError("'pull_request' needs 'push: true', as only a branch that was pushed can have one")
        return self


def require_publishing(repo: Path, publish: Publish) -> None:
    """Check that the remote and the hosting service's program exist, and that it can read the repository.

    Raises:
        JobError: If not.
    """
    address = _remote_address(repo, publish.remote)
    if publish.pull_request == "none":
        return
    service = _service_of(repo, publish.remote, address)
    if shutil.which(service.program) is None:
        raise JobError(
            f"publish.pull_request: it needs the program {service.program!r}, which isn't installed here: see "
            f"{service.install}, or set it to 'none', and open the pull request yourself."
        )
    try:
        service.read_project()
    except DispatchError as error:
        raise JobError(
            f"publish.pull_request: the repository can't be read: {error}; see `{service.program} auth login`."
        ) from None


def publish_branch(
    repo: Path, publish: Publish, branch: str, commit: str, *, force: bool, review: tuple[str, str]
) -> Delivery:
    """Push a branch, and open or update its pull request; doing it once more changes nothing.

    Args:
        repo: The repository.
        publish: What to do.
        branch: The branch, on the remote as here.
        commit: The commit to push.
        force: Whether the branch on the remote may lose commits.
        review: Title and text of the pull request.
    """
    if not publish.push:
        return Delivery()
    # 1. Push the commit; without `force`, git refuses where the remote's branch has commits that it lacks.
    ref = f"refs/heads/{branch}"
    try:
        option = ("--force",) if force else ()
        _output(repo, "git", "push", "--quiet", "--no-follow-tags", *option, publish.remote, f"{commit}:{ref}")
    except DispatchError as error:
        return Delivery(shortfall=f"The branch {branch!r} was not pushed to {publish.remote!r}: {error}")
    pushed = f"It was pushed to {publish.remote!r}."
    if publish.pull_request == "none":
        return Delivery(done=pushed)
    # 2. Open the pull request, or update the one that is open.
    try:
        service = _service_of(repo, publish.remote, _remote_address(repo, publish.remote))
        done = service.request(branch, publish, shorten(review[0], MAX_TITLE_CHARS), to_body(review[1]))
    except (DispatchError, ValueError, KeyError, TypeError, IndexError) as error:
        why = str(error) if isinstance(error, DispatchError) else "the answer of the hosting service is not understood."
        return Delivery(done=pushed, shortfall=f"There is no pull request for {branch!r}: {why}")
    return Delivery(done=f"{pushed} {done}")


def to_body(text: str) -> str:
    """Return a document as the text of a pull request: what an agent wrote there notifies no one and closes no issue.

    Example:
        >>> to_body("Fixes #1, says @me").encode("ascii", "xmlcharrefreplace")
        b'Fixes #&#8203;1, says @&#8203;me'
    """
    # A space of no width behind the sign: it reads the same, and is no reference.
    inert = re.sub(r"([@#!]|GH-|/issues/|/pull/)(?=\w)", "\\1\u200b", redact(text))
    if len(inert) <= MAX_BODY_CHARS:
        return inert
    return f"{inert[:MAX_BODY_CHARS].rpartition(chr(10))[0]}\n\nThe rest is in `review.md` of the run's report."


class _Service:
    """Hosting service, by the command `api` of its program, which has the user's token."""

    program: ClassVar[str]
    install: ClassVar[str]

    def __init__(self, repo: Path, host: str, project: str) -> None:
        """Create a client for one project.

        Args:
            repo: The folder that the program runs in.
            host: The host of the service.
            project: The path of the project there, such as `owner/name`.
        """
        self._repo, self._host, self._project = repo, host, project

    def read_project(self) -> Any:  # noqa: ANN401 -- JSON of the service
        """Return the repository, as the service describes it."""
        return self._call("")

    def _path(self, path: str) -> str:
        raise NotImplementedError  # pragma: no cover -- each service has its own

    def _call(self, path: str, method: str = "GET", sent: object = None) -> Any:  # noqa: ANN401 -- JSON of the service
        """Return the answer of the service to a request below the project."""
        body = ("--header", "Content-Type: application/json", "--input", "-") if sent is not None else ()
        command = (self.program, "api", "--hostname", self._host, "--method", method, self._path(path), *body)
        return json.loads(_output(self._repo, *command, stdin="" if sent is None else json.dumps(sent)))


class _GitHub(_Service):
    """GitHub, by `gh`."""

    program = "gh"
    install = "https://cli.github.com"

    def _path(self, path: str) -> str:
        return f"repos/{self._project}{path}"

    def request(self, branch: str, publish: Publish, title: str, body: str) -> str:
        """Open or update the pull request of a branch; return what was done."""
        head = quote(f"{self._project.partition('/')[0]}:{branch}", safe=":")
        [*found] = self._call(f"/pulls?state=open&head={head}")
        text = {"title": title, "body": body}
        if found:
            number = int(found[0]["number"])
            self._call(f"/pulls/{number}", "PATCH", text)
            return f"The pull request {_describe(number, found[0]['html_url'])} was updated."
        base = publish.into or self.read_project()["default_branch"]
        more = {"head": branch, "base": base, "draft": publish.pull_request == "draft"}
        made = self._call("/pulls", "POST", {**text, **more})
        return f"The pull request {_describe(int(made['number']), made['html_url'])} was opened."


class _GitLab(_Service):
    """GitLab, by `glab`; a draft is a merge request whose title begins with `Draft:`."""

    program = "glab"
    install = "https://gitlab.com/gitlab-org/cli"

    def _path(self, path: str) -> str:
        return f"projects/{quote(self._project, safe='')}{path}"

    def request(self, branch: str, publish: Publish, title: str, body: str) -> str:
        """Open or update the merge request of a branch; return what was done."""
        [*found] = self._call(f"/merge_requests?state=opened&source_branch={quote(branch, safe='')}")
        if found:
            number = int(found[0]["iid"])
            self._call(f"/merge_requests/{number}", "PUT", {"description": body})
            return f"The merge request {_describe(number, found[0]['web_url'])} was updated."
        base = publish.into or self.read_project()["default_branch"]
        title = f"Draft: {title}" if publish.pull_request == "draft" else title
        more = {"source_branch": branch, "target_branch": base}
        made = self._call("/merge_requests", "POST", {"title": title, "description": body, **more})
        return f"The merge request {_describe(int(made['iid']), made['web_url'])} was opened."


def _service_of(repo: Path, remote: str, address: str) -> _GitHub | _GitLab:
    """Return the hosting service at an address: GitLab where its host is called so, else GitHub.

    Raises:
        JobError: If it is no address of a hosting service; the address may hold a password, so it isn't named.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise JobError(
            f"publish.pull_request: the address of the remote {remote!r} names no repository of a hosting service; set "
            "it to 'none', or name another remote."
        )
    service = _GitLab if "gitlab" in found["host"].lower() else _GitHub
    return service(repo, found["host"], found["project"])


def _describe(number: int, address: object) -> str:
    return f"{number} ({strip_control_chars(str(address))[:_QUOTED]})"


def _remote_address(repo: Path, remote: str) -> str:
    """Return the address of a remote; it may hold a password, so it is in no message.

    Raises:
        JobError: If there is no such remote.
    """
    done = _run(repo, "git", "remote", "get-url", "--", remote)
    if done.returncode:
        names = _run(repo, "git", "remote").stdout.split()
        known = f"known are {', '.join(map(repr, names))}" if names else "there is none; `git remote add` makes one"
        raise JobError(f"publish.remote: the repository {str(repo)!r} has no remote {remote!r}; {known}.")
    return done.stdout.strip()


def _output(repo: Path, *command: str, stdin: str = "") -> str:
    """Run a program, and return its output.

    Raises:
        DispatchError: If it fails; the message has the end of its error output, redacted.
    """
    done = _run(repo, *command, stdin=stdin)
    if done.returncode:
        told = strip_control_chars(" ".join((done.stderr.strip() or done.stdout.strip()).split()))
        told = redact(_USER_IN_URL.sub("", told))[-_QUOTED:]
        raise DispatchError(f"`{' '.join(command[:2])}` failed ({done.returncode}): {told or 'it said nothing'}")
    return done.stdout


def _run(repo: Path, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in the repository with the user's environment, without waiting for a person."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GH_PROMPT_DISABLED": "1", "NO_PROMPT": "1", "NO_COLOR": "1", "LC_ALL": "C"}
    ssh = {"GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")}
    try:
        return subprocess.run(  # noqa: S603 -- no shell; the program is one of three
            command,
            cwd=repo,
            env={**kept, **quiet, **ssh},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, "", f"it took more than {LIMIT_S:g} s.")
    except OSError as error:
        return subprocess.CompletedProcess(command, -1, "", f"it can't be run ({error.strerror}).")
