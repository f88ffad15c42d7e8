"""A command in a workspace: what it changes is its answer, and nothing of the user's is touched by it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Brief, Command, Item, Limits, Reply, Report, Shell, dispatch
from prefect_dispatch.errors import DispatchFailed, ExecutorError, JobError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.state_folder import remove_abandoned
from prefect_dispatch.workspaces.workspace import Workspace
from tests.workspaces.inside import leases, told
from tests.workspaces.repositories import Repository, picture

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "sk-proj-" + "0123456789abcdef"  # made up: it only looks like one


def brief(run: str, *writes: str, **more: Any) -> Brief:  # noqa: ANN401 -- whatever a job may say
    """Return a brief with a command and what that may write."""
    return Brief(
        name="work",
        instructions="Work.",
        output="text",
        writes=writes,
        command=Command.model_validate({"run": run} | more),
    )


def shell(repository: Repository, cwd: str = ".", **workspace: Any) -> Shell:  # noqa: ANN401 -- the same
    """Return an executor whose commands have a workspace."""
    return Shell(cwd=cwd, workspace=Workspace.model_validate(workspace)).resolve_paths(repository.path)


def answer(executor: Shell, what: Brief, key: str = "one") -> Reply:
    """Return what a command answers."""
    return asyncio.run(executor.answer(Ask(brief=what, item=Item(key=key, value="x"))))


def failure(executor: Shell, what: Brief) -> ExecutorError:
    """Return how a command fails."""
    with pytest.raises(ExecutorError) as caught:
        answer(executor, what)
    return caught.value


def test_what_a_command_changes(repository: Repository, state: Path) -> None:
    """It is collected, with or without words; where nothing may be written, what is written is thrown away."""
    reply = answer(shell(repository), brief('echo "$ITEM_KEY" > "src/$ITEM_KEY.py"; rm src/a.py', "src/**"))
    assert reply.value == "deleted src/a.py\nadded src/one.py"
    assert reply.change
    assert told(reply.change) == [("src/a.py", "deleted", ""), ("src/one.py", "added", "100644")]
    reply = answer(shell(repository, "src"), brief("echo done; pwd -P >&2; basename $PWD >> a.py", "src/a.py"))
    assert (reply.value, "\n+src\n" in (reply.change.patch if reply.change else "")) == ("done", True)
    assert answer(shell(repository), brief("true", "src/")).value == "nothing changed"
    reply = answer(shell(repository), brief("touch new; ls README.md new"))
    assert (reply.value, reply.change) == ("README.md\nnew", None)
    assert leases(state) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "kind", "message"),
    [
        pytest.param("touch src/x b 'c d'", "scope", "doesn't declare: 'b', 'c d'; it declares 'src/**'", id="scope"),
        pytest.param("git mv src/a.py a.py", "scope", "doesn't declare: 'a.py'", id="a-rename"),
        pytest.param(f"echo 'key = {SECRET}' > src/x", "secret", "'src/x' holds what looks like a secret", id="secret"),
        pytest.param(f"touch src/{SECRET}", "secret", "'src/***' holds what looks like a secret: its name", id="name"),
        pytest.param(
            "ln -s .. lib; mkdir src/lib; ln -s ../.. src/lib/up; > lib/x",
            "scope",
            "declare: 'lib'",
            id="a-link",
        ),
        pytest.param("touch src/x; exit 3", "exit", "failed (exit code 3)", id="exit"),
        pytest.param("rm -rf ../work", "workspace", "is gone, or has become a link", id="gone"),
        pytest.param("mv ../work ../w; ln -s /etc ../work", "workspace", "has become a link", id="replaced"),
    ],
)
def test_what_is_refused(run: str, kind: str, message: str, repository: Repository, state: Path) -> None:
    """Nothing of it is kept, no secret is told again, and a command costs nothing, however it ends."""
    error = failure(shell(repository), brief(run, "src/**"))
    assert error.kind == kind
    assert message in str(error)
    assert SECRET not in str(error)
    assert error.usage == Usage(requests=1)
    assert leases(state) == []


def test_a_submodule_is_refused(repository: Repository) -> None:
    """What is done in one would be lost."""
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{repository.head},src/lib")
    repository.git("commit", "--quiet", "--message", "With a submodule")
    error = failure(shell(repository), brief("touch src/lib/x", "src/**"))
    assert error.kind == "submodule"
    assert str(error).startswith("'src/lib': what is changed in a submodule can't be collected")


def test_a_set_up_that_fails_costs_nothing(repository: Repository, tmp_path: Path) -> None:
    """The command isn't run."""
    error = failure(shell(repository, setup={"run": "exit 1"}), brief(f"touch '{tmp_path}/ran'"))
    assert (error.kind, error.usage) == ("setup", Usage())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("cwd", "setup", "error", "kind"),
    [
        pytest.param("nowhere", None, JobError, None, id="absent"),
        pytest.param("README.md", None, JobError, None, id="a-file"),
        pytest.param("names/link", None, JobError, None, id="a-link"),
        pytest.param("nowhere", "true", TerminalError, "folder", id="absent-after-the-set-up"),
        pytest.param("out", "ln -s / out", TerminalError, "folder", id="a-link-by-the-set-up"),
    ],
)
def test_a_folder_to_run_in_is_one_of_the_workspace(
    cwd: str, setup: str | None, error: type[Exception], kind: str | None, repository: Repository
) -> None:
    """Where only a set-up can make it, that is waited for; else it is refused before anything is done."""
    with pytest.raises(error, match=r"^executor.cwd: .*folder") as caught:
        answer(shell(repository, cwd, setup={"run": setup} if setup else None), brief("pwd"))
    assert getattr(caught.value, "kind", None) == kind


def test_a_set_up_may_make_the_folder(repository: Repository) -> None:
    """A build that is made there, for example."""
    made = shell(repository, "build/out", setup={"run": "mkdir -p build/out"})
    assert answer(made, brief("basename $PWD")).value == "out"


def test_side_by_side_nothing_is_shared(repository: Repository, tmp_path: Path) -> None:
    """Ports, HOME and TMPDIR are each one's own, for as long as it is there."""
    meet = f"touch '{tmp_path}/'$ITEM_KEY.in; until [ $(ls '{tmp_path}'/*.in | wc -l) = 6 ]; do sleep 0.05; done"
    what = brief(f"{meet}; echo $PORTS; echo $HOME; echo $TMPDIR; pwd -P; ls -A $HOME $TMPDIR | wc -l; touch mine")
    executor = shell(repository, ports=12)

    async def together() -> list[list[str]]:
        asks = [Ask(brief=what, item=Item(key=f"k{n}", value="")) for n in range(6)]
        return [str(reply.value).split("\n") for reply in await asyncio.gather(*map(executor.answer, asks))]

    said = asyncio.run(together())
    ports, *folders, _ = zip(*said, strict=True)
    assert len({port for each in ports for port in each.split()}) == 6 * 12
    assert [len(set(each)) for each in folders] == [6, 6, 6]


def _dirty(made: Repository) -> None:
    """Leave a checkout as somebody leaves it who is at work."""
    made.put("src/a.py", "a = 'dirty'\n")
    made.put("src/staged.py", "staged = 1\n")
    made.git("add", "src/staged.py")
    made.put("src/staged.py", "staged = 2\n")
    (made.path / "README.md").unlink()
    made.put("untracked/file", "new\n")
    made.put("x.pyc", "ignored\n")


def _on_a_branch(made: Repository) -> None:
    made.git("checkout", "--quiet", "-b", "topic")
    _dirty(made)


def _on_none(made: Repository) -> None:
    made.git("checkout", "--quiet", "--detach")
    _dirty(made)


def _with_a_stash(made: Repository) -> None:
    made.put("src/b.py", "b = 'stashed'\n")
    made.git("stash", "--quiet")
    _dirty(made)


def _in_the_middle_of_a_merge(made: Repository) -> None:
    made.git("checkout", "--quiet", "-b", "other")
    made.put("src/b.py", "b = 2\n")
    made.commit("Other")
    made.git("checkout", "--quiet", "main")
    made.put("src/b.py", "b = 3\n")
    made.commit("Main")
    with pytest.raises(AssertionError):  # it conflicts
        made.git("merge", "other")
    made.put("untracked/file", "new\n")


def _with_a_lock(made: Repository) -> None:
    """Leave what git leaves that was killed, or that is at work just now."""
    _dirty(made)
    for name in ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "refs/heads/main.lock"):
        made.put(f".git/{name}", "")


def dated(folder: Path) -> dict[str, tuple[int, tuple[int, bytes]]]:
    """Return all that is below a folder, and when it was written; of an object, git says when it was used."""
    seen = picture(folder).items()
    return {name: (0 if "objects/" in name else (folder / name).lstat().st_mtime_ns, what) for name, what in seen}


@pytest.mark.parametrize("standing", [_on_a_branch, _on_none, _with_a_stash, _in_the_middle_of_a_merge, _with_a_lock])
@pytest.mark.slow
def test_the_users_checkout_stays_as_it_is(
    standing: Callable[[Repository], None], repository: Repository, sprung: Path
) -> None:
    """Whatever is done in a workspace: branch, index, stash, refs, settings, files, and their dates, stay."""
    standing(repository)
    before = dated(repository.path)
    run = """
    git checkout -q -B main && echo x >> src/a.py && git commit -qam x && git tag -f v9 && git branch -f topic
    echo y >> src/a.py && git stash -q && git stash pop -q && git config user.name Else && git worktree prune
    git gc -q --prune=now; git update-ref -d refs/heads/other; git reset -q --hard; echo z > src/z.py"""
    executor = shell(repository)
    change = answer(executor, brief(run, "src/")).change
    assert change
    assert {each.path for each in change.files} >= {"src/z.py"}
    assert failure(executor, brief(f"{run}; exit 1", "src/")).kind == "exit"
    assert failure(executor, brief(f"{run}; echo > out", "src/")).kind == "scope"
    assert dated(repository.path) == before
    assert not sprung.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_says_what_was_kept_and_goes_on(repository: Repository, state: Path) -> None:
    """A report names each workspace that was kept, at its attempt; another run does only what failed."""
    repository.put("../fail", "")
    run = f'echo "$ITEM_KEY" >> "{repository.path.parent}/ran"; echo x > "out-$ITEM_KEY"; '
    run += f'test "$ITEM_KEY" = good || ! test -e "{repository.path.parent}/fail"'
    executor = Shell(workspace=Workspace(repo=str(repository.path), keep="failed"))

    def report() -> Report:
        return dispatch([brief(run, "out-{key}")], ["bad", "good"], executor=executor, limits=Limits(retries=0))

    first = report()
    assert (first.status, [gap.item for gap in first.gaps]) == ("gaps", ["bad"])
    (failed,) = (outcome.attempts[-1].error or "" for outcome in first.outcomes if outcome.item == "bad")
    (kept,) = (Path(name) for name in failed.split() if name.endswith("/work"))
    assert (kept / "out-bad").read_text() == "x\n"
    assert (first.usage.requests, first.usage.unsettled, first.usage.cost_usd) == (2, 0, 0)
    remove_abandoned(lambda lease: None)
    (repository.path.parent / "fail").unlink()
    second = report()
    assert (second.status, second.usage.cached, second.usage.asked) == ("complete", 1, 1)
    assert sorted((repository.path.parent / "ran").read_text().split()) == ["bad", "bad", "good"]
    assert leases(state) == [kept.parent.name]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_base_that_is_not_there_stops_a_run_before_anything_is_done(repository: Repository) -> None:
    """So does a set-up that fails for all: none of the commands is run."""
    with pytest.raises(JobError, match=r"workspace.base: 'mian' is no commit"):
        dispatch([brief("true")], ["x"], executor=Shell(workspace=Workspace(repo=str(repository.path), base="mian")))
    executor = Shell(workspace=Workspace(repo=str(repository.path), setup=Command(run="echo no >&2; exit 1")))
    with pytest.raises(DispatchFailed, match="setup") as caught:
        dispatch([brief(f"touch '{repository.path}/ran'")], ["x"], executor=executor, limits=Limits(retries=0))
    assert caught.value.report.usage.requests == 0
    assert not (repository.path / "ran").exists()


def test_what_it_raises_is_what_it_says(repository: Repository) -> None:
    """A change that can't be collected is the item's failure alone."""
    assert isinstance(failure(shell(repository), brief("touch x", "y")), RejectedError)
