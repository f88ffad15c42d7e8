"""Where runs find a job's folder: its git repository, an image, or another path."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_dispatch.cli.commands import main
from prefect_dispatch.deployments.code_source import CodeOptions, CodeSource, code_source
from prefect_dispatch.deployments.specs import plan_deployments
from prefect_dispatch.errors import JobError
from tests.openai_server import Behaviour, document, openai_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefect.client.schemas.responses import DeploymentResponse

    from tests.deployments.conftest import Place

OWN = "from pydantic import BaseModel\n\n\nclass Length(BaseModel):\n    words: int\n"
STEP = "prefect.deployments.steps.git_clone"


def git(folder: Path, *args: str) -> str:
    """Run git in a folder, with nobody's settings; return what it says."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    command = ["git", *args]
    done = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)  # noqa: S603 -- git
    return done.stdout.strip()


def write_job(folder: Path, name: str, url: str = "http://127.0.0.1:9/v1", **changes: Any) -> Path:  # noqa: ANN401 -- JSON
    """Write a project: a job file, a text that it reads, and code of its own; return the job file."""
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "one.txt").write_text("a b c")
    (folder / "own.py").write_text(OWN)
    path = folder / "job.yaml"
    job = {
        "briefs": [{"name": name, "instructions": "Say how long it is.", "output": "own:Length"}],
        "items": {"glob": "texts/*.txt"},
        "executor": {"model": "openai/test", "api_base": url},
        "limits": {"retries": 0},
    }
    path.write_text(json.dumps({**job, **changes}))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a job in `contracts`, committed and pushed to a bare repository."""
    folder = tmp_path / "checkout"
    write_job(folder / "contracts", "cloned")
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", "bare.git")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "A job")
    git(folder, "remote", "add", "origin", f"file://{tmp_path}/bare.git")
    git(folder, "push", "--quiet", "--set-upstream", "origin", "main")
    return folder


def source(folder: Path, **options: Any) -> CodeSource:  # noqa: ANN401 -- options
    """Return where runs find a folder's job with `--git`."""
    return code_source(CodeOptions(git=True, **options), folder)


def step(found: CodeSource) -> Mapping[str, Any]:
    """Return the pull step of a repository."""
    assert found.repository is not None
    step: Mapping[str, Any] = found.repository.to_pull_step()[STEP]
    return step


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_elsewhere_clones_the_jobs_repository(server: Place, checkout: Path, tmp_path: Path) -> None:
    """The job's folder here is gone; its data and its own code come from the clone, of the branch as it is by then."""
    place = replace(server, folder=tmp_path)

    def count(request: dict[str, Any], n: int) -> Behaviour:
        return Behaviour(content=json.dumps({"words": len(document(request).split())}))

    with openai_server(count) as model:
        job = checkout / "contracts" / "job.yaml"
        job.write_text(job.read_text().replace("http://127.0.0.1:9/v1", model.url))
        said = place.run("prefect_dispatch", "deploy", str(job), "--git")
        assert "Note: Not committed, so workers do not have it: contracts/job.yaml" in said
        (checkout / "contracts" / "texts" / "two.txt").write_text("a b")
        git(checkout, "add", ".")
        git(checkout, "commit", "--quiet", "-m", "One more text")
        git(checkout, "push", "--quiet")
        checkout.rename(tmp_path / "gone")
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "home").mkdir(parents=True)
        worker = replace(place, folder=elsewhere, env={**place.env, "HOME": str(elsewhere / "home")})
        with place.client() as client:
            deployment = client.read_deployment_by_name("dispatch/cloned").id
            client.create_flow_run_from_deployment(deployment)
        with worker.worker("dispatch"):
            (run,) = place.ended(deployment)
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Completed", "2 of 2 answered."), (elsewhere / "said").read_text()
    assert model.count == 2
    assert list(elsewhere.iterdir()) == [elsewhere / "home", elsewhere / "said"]  # the clone is gone


def deployed(name: str) -> DeploymentResponse:
    """Return a deployment as it stands in Prefect."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_git_becomes_a_pull_step(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Deployed by its path before and after, it is the same job; a block that is there stands for credentials."""
    job = checkout / "contracts" / "job.yaml"
    assert main(["deploy", str(job)]) == 0
    url = f"file://{tmp_path}/bare.git"
    assert f"Workers without these folders can clone them, from {url}: add --git." in capsys.readouterr().out
    before = deployed("dispatch/cloned")
    (job.parent / "__pycache__").mkdir(exist_ok=True)
    (job.parent / "__pycache__" / "parsing.pyc").touch()  # no worker misses it
    assert main(["deploy", str(job), "--git", "--job-variable", "stream_output=false"]) == 0
    assert capsys.readouterr().err == ""
    made = deployed("dispatch/cloned")
    assert made.id == before.id
    assert made.pull_steps == [{STEP: {"repository": url, "branch": "main"}}]
    assert made.parameters["folder"] == "contracts"
    assert made.job_variables == {"stream_output": False}
    assert str(made.description).endswith(f"Job file: `{url}: contracts/job.yaml`")
    private = ["--git-url", "https://example.org/jobs.git", "--git-credentials", "secret/jobs"]
    assert main(["deploy", str(job), "--git", *private]) == 2
    assert "--git-credentials 'secret/jobs': there is no such block" in capsys.readouterr().err
    secret: Any = Secret  # as `Secret[str]` it would be another type of block
    secret(value="hunter-2-of-a-token").save("jobs")
    assert main(["deploy", str(job), "--git", *private, "--git-commit", "HEAD", "--name", "private"]) == 0
    (pulled,) = deployed("dispatch/private").pull_steps or []
    assert pulled[STEP] == {
        "repository": "https://example.org/jobs.git",
        "branch": None,
        "commit_sha": git(checkout, "rev-parse", "HEAD"),
        "access_token": "{{ prefect.blocks.secret.jobs }}",
    }
    assert main(["deploy", str(job)]) == 0
    again = deployed("dispatch/cloned")
    assert (again.id, again.pull_steps, again.parameters["folder"]) == (before.id, None, str(job.parent))
    assert again.job_variables == {"stream_output": False}  # what is set and not named stays
    (job.parent / "new.txt").touch()
    capsys.readouterr()
    assert main(["deploy", str(job), "--git"]) == 0
    assert "Note: Not committed, so workers do not have it: contracts/new.txt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_an_image_and_job_variables_are_for_pools_that_have_them(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image has a copy of the current folder in its working directory, or where `--folder` says."""
    monkeypatch.chdir(checkout)
    names = {"image": {"type": "string"}, "env": {"type": "object"}, "network_mode": {"type": "string"}}
    template = {"job_configuration": {"image": "{{ image }}"}, "variables": {"properties": names}}
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="containers", type="docker", base_job_template=template))
        client.create_work_pool(WorkPoolCreate(name="bare", type="of-somebody"))
    job = ["deploy", "contracts/job.yaml", "--name", "imaged"]
    image = [*job, "--image", "registry.example.org:5000/jobs:v1"]
    assert main([*image, "--work-pool", "dispatch"]) == 2
    assert "--image: the jobs of the work pool 'dispatch', of type process, have no 'image'" in capsys.readouterr().err
    contained = [*image, "--work-pool", "containers"]
    assert main([*contained, "--job-variable", "networkmode=host"]) == 2
    assert "--job-variable networkmode: the jobs of the work pool 'containers'" in capsys.readouterr().err
    assert main([*contained, "--job-variable", 'env={"A": "b"}', "--job-variable", "network_mode=host"]) == 0
    made = deployed("dispatch/imaged")
    assert made.job_variables == {
        "image": "registry.example.org:5000/jobs:v1",
        "env": {"A": "b"},
        "network_mode": "host",
    }
    assert (made.parameters["folder"], made.pull_steps) == ("contracts", [])
    assert main([*contained, "--folder", "/app"]) == 0
    moved = deployed("dispatch/imaged")
    assert (moved.id, moved.parameters["folder"]) == (made.id, "/app/contracts")
    placed = ["deploy", "contracts/job.yaml", "--name", "placed"]
    assert main([*placed, "--folder", "/srv/jobs", "--work-pool", "bare"]) == 0
    other = deployed("dispatch/placed")
    assert (other.parameters["folder"], other.job_variables) == ("/srv/jobs/contracts", {})


def test_the_ready_flows_are_cloned_too(checkout: Path) -> None:
    """Their forms begin in the folder that they were deployed from, and so does code for runs of shards."""
    found = {
        each.spec.key: each.deployment.parameters
        for each in plan_deployments([], checkout / "contracts", None, source(checkout))
    }
    assert found["analyze_files"] == found["work_shard"] == {"folder": "contracts"}


def test_a_branch_or_a_commit(checkout: Path) -> None:
    """By default the branch that is checked out, by the name that it has at its remote."""
    assert step(source(checkout))["branch"] == "main"
    git(checkout, "checkout", "--quiet", "-b", "mine", "--track", "origin/main")
    assert step(source(checkout))["branch"] == "main"
    git(checkout, "push", "--quiet", "origin", "mine:theirs/one")
    assert step(source(checkout, branch="theirs/one"))["branch"] == "theirs/one"
    assert step(source(checkout, url="git@example.org:jobs.git", branch="anywhere"))["branch"] == "anywhere"
    commit = step(source(checkout, commit="main"))
    assert (commit["branch"], commit["commit_sha"]) == (None, git(checkout, "rev-parse", "HEAD"))
    (checkout / ".gitmodules").write_text("")
    assert step(source(checkout))["include_submodules"] is True


def test_what_workers_will_not_have_is_noted(checkout: Path) -> None:
    """Files that aren't committed, and commits that aren't pushed; of another address nothing is known."""
    folder = checkout / "contracts"
    assert source(folder).notes == ()
    for name in "abcd":
        (folder / name).write_text("")
    assert source(folder).notes == (
        "Not committed, so workers do not have it: contracts/a, contracts/b, contracts/c, …",
    )
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "More")
    (lacking,) = source(folder).notes
    assert lacking == "HEAD has commits that are not pushed to 'origin', so workers do not have them."
    assert source(folder, url="file:///elsewhere.git").notes == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param([], {"branch": "none"}, "has no branch 'none' as far as is known here: git push it", id="branch"),
        pytest.param([], {"branch": "-x", "url": "file:///a"}, "does not begin with a hyphen", id="hyphen"),
        pytest.param([], {"commit": "none"}, "--git-commit 'none': there is no such commit", id="commit"),
        pytest.param([], {"commit": "--all"}, "--git-commit '--all': there is no such commit", id="option"),
        pytest.param(["checkout --quiet --detach"], {}, "no branch is checked out here", id="detached"),
        pytest.param(["remote remove origin"], {}, "has no remote 'origin': name --git-url", id="no-remote"),
        pytest.param(
            ["remote set-url origin https://me:hunter22@example.org/a.git"],
            {},
            r"'https://\*\*\*@example.org/a.git' has credentials in it",
            id="password",
        ),
        pytest.param([], {"url": "https://tok@[::bad/a.git"}, "has credentials in it", id="not-an-address"),
        pytest.param([], {"credentials": "secret/a"}, "for an address that begins with https://", id="block"),
    ],
)
def test_what_cannot_be_cloned_is_refused(
    changes: list[str], options: dict[str, Any], message: str, checkout: Path
) -> None:
    """Before anything is registered, with the way out."""
    for change in changes:
        git(checkout, *change.split())
    with pytest.raises(JobError, match=message) as caught:
        source(checkout, **options)
    assert "hunter22" not in str(caught.value)


def test_a_remote_may_be_a_folder(checkout: Path, tmp_path: Path) -> None:
    """It is named by its absolute path, and an address of SSH is left alone."""
    git(checkout, "remote", "set-url", "origin", "../bare.git")
    assert step(source(checkout))["repository"] == str(tmp_path / "bare.git")
    for url in ("git@example.org:team/jobs.git", "ssh://git@example.org/team/jobs.git"):
        assert step(source(checkout, url=url))["repository"] == url


def test_a_folder_outside_is_refused(checkout: Path, tmp_path: Path) -> None:
    """Workers don't have it; one that the job itself names by its absolute path is that of the worker."""
    outside = write_job(tmp_path / "outside", "outside")
    with pytest.raises(JobError, match="is outside the repository that workers clone"):
        plan_deployments([outside], tmp_path, None, source(checkout))
    with pytest.raises(JobError, match=r"is outside the current folder, .*: deploy from a folder above it"):
        plan_deployments([outside], tmp_path, None, code_source(CodeOptions(folder="/app"), checkout))
    with pytest.raises(JobError, match="is in no git repository"):
        source(tmp_path)
    form = checkout / "contracts" / "form.yaml"
    given = {"flow": "analyze_files", "files": "*.txt", "instructions": "Say it.", "model": "openai/test"}
    form.write_text(json.dumps({**given, "folder": str(tmp_path / "outside" / "texts")}))
    (found,) = plan_deployments([form], tmp_path, None, source(checkout))
    assert found.deployment.parameters["folder"] == str(tmp_path / "outside" / "texts")
    form.write_text(json.dumps({**given, "folder": "../contracts/texts", "out": "report"}))
    (found,) = plan_deployments([form], tmp_path, None, source(checkout))
    assert found.deployment.parameters["folder"] == "contracts/texts"
    (note,) = found.notes
    assert note.startswith("out 'report' is a path in the clone, which is removed when a run ends")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--git-url", "file:///a"], "--git-url says how workers clone the job's repository", id="url"),
        pytest.param(["--git-branch", "a"], "add --git", id="branch"),
        pytest.param(["--git-credentials", "secret/a"], "add --git", id="credentials"),
        pytest.param(["--git", "--git-branch", "a", "--git-commit", "b"], "say one of them", id="both"),
        pytest.param(["--git", "--folder", "/app"], "leave --folder out", id="folder"),
        pytest.param(["--git", "--git-credentials", "ghp_abcdef"], "never the token itself", id="token"),
        pytest.param(
            ["--job-variable", 'env={"OPENAI_API_KEY": "sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"}'],
            "--job-variable env: its value holds a secret",
            id="secret",
        ),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are refused, without quoting what may be a secret."""
    assert main(["deploy", str(checkout / "contracts" / "job.yaml"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "ghp_abcdef" not in said


def test_a_job_variable_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """`K=V`, as `prefect deploy` takes it."""
    with pytest.raises(SystemExit):
        main(["deploy", "--job-variable", "image"])
    assert "'image' is no K=V" in capsys.readouterr().err
