"""A merged branch that is pushed, and has a pull request: against a bare repository and a stub of the hosting API."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_branches.pull_request import MAX_BODY_CHARS, Publish, to_body
from prefect_dispatch.models.ledger import Document
from tests.integrators.repos import Nobody, change_of, done, merging, repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.integrators.base import Delivery

STUB = r"""
import json, os, sys, urllib.request
args = sys.argv[1:]
assert args[:2] == ["api", "--hostname"] and args[2].endswith(("github.localhost", "gitlab.example.test")), args
at = args.index("--method")
method, path = args[at + 1], args[at + 2]
data = sys.stdin.buffer.read() if "--input" in args else None
request = urllib.request.Request(os.environ["STUB"] + "/" + path, data, method=method)
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        print(answer.read().decode())
except Exception as error:
    sys.exit(f"HTTP error for https://me:{os.environ['GH_TOKEN']}@host: {error}")
"""
"""A program with the interface of `gh api` and `glab api`, as far as it is used."""
ODD = {
    "#!/bin/sh\necho '[]'\n": "the answer of the hosting service is not understood.",
    "#!/bin/sh\nexit 2\n": "`gh api` failed (2): it said nothing",
    "#!/nowhere/4711\n": "`gh api` failed (-1): it can't be run (No such file or directory).",
}
"""Programs that have no pull request to tell of, and what is said of it."""
TOKEN = "ghp_" + "a1B2" * 9


class Hosting:
    """Stub of the REST API of GitHub and GitLab.

    Attributes:
        requests: Each request: method, path, and JSON body.
        pulls: The pull requests.
    """

    def __init__(self) -> None:
        """Start the server."""
        self.requests: list[tuple[str, str, Any]] = []
        self.tokens: set[str] = set()
        self.pulls: list[dict[str, Any]] = []
        self.broken = False
        hosting = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name
                """Be silent."""

            def _read(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def _answer(self) -> None:
                body = json.loads(self._read() or b"null")
                hosting.tokens.add(self.headers.get("Authorization") or "")
                found = hosting.answer(self.command, urlsplit(self.path).path, urlsplit(self.path).query, body)
                sent = json.dumps(found).encode()
                self.send_response(500 if hosting.broken else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815 -- the names that the server looks for

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, query: str, body: Any) -> Any:  # noqa: ANN401 -- JSON
        """Return the answer to a request."""
        self.requests.append((method, path, body))
        if method == "GET" and path.endswith(("/pulls", "/merge_requests")):
            wanted = {name: value[0] for name, value in parse_qs(query).items()}
            head = wanted.get("source_branch") or wanted["head"].partition(":")[2]
            return [each for each in self.pulls if head in (each.get("head"), each.get("source_branch"))]
        if method == "GET":
            return {"owner": {"login": "me"}, "default_branch": "main"}
        if method == "POST":
            number = len(self.pulls) + 1
            address = f"https://host/me/calc/pull/{number}"
            self.pulls.append({**body, "number": number, "iid": number, "html_url": address, "web_url": address})
            return self.pulls[-1]
        [pull] = [each for each in self.pulls if each["number"] == int(path.rpartition("/")[2])]
        pull.update(body)
        return pull


@pytest.fixture
def hosting() -> Iterator[Hosting]:
    """The hosting service."""
    stub = Hosting()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


class Place:
    """A repository with a bare one as its remote, and the programs of hosting services."""

    def __init__(self, folder: Path, hosting: Hosting, patch: pytest.MonkeyPatch) -> None:
        """Make them."""
        self.folder, self.patch = folder, patch
        (folder / "repo").mkdir()
        self.git, self.base = repository(folder / "repo", {"a.py": "1\n"})
        self.git.output("init", "--bare", "--quiet", str(folder / "bare"))
        self.point_to(f"https://me:{TOKEN}@github.localhost/me/calc.git")
        (folder / "bin").mkdir()
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HOME", str(folder))
        for name, value in {"STUB": hosting.url, "GH_TOKEN": TOKEN}.items():
            patch.setenv(name, value)

    def point_to(self, address: str) -> None:
        """Have the remote `origin` bear an address, whose pushes go to the bare repository."""
        self.git.run("remote", "remove", "origin")
        self.git.output("remote", "add", "origin", address)
        self.git.output("config", "remote.origin.pushurl", str(self.folder / "bare"))

    def install(self, name: str) -> None:
        """Put a stub of a program on the path."""
        program = self.folder / "bin" / name
        program.write_text(f"#!{sys.executable}\n{STUB}", encoding="utf-8")
        program.chmod(0o755)

    def hide_programs(self) -> None:
        """Leave no program on the path but git, and what is installed here."""
        (self.folder / "bin" / "git").symlink_to(shutil.which("git") or "")
        self.patch.setenv("PATH", str(self.folder / "bin"))

    def script(self, name: str, line: str) -> None:
        """Put a script in place of a program."""
        (self.folder / "bin" / name).write_text(line, encoding="utf-8")

    def publish(self, text: str = "2\n", review: str = "# Review", **more: Any) -> Delivery:  # noqa: ANN401 -- fields
        """Merge a change, and deliver and publish it."""
        branch = more.pop("branch", "agents/merged")
        then = more.pop("then", lambda: None)
        integrator = merging(self.git, branch=branch, force=more.pop("force", False), publish=more)
        then()
        outcome = done("lexer", change_of(self.git, self.base, {"a.py": text}))
        merge = integrator.merge_asking([], [outcome], Nobody())
        assert not integrator.deliver(merge.value, self.folder).shortfall
        return integrator.publish_merge(merge.value, [Document(name="review.md", title="Review", text=review)])

    def pushed(self, branch: str = "agents/merged") -> str:
        """Return the file on a branch of the remote."""
        return self.git.output("--git-dir", str(self.folder / "bare"), "show", f"{branch}:a.py")


@pytest.fixture
def place(tmp_path: Path, hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A repository with a remote."""
    return Place(tmp_path, hosting, monkeypatch)


def test_without_a_word_nothing_leaves(place: Place, hosting: Hosting) -> None:
    """Not even a program is looked for; a push alone asks no hosting service."""
    assert place.publish() == ("", "")
    assert place.git.run("--git-dir", str(place.folder / "bare"), "rev-parse", "--verify", "-q", "agents/merged")[0]
    assert place.publish(push=True) == ("It was pushed to 'origin'.", "")
    assert place.pushed() == "2"
    assert hosting.requests == []


@pytest.mark.parametrize("program", ["gh", "glab"])
@pytest.mark.slow
def test_one_pull_request_for_a_job(place: Place, hosting: Hosting, program: str) -> None:
    """It is a draft with the review as its text; run again, or with another merge, the same one is updated."""
    if program == "glab":
        place.point_to(f"https://me:{TOKEN}@gitlab.example.test/me/calc.git")
    place.install(program)
    how: dict[str, Any] = {"push": True, "pull_request": "draft"}
    what = "pull" if program == "gh" else "merge"
    first = place.publish(review="# Review\n@all fixes #1", **how)
    assert first.shortfall == ""
    assert first.done.endswith(f"The {what} request 1 (https://host/me/calc/pull/1) was opened.")
    [pull] = hosting.pulls
    body = "body" if program == "gh" else "description"
    assert pull[body] == "# Review\n@\u200ball fixes #\u200b1"
    assert pull["title"] == ("Merge lexer" if program == "gh" else "Draft: Merge lexer")
    assert (pull.get("base") or pull["target_branch"], pull.get("draft", True)) == ("main", True)
    again = place.publish(review="# Later", **how)
    assert again.done.endswith("was updated.")
    other = place.publish("3\n", force=True, review="# Other", **how)
    assert (other.shortfall, place.pushed()) == ("", "3")
    [pull] = hosting.pulls
    assert pull[body] == "# Other"


def test_open_for_another_branch(place: Place, hosting: Hosting) -> None:
    """The pull request is for the branch that the job names, and needs no draft."""
    place.install("gh")
    place.publish(push=True, pull_request="open", into="develop")
    [pull] = hosting.pulls
    assert (pull["base"], pull["draft"]) == ("develop", False)


@pytest.mark.slow
def test_what_the_remote_does_not_take(place: Place, hosting: Hosting) -> None:
    """The remote's branch keeps what others pushed to it; what went wrong is said, and no token."""
    place.hide_programs()
    place.install("gh")
    place.publish("9\n", push=True)
    place.git.output("update-ref", "-d", "refs/heads/agents/merged")
    refused = place.publish("2\n", push=True, pull_request="draft")
    assert refused.shortfall.startswith(
        "The branch 'agents/merged' was not pushed to 'origin': `git push` failed (1): "
    )
    assert place.pushed() == "9"
    assert all(method == "GET" for method, _, _ in hosting.requests)
    how: dict[str, Any] = {"push": True, "pull_request": "draft"}
    failed = place.publish("5\n", branch="agents/other", then=lambda: setattr(hosting, "broken", True), **how)
    assert failed.done == "It was pushed to 'origin'."
    assert failed.shortfall.startswith("There is no pull request for 'agents/other': `gh api` failed (1): HTTP error")
    assert TOKEN not in failed.shortfall
    for at, (line, told) in enumerate(ODD.items()):
        hosting.broken = False
        place.install("gh")
        odd = place.publish(
            f"odd {at}\n", branch=f"agents/odd-{at}", then=lambda line=line: place.script("gh", line), **how
        )
        assert odd.shortfall.endswith(told)


def test_a_program_that_waits_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that waits for something ends like any that fails; what is merged is on the branch."""
    monkeypatch.setattr("prefect_dispatch.integrators.merge_branches.pull_request.LIMIT_S", 1.0)
    hook = place.git.repo / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec sleep 30 >&- 2>&-\n", encoding="utf-8")
    hook.chmod(0o755)
    late = place.publish(push=True)
    assert late.shortfall.endswith("`git push` failed (-1): it took more than 1 s.")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"remote": "upstream"}, r"has no remote 'upstream'; known are 'origin'\.$", id="remote"),
        pytest.param({"pull_request": "draft"}, "it needs the program 'gh', which isn't installed here", id="program"),
        pytest.param(
            {"pull_request": "draft", "down": "yes"}, "can't be read: `gh api` failed .* see `gh auth", id="login"
        ),
    ],
)
def test_what_is_missing_is_refused_beforehand(place: Place, hosting: Hosting, more: dict[str, str], told: str) -> None:
    """Before anything is spent, and without the token that the remote's address may hold."""
    place.hide_programs()
    if more.pop("down", ""):
        place.install("gh")
        hosting.broken = True
    with pytest.raises(JobError, match=told) as refused:
        merging(place.git, branch="b", publish={"push": True, **more})
    assert TOKEN not in str(refused.value)
    place.git.run("remote", "remove", "origin")
    with pytest.raises(JobError, match=r"has no remote 'origin'; there is none; `git remote add` makes one\."):
        merging(place.git, branch="b", publish={"push": True})
    assert all(method == "GET" for method, _, _ in hosting.requests)


def test_what_does_not_go_together() -> None:
    """A pull request takes a push, and a push a branch."""
    with pytest.raises(ValueError, match="'pull_request' needs 'push: true'"):
        Publish(pull_request="draft")
    with pytest.raises(ValueError, match="remote"):
        Publish(push=True, remote="--upload-pack=x")
    with pytest.raises(ValueError, match="'publish' is for a branch that is pushed"):
        MergeBranches.model_validate({"publish": {"push": True}})


@pytest.mark.parametrize(
    "address",
    [
        "https://gitlab.example.test/group/sub/calc.git",
        "git@gitlab.example.test:group/sub/calc.git",
        "ssh://git@gitlab.example.test:2222/group/sub/calc",
    ],
)
@pytest.mark.slow
def test_addresses_of_remotes(place: Place, hosting: Hosting, address: str) -> None:
    """An address has several forms; a folder is none of a hosting service."""
    place.install("glab")
    place.point_to(address)
    place.publish(push=True, pull_request="open")
    assert hosting.requests[0][1] == "/projects/group%2Fsub%2Fcalc"
    place.point_to("../bare")
    with pytest.raises(JobError, match="the address of the remote 'origin' names no repository of a hosting service"):
        place.publish(push=True, pull_request="open")


def test_a_long_review_is_cut() -> None:
    """The text of a pull request has a limit, and says where the rest is."""
    body = to_body("A line.\n" * 20_000)
    assert len(body) < MAX_BODY_CHARS + 100
    assert body.endswith("A line.\n\nThe rest is in `review.md` of the run's report.")


@pytest.mark.agents
def test_the_real_gh(place: Place, hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of GitHub itself sends what the stub understands, with the token of the environment."""
    if not shutil.which("gh"):
        pytest.skip("gh isn't installed: apt-get install gh")
    monkeypatch.setenv("HTTP_PROXY", hosting.url)
    how: dict[str, Any] = {"push": True, "pull_request": "draft"}
    first, second = place.publish(review="# One", **how), place.publish(review="# Two", **how)
    assert (first.shortfall, second.shortfall) == ("", "")
    [pull] = hosting.pulls
    assert (pull["body"], pull["draft"], pull["base"]) == ("# Two", True, "main")
    assert hosting.tokens == {f"token {TOKEN}"}
