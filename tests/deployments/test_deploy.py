"""`prefect-dispatch deploy` and `serve`: what they register, and what they refuse before they do."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.settings import PREFECT_API_URL, PREFECT_DEFAULT_WORK_POOL_NAME, temporary_settings
from prefect.types.entrypoint import EntrypointType

from prefect_dispatch.cli.commands import main
from prefect_dispatch.deployments.register import prefect_client, register_served
from prefect_dispatch.deployments.specs import (
    ScheduleOverride,
    describe_schedules,
    nest_parameters,
    plan_deployments,
    ready_flows,
)
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.runtime.job_document import FLOWS
from tests.openai_server import openai_server

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

BRIEF = {"name": "terms", "instructions": "Say it."}


def job(folder: Path, **changes: Any) -> str:  # noqa: ANN401 -- YAML
    """Write a job file; return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(json.dumps({"briefs": [BRIEF], "items": ["a"], "executor": {"model": "openai/test"}, **changes}))
    return str(path)


def named(name: str) -> DeploymentResponse:
    """Return a deployment as it stands in Prefect."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


ONE = {"limit": 1, "collision_strategy": "ENQUEUE", "grace_period_seconds": 600}


def limit_of(made: DeploymentResponse) -> dict[str, object] | None:
    """Return how many runs of a deployment work at once, as the file says it."""
    if made.global_concurrency_limit is None:
        return None
    assert made.concurrency_options is not None
    options = made.concurrency_options.model_dump(mode="json")
    return {"limit": made.global_concurrency_limit.limit, **options}


def number() -> int:
    """Return how many deployments there are."""
    with get_client(sync_client=True) as client:
        return len(client.read_deployments())


def schedules(name: str) -> list[tuple[str, str | None, bool]]:
    """Return a deployment's cron schedules."""
    return [
        (each.schedule.cron, each.schedule.timezone, bool(each.active))
        for each in named(name).schedules
        if isinstance(each.schedule, CronSchedule)
    ]


def _nine() -> DeploymentScheduleCreate:
    """Return a schedule that somebody else has made."""
    return DeploymentScheduleCreate(schedule=CronSchedule(cron="0 9 * * *"), active=True)


def test_each_ready_flow_has_a_deployment() -> None:
    """A job file can name no flow that has none; the next ready flow is one more entry of the file."""
    assert set(ready_flows()) == {*FLOWS, "work_shard"}
    for key, ready in ready_flows().items():
        assert ready.entrypoint == f"prefect_dispatch.flows.{key}.{key}"
        assert ready.flow.name == ready.name
        assert [each.active for each in ready.schedules] == ([] if key == "work_shard" else [False])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_ready_flows_are_registered_as_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each entry of `prefect.yaml` becomes a deployment with all it says, and again brings nothing new.

    One that was registered by an earlier version, which cancelled runs beyond the limit, is brought up to date.
    """
    monkeypatch.chdir(tmp_path)
    cancelling = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    ready = ready_flows()["dispatch"]
    (example,) = ready.schedules
    earlier: Any = ready.flow.to_deployment(
        "dispatch",
        concurrency_limit=cancelling,
        schedules=[example],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    earlier.apply()
    assert main(["deploy"]) == 0
    text = (resources.files("prefect_dispatch.deployments") / "prefect.yaml").read_text()
    entries = yaml.safe_load(text)["deployments"]
    ids: set[str] = set()
    for entry in entries:
        made = named(f"{entry['name']}/{entry['name']}")
        ids.add(str(made.id))
        assert made.entrypoint == entry["entrypoint"]
        assert made.description == entry["description"]
        assert made.tags == entry["tags"]
        assert made.enforce_parameter_schema is entry["enforce_parameter_schema"] is True
        assert limit_of(made) == entry.get("concurrency_limit")
        assert limit_of(made) == (None if entry["name"] == "work-shard" else ONE)
        assert made.work_pool_name == entry["work_pool"]["name"]
        assert schedules(f"{entry['name']}/{entry['name']}") == [
            (each["cron"], each["timezone"], each["active"]) for each in entry.get("schedules", ())
        ]
        folder = {} if entry["name"] == "work-shard" else {"folder": str(tmp_path)}
        assert (made.parameters, made.pull_steps or []) == (folder, [])
        assert made.path in {None, "."}  # the second is what Prefect 3.9 writes
    said = capsys.readouterr().out
    assert "prefect worker start --pool dispatch" in said
    assert "prefect deployment run analyze-files/analyze-files --params" in said
    assert "prefect deployment run work-shard/work-shard" not in said  # other runs start its runs
    before = number()
    assert main(["deploy"]) == 0
    assert "made just now" not in capsys.readouterr().out
    assert number() == before
    assert {str(named(f"{entry['name']}/{entry['name']}").id) for entry in entries} == ids


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_schedules_are_changed_only_where_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What somebody has set in the UI survives another deploy; an option changes its part alone."""
    path, name = job(tmp_path), "dispatch/timed"
    deploy = ["deploy", path, "--name", "timed"]
    assert main(deploy) == 0
    assert schedules(name) == [("0 6 * * 1-5", "UTC", False)]
    assert main([*deploy, "--cron", "0 5 * * *", "--timezone", "Europe/Berlin"]) == 0
    assert schedules(name) == [("0 5 * * *", "Europe/Berlin", False)]
    assert main([*deploy, "--active"]) == 0
    assert "schedule: '0 5 * * *' (Europe/Berlin)\n" in capsys.readouterr().out
    with get_client(sync_client=True) as client:
        deployment = named(name)
        client.create_deployment_schedules(deployment.id, [_nine()])
        client.pause_deployment(deployment.id)
    assert main(deploy) == 0
    assert sorted(schedules(name)) == [("0 5 * * *", "Europe/Berlin", True), ("0 9 * * *", None, True)]
    assert "(the deployment is paused)" in capsys.readouterr().out
    assert named(name).paused
    assert main([*deploy, "--timezone", "UTC"]) == 0
    assert sorted(schedules(name)) == [("0 5 * * *", "UTC", True), ("0 9 * * *", None, True)]
    with get_client(sync_client=True) as client:
        for each in named(name).schedules:
            client.delete_deployment_schedule(deployment.id, each.id)
    assert main(deploy) == 0
    assert schedules(name) == []
    assert "schedule: none" in capsys.readouterr().out


def test_an_interval_gives_way_to_a_cron() -> None:
    """Where somebody has made an interval of the schedule, a cron replaces it, and a zone goes with the example's."""
    example = ready_flows()["dispatch"].schedules[0]
    hourly = example.model_copy(update={"schedule": IntervalSchedule.model_validate({"interval": 3600})})
    assert describe_schedules(ScheduleOverride().merge_schedules(example, [hourly])) == "every 1:00:00, not active"
    assert (
        describe_schedules(ScheduleOverride(timezone="Asia/Tokyo", active=True).merge_schedules(example, [hourly]))
        == "'0 6 * * 1-5' (Asia/Tokyo)"
    )
    rule = example.model_copy(update={"schedule": RRuleSchedule(rrule="FREQ=DAILY")})
    assert describe_schedules([rule]) == "by a recurrence rule, not active"


def test_a_schedules_own_parameters_move_into_the_groups_of_the_form(tmp_path: Path) -> None:
    """Where an earlier version stored them by themselves: beside the deployment's group they would be given twice."""
    planned = {each.spec.key: each for each in plan_deployments([], tmp_path)}
    analysis = planned["analyze_files"]
    analysis.deployment.parameters = {"files": "*", "limits": {"budget_usd": 1, "limit": 5}}
    plain = ScheduleOverride().merge_schedules(None, analysis.spec.schedules)[0]
    own = plain.model_copy(update={"parameters": {"limit": 2, "name": "weekly"}})
    moved, kept = nest_parameters([own, plain], analysis)
    assert moved.parameters == {"limits": {"budget_usd": 1, "limit": 2}, "name": "weekly"}
    assert kept == plain
    assert nest_parameters([own], planned["dispatch"]) == [own]  # it has no groups


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_name_belongs_to_one_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another job of the name is told whose it is; under a name of its own it goes in beside it."""
    one, other = job(tmp_path / "one"), job(tmp_path / "other")
    assert main(["deploy", one, "--name", "taken"]) == 0
    before = number()
    assert main(["deploy", other, "--name", "taken"]) == 2
    told = capsys.readouterr().err
    assert f"'dispatch/taken' is there already, and that of another job, {one!r}: call this one otherwise" in told
    assert "prefect deployment delete 'dispatch/taken'" in told
    assert number() == before
    assert named("dispatch/taken").parameters["folder"] == str(tmp_path / "one")
    assert main(["deploy", other, "--name", "free"]) == 0
    assert named("dispatch/free").parameters["folder"] == str(tmp_path / "other")
    with pytest.raises(JobError, match="not made from a job file"):
        _take_over(other, "dispatch/dispatch-of-somebody")


def _take_over(path: str, name: str) -> None:
    """Try to deploy a job under the name of a deployment that somebody made by hand."""
    made: Any = ready_flows()["dispatch"].flow.to_deployment(name.partition("/")[2])
    made.apply()
    register_served(plan_deployments([Path(path)], Path.cwd(), name.partition("/")[2]), ScheduleOverride())


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_ready_flow_does_not_take_a_jobs_place(tmp_path: Path) -> None:
    """Where a job's deployment has the name of a ready flow, it is told."""
    path = job(tmp_path)
    register_served(
        plan_deployments([Path(path)], tmp_path, "analyze-files"), ScheduleOverride()
    )  # dispatch/analyze-files: another flow
    ready = plan_deployments([], tmp_path)
    own = next(each for each in ready if each.spec.key == "dispatch")
    own.deployment.name = "analyze-files"
    with pytest.raises(JobError, match="to have the ready flow's in its place, delete it"):
        register_served([own], ScheduleOverride())


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_was_served_may_be_deployed_and_the_other_way_round(tmp_path: Path) -> None:
    """The last command says who runs it; a pause by the end of serving doesn't outlast that."""
    path = job(tmp_path)
    (served,) = register_served(plan_deployments([Path(path)], tmp_path, "moving"), ScheduleOverride())
    assert named(served.name).work_pool_name is None
    with get_client(sync_client=True) as client:
        client.pause_deployment(named(served.name).id)  # as serving does when it ends
    assert main(["deploy", path, "--name", "moving"]) == 0
    assert (named(served.name).work_pool_name, named(served.name).paused) == ("dispatch", False)
    register_served(plan_deployments([Path(path)], tmp_path, "moving"), ScheduleOverride())
    assert named(served.name).work_pool_name is None


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_pool_of_ones_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is there is used, whether said or Prefect's default; one that isn't is refused, and not made."""
    path = job(tmp_path)
    before = number()
    assert main(["deploy", path, "--name", "pooled", "--work-pool", "typo"]) == 2
    assert "--work-pool 'typo': there is no such work pool" in capsys.readouterr().err
    with temporary_settings({PREFECT_DEFAULT_WORK_POOL_NAME: "other-typo"}):
        assert main(["deploy", path, "--name", "pooled"]) == 2
    assert "PREFECT_DEFAULT_WORK_POOL_NAME 'other-typo'" in capsys.readouterr().err
    assert number() == before


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        pytest.param(["--cron", "6"], {}, "--cron '6' is no cron expression, or is never due: write five", id="cron"),
        pytest.param(["--cron", "* * * * * *"], {}, "is no cron expression", id="a-field-too-many"),
        pytest.param(["--cron", "0 0 30 2 *"], {}, "is never due", id="a-day-that-never-comes"),
        pytest.param(["--timezone", "Mars"], {}, "--timezone 'Mars' is no time zone: use an IANA name", id="zone"),
        pytest.param(["--name", "a/b"], {}, "--name 'a/b': a name is a text without any of", id="name"),
        pytest.param([], {"items": {"glob": "none/*"}}, "none/*", id="no-items"),
        pytest.param([], {"flow": "analyse_files"}, "did you mean 'analyze_files'?", id="flow"),
        pytest.param([], {"briefs": [{**BRIEF, "output": "nowhere:Model"}]}, "nowhere", id="own-code"),
        pytest.param([], {"items": ["x" * 600_000]}, "put the items into a file", id="too-large"),
        pytest.param([], {"review": True}, "review", id="review"),
    ],
)
def test_a_bad_job_is_refused_before_anything_is_registered(
    options: list[str], changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The good one beside it isn't registered either."""
    good = job(tmp_path / "good", briefs=[{**BRIEF, "name": "good"}])
    files = (
        [job(tmp_path / "bad", **changes)] if options[:1] == ["--name"] else [good, job(tmp_path / "bad", **changes)]
    )
    before = number()
    assert main(["deploy", *files, *options]) == 2
    assert message in capsys.readouterr().err
    assert number() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "name", "message"),
    [
        pytest.param(2, None, "Two of the job files would be the deployment 'dispatch/terms'", id="same-name"),
        pytest.param(2, "x", "--name 'x' names the deployment of one job file; 2 are given", id="one-name"),
        pytest.param(0, "x", "0 are given", id="no-job"),
    ],
)
def test_names_that_fit_no_job(jobs: int, name: str | None, message: str, tmp_path: Path) -> None:
    """One name is one job's."""
    with pytest.raises(JobError, match=message):
        plan_deployments([Path(job(tmp_path / str(n))) for n in range(jobs)], tmp_path, name)


@pytest.mark.slow
def test_an_api_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It isn't there, wants credentials, or refuses: a sentence with the way out, and no traceback."""
    monkeypatch.setenv("PREFECT_DISPATCH_SERVER_WAIT_S", "0")
    said = {"401": {}, "422": {"exception_detail": "no such field"}, "409": {"detail": "in conflict"}}

    async def refuse(request: web.Request) -> web.Response:
        status = request.match_info["status"]
        text = "<html>" if status == "500" else json.dumps(said[status])
        return web.Response(status=int(status), text=text, content_type="application/json")

    def routes(app: web.Application) -> None:
        app.router.add_route("*", "/{status}/{path:.*}", refuse)

    told: dict[str, str] = {}
    with openai_server(routes=routes) as server:
        for status in (*said, "500"):
            with temporary_settings({PREFECT_API_URL: server.url.replace("/v1", f"/{status}/api")}):
                assert main(["deploy", job(tmp_path)]) == 2
            told[status] = capsys.readouterr().err
    assert "set PREFECT_API_AUTH_STRING to what the server has as PREFECT_SERVER_API_AUTH_STRING" in told["401"]
    assert told["422"].endswith("refuses it (422): no such field\n")
    assert told["409"].endswith("refuses it (409): in conflict\n")
    assert told["500"].endswith("refuses it (500): Internal Server Error\n")
    with temporary_settings({PREFECT_API_URL: "http://admin:secret@127.0.0.1:9/api"}):
        assert main(["deploy", job(tmp_path)]) == 2
    told["none"] = capsys.readouterr().err
    assert "secret" not in told["none"]
    assert "start it with `prefect server start`, or set PREFECT_API_URL" in told["none"]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_without_an_address_it_says_where_the_deployment_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this machine's database, which a server elsewhere knows nothing of."""
    monkeypatch.setenv("PATH", str(tmp_path))  # without git, there is no repository that workers could clone
    with temporary_settings({PREFECT_API_URL: None}):
        assert main(["deploy", job(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "add --git" not in shown.out
    assert "PREFECT_API_URL isn't set, so this stands in the database of this machine" in shown.err


@pytest.mark.slow
def test_what_prefect_finds_wrong_with_a_deployment_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may quote a whole job."""
    monkeypatch.setenv("PREFECT_DISPATCH_SERVER_WAIT_S", "0")
    with pytest.raises(JobError) as caught, temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        _applying("x" * 5000)
    assert str(caught.value).startswith("Prefect refuses the deployment: xxx")
    assert len(str(caught.value)) < 400


def _applying(why: str) -> None:
    with prefect_client():
        raise DeploymentApplyError(why)


def test_a_deployment_says_which_folder_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the job file was named: a worker starts elsewhere."""
    job(tmp_path)
    monkeypatch.chdir(tmp_path)
    (found,) = plan_deployments([Path("job.yaml")], Path())
    made: RunnerDeployment = found.deployment
    assert made.parameters["folder"] == str(tmp_path)
    assert made.description is not None
    assert made.description.endswith(f"Job file: `{tmp_path}/job.yaml`")


def test_two_folders_may_have_modules_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job gets its own; what else was imported meanwhile, from an environment in the folder too, stays."""
    inside = tmp_path / "one" / "venv"
    inside.mkdir(parents=True)
    (inside / "of_the_environment.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(inside), *sys.path])
    for name in ("one", "two"):
        package = tmp_path / name / "shapes_of_a_job"
        package.mkdir(parents=True)
        more = "import of_the_environment\n" if name == "one" else ""
        (package / "made.py").write_text(
            f"{more}from pydantic import BaseModel\n\n\nclass Made(BaseModel):\n    {name}: int\n"
        )
    path = [*sys.path]
    briefs = [[{**BRIEF, "name": name, "output": "shapes_of_a_job.made:Made"}] for name in ("one", "two")]
    files = [Path(job(tmp_path / each[0]["name"], briefs=each)) for each in briefs]
    assert [each.name for each in plan_deployments(files, tmp_path)] == ["dispatch/one", "dispatch/two"]
    assert not [name for name in sys.modules if name.startswith("shapes_of_a_job")]
    assert "of_the_environment" in sys.modules
    assert sys.path == path
