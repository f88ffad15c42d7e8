"""What was written is held against what was declared, and searched for secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import BriefError, RejectedError
from prefect_dispatch.models.outcome import ChangedFile
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import require_declared
from tests.workspaces.inside import changed_by, told

if TYPE_CHECKING:
    from tests.workspaces.repositories import Repository

SECRET = "sk-proj-" + "0123456789abcdef"  # made up: it only looks like one
OTHER = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"


def files(*paths: str) -> tuple[ChangedFile, ...]:
    """Return files that were changed."""
    return tuple(ChangedFile(path=path, change="modified", mode="100644") for path in paths)


@pytest.mark.parametrize(
    ("writes", "path"),
    [
        ("src/", "src/a.py"),
        ("src", "src/deep/er/a.py"),
        ("src/**", "src/a.py"),
        ("src/*.py", "src/a.py"),
        ("**/*.py", "src/deep/a.py"),
        ("./src/a.py", "src/a.py"),
        (".", "anything"),
        ("[ab].py", "b.py"),
        ("docs/é.md", "docs/é.md"),
    ],
)
def test_what_is_declared(writes: str, path: str) -> None:
    """A glob counts from the top of the repository; a folder's name means all that is in it."""
    require_declared(files(path), [writes])
    require_declared(files(path, "other"), ["other", writes])


@pytest.mark.parametrize(
    ("writes", "path"),
    [
        ("src/*.py", "src/deep/a.py"),
        ("src/", "source/a.py"),
        ("src", "src2"),
        ("SRC/", "src/a.py"),
        ("a.py", "src/a.py"),
        ("src/a.py", "src/a.py.orig"),
        ("../src", "src/a.py"),
        ("/src", "src/a.py"),
        ("src/a.py", ".github/workflows/x.yml"),
    ],
)
def test_what_is_not(writes: str, path: str) -> None:
    """Everything else is outside; the error names it, and what is declared."""
    with pytest.raises(
        RejectedError, match=re.escape(f"{path!r}; it declares 'x', {writes!r}. Declare these")
    ) as caught:
        require_declared(files("x", path), ["x", writes])
    assert caught.value.kind == "scope"


def test_a_long_list() -> None:
    """The first ten are named, and how many more there are."""
    with pytest.raises(RejectedError, match=r"'9' and 15 more; it declares no 'writes'\."):
        require_declared(files(*map(str, range(25))), [])
    with pytest.raises(BriefError):
        require_declared(files("x"), ["**/../x"])


def test_hostile_names_are_inert() -> None:
    """A message with a name stays one line, without what a terminal or a page would take for more."""
    with pytest.raises(RejectedError) as caught:
        require_declared(files("a\x1b[31m\n<b>`x`|"), [])
    assert not re.search(r"[\x00-\x1f]", str(caught.value))


@pytest.mark.parametrize(
    ("script", "where"),
    [
        pytest.param(
            f"echo 'key = \"{SECRET}\"' >> src/a.py",
            "'src/a.py' holds what looks like a secret: the line 'key = ",
            id="a-line",
        ),
        pytest.param(f"echo {SECRET} > 'new é file'", "'new é file' holds", id="a-new-file"),
        pytest.param(f"printf '\\0 {SECRET}' > bytes", "'bytes' holds what looks like a secret", id="a-binary-one"),
        pytest.param(f"printf '\\351 {OTHER}\\n' > latin", "'latin' holds", id="of-other-bytes"),
        pytest.param(f"ln -s /{SECRET} link", "'link' holds", id="where-a-link-leads"),
        pytest.param(f"mkdir {OTHER}; touch {OTHER}/x", "holds what looks like a secret: its name", id="a-name"),
        pytest.param(f"yes 'some words' | head -n 40000 > x; echo {SECRET} >> x", "'x' holds", id="long"),
        pytest.param(f"echo ok > a; echo {SECRET} > b; echo ok > c", "'b' holds", id="one-of-three"),
        pytest.param(f"echo > a; ln -sfn a src/a.py; echo {SECRET} > z", "'z' holds", id="after-another-type"),
    ],
)
def test_a_secret_is_found(script: str, where: str, repository: Repository) -> None:
    """The message names the file and not the secret; nothing of the change is kept."""
    with pytest.raises(RejectedError) as caught:
        changed_by(repository, script)
    assert caught.value.kind == "secret"
    assert where in str(caught.value)
    assert SECRET not in str(caught.value)
    assert OTHER not in str(caught.value)


def test_a_secret_over_two_lines(repository: Repository) -> None:
    """A key in several lines is found as a whole."""
    lines = ["-----BEGIN PRIVATE " + "KEY-----", *("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" for _ in range(4))]
    script = f"printf '%s\\n' {' '.join(map(repr, lines))} '-----END PRIVATE '\"KEY-----\" > key.pem"
    with pytest.raises(RejectedError, match=r"'key.pem' holds what looks like a secret") as caught:
        changed_by(repository, script)
    assert "MIIE" not in str(caught.value)


def test_a_secret_of_the_environment_over_short_lines(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of it tells, and all together do."""
    monkeypatch.setenv("SIGNING_KEY", "one\ntwo\nsix")
    with pytest.raises(RejectedError, match=r"'x' holds what looks like a secret: some lines of it\."):
        changed_by(repository, "printf 'zero\none\ntwo\nsix\n' > x")


def test_what_stood_there_before_may_stay(repository: Repository) -> None:
    """A secret that was in the repository may be removed, moved, or stand beside what was changed."""
    repository.put("old.py", f"one = 1\nkey = '{SECRET}'\ntwo = 2\n")
    repository.put("old.bin", b"\0 " + SECRET.encode())
    repository.commit("With a secret")
    assert told(changed_by(repository, "rm old.bin; echo 'three = 3' >> old.py; git mv old.py new.py")) == [
        ("new.py", "added", "100644"),
        ("old.bin", "deleted", ""),
        ("old.py", "deleted", ""),
    ]
    assert told(changed_by(repository, "sed -i 's/one = 1/one = 2/' old.py; sed -i /key/d old.py"))
    with pytest.raises(RejectedError, match="'copy' holds"):
        changed_by(repository, "cp old.py copy")


def test_a_copy_of_what_was_there(repository: Repository) -> None:
    """Objects that are collected stay in a repository of their own: a refused secret isn't in the user's."""
    with pytest.raises(RejectedError):
        changed_by(repository, f"echo {SECRET} > x; git add x; git commit -qm x")
    blob = Git(repository.path).output("hash-object", "--stdin", stdin=f"{SECRET}\n".encode())
    assert Git(repository.path).run("cat-file", "-e", blob)[0] != 0
