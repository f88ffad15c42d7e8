"""The review of a merge: who is asked what, what becomes of the answer, and what happens where none comes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from shutil import rmtree
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import NotPausedError, Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Failed, Pending, Scheduled

from prefect_dispatch import Brief, Collate, Limits, MergeRecords, dispatch
from prefect_dispatch.cli.commands import GAPS, main
from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.flows.review import collect_answers
from prefect_dispatch.integrators.audit.published_report import audit_report
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.integrators.decisions_file import DecisionsFile
from prefect_dispatch.models.decisions import Choice, Decisions
from prefect_dispatch.testing import ScriptedExecutor
from tests.flows.linking import Linking

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefect.client.schemas.objects import State
    from pydantic import JsonValue

    from prefect_dispatch import Merge, Outcome, Report

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(
    name="licences",
    instructions="Name it.",
    output={
        "type": "object",
        "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["name", "year"],
    },
)
SAID: dict[str, JsonValue] = {
    "a": {"name": "MIT", "year": 1987},
    "b": {"name": "MIT", "year": 1988},
    "c": {"name": "MIT License", "year": 1987},
}

Schema = dict[str, Any]


RECORDS = MergeRecords.model_validate({"identity": ["name"], "rules": {"year": "max"}, "aliases": "decisions.yaml"})


def decisions(folder: Path) -> DecisionsFile:
    """Return the decisions file of the job."""
    return DecisionsFile(folder / "decisions.yaml")


def notes(folder: Path) -> list[Path]:
    """Return the notes of forms whose answers aren't stored yet."""
    return sorted(folder.glob(".decisions.yaml.review-*.json"))


def given(folder: Path, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 -- any parameter of the flow
    """Return the parameters of the job."""
    return {
        "briefs": [BRIEF],
        "items": list(SAID),
        "executor": ScriptedExecutor(SAID),
        "integrator": Linking(),
        "limits": Limits(retries=0),
        "review": True,
        "folder": str(folder),
        **changes,
    }


def run(folder: Path, **changes: Any) -> Any:  # noqa: ANN401 -- any parameter of the flow; a report, or a state
    """Run the job without a deployment."""
    return dispatch(**given(folder, **changes))


@dataclass
class Deployed:
    """A run of a deployment, in Prefect's own engine; each `work` is what a worker's process does with it."""

    parameters: dict[str, Any]
    id: UUID

    @classmethod
    def of(cls, folder: Path, **changes: Any) -> Deployed:  # noqa: ANN401 -- any parameter of the flow
        """Create a run of a deployment of its own."""
        with get_client(sync_client=True) as client:
            deployment = client.create_deployment(client.create_flow(dispatch), f"of-a-test-{uuid4()}")
            made = client.create_flow_run_from_deployment(deployment)
        return cls(given(folder, **changes), made.id)

    @property
    def state(self) -> State[Any]:
        """The state that Prefect has."""
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(self.id).state
        assert state is not None
        return state

    def set(self, state: State[Any], *, force: bool = False) -> None:
        """Set the state, as somebody else does."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self.id, state, force=force)

    def work(self) -> State[Any]:
        """Take the run up, as a worker does, until its process ends; return the state that it is in then."""
        self.set(Pending())
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(self.id)
        try:
            state: Any = run_flow(dispatch, flow_run=found, parameters=self.parameters, return_type="state")
        except Pause:
            return self.state
        return cast("State[Any]", state)

    def form(self) -> Schema:
        """Return the form that stands in Prefect's UI, and what stands above it."""
        keys = self.state.state_details.run_input_keyset
        assert keys is not None
        with get_client(sync_client=True) as client:
            schema = json.loads(client.read_flow_run_input(self.id, keys["schema"]))
            above = json.loads(client.read_flow_run_input(self.id, keys["description"]))
        return {**schema, "above": above}

    def decide(self, **answers: str) -> None:
        """Send the form, each answer under a word of the title of its field."""
        form = self.form()["properties"]
        resume_flow_run(self.id, run_input={field(form, title): answer for title, answer in answers.items()})

    def report(self) -> Report:
        """Take the run up, and return the report that it ends with."""
        return cast("Report", self.work().result(raise_on_failure=False))


def field(form: Schema, title: str) -> str:
    """Return the name of the field with a title."""
    (name,) = [name for name, each in form.items() if title in each["title"]]
    return name


def test_what_people_decide_is_kept_and_used(tmp_path: Path) -> None:
    """Suspended for as long as it takes; resumed it asks nothing again; the next run has nothing to decide."""
    scripted = ScriptedExecutor(SAID)
    deployed = Deployed.of(tmp_path, executor=scripted)
    state = deployed.work()
    assert (state.type, state.name) == (StateType.PAUSED, "NeedsReview")
    assert state.state_details.pause_reschedule
    assert "2 to decide, until " in str(state.message)
    form = deployed.form()
    assert [each["title"] for each in form["properties"].values()] == [
        "1. One or two: MIT | MIT License",
        "2. year of MIT",
    ]
    assert "2 to decide" in form["above"]
    deployed.decide(**{"One or two": "same", "year of MIT": "2. 1987 (from licences/a)"})
    assert (deployed.state.type, deployed.state.name) == (StateType.SCHEDULED, "Resuming")
    state = deployed.work()
    report = cast("Report", state.result())
    assert (state.name, report.status) == ("Completed", "complete")
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}
    kept = Decisions(
        same=(({"name": "MIT"}, {"name": "MIT License"}),),
        fields=(Choice(record={"name": "MIT"}, field="year", value=1987),),
    )
    assert report.decided == decisions(tmp_path).load() == kept
    assert [row.rule for row in report.fields if row.path == "/records/0/year"] == ["decided"]
    assert notes(tmp_path) == []

    again = Deployed.of(tmp_path, executor=scripted).report()
    assert (again.value, again.decided) == (report.value, Decisions())
    assert scripted.calls == 3


@pytest.mark.slow
def test_what_was_paid_before_a_review_is_not_paid_again(store: Path, tmp_path: Path) -> None:
    """Not for `refresh`, not for what failed; and the report and the budget count what was spent before it."""
    said: dict[str, JsonValue] = {key: value for key, value in SAID.items() if key != "c"}
    scripted = ScriptedExecutor({**said, "c": "nonsense"})
    limits = Limits(retries=0, reasks=0, budget_requests=3)
    deployed = Deployed.of(tmp_path, executor=scripted, integrator=RECORDS, limits=limits, refresh=True)
    assert deployed.work().name == "NeedsReview"
    deployed.decide(**{"year of MIT": "2. 1987 (from licences/a)"})
    records = list(store.glob("*review*"))
    report = deployed.report()
    assert scripted.calls == 3
    assert (report.usage.asked, report.usage.requests, report.plan["to_ask"]) == (3, 3, 3)
    assert [(gap.item, gap.error.kind) for gap in report.gaps] == [("c", "invalid_output")]
    assert decided_year(report) == 1987
    assert len(records) == 1
    assert list(store.glob("*review*")) == []


def decided_year(report: Report) -> JsonValue:
    """Return the year that a report has for its first record, where that was decided."""
    (row,) = [row for row in report.fields if row.path == "/records/0/year"]
    assert row.rule == "decided"
    return row.winner


@pytest.mark.slow
def test_an_item_that_came_during_a_review_is_asked_under_the_same_budget(tmp_path: Path) -> None:
    """What is new is asked when the run goes on, as long as the budget holds it; what is gone is left out."""
    file = tmp_path / "items.jsonl"

    def write(*keys: str) -> None:
        file.write_text("".join(f'{{"key": "{key}", "text": "{key}"}}\n' for key in keys))

    write("a", "b")
    scripted = ScriptedExecutor({**SAID, "d": {"name": "BSD", "year": 1990}})
    deployed = Deployed.of(
        tmp_path,
        items={"jsonl": "items.jsonl", "key": "key"},
        executor=scripted,
        integrator=RECORDS,
        limits=Limits(retries=0, budget_requests=3, concurrency=1),
    )
    assert deployed.work().name == "NeedsReview"
    deployed.decide(**{"year of MIT": "2. 1987 (from licences/a)"})
    write("a", "c", "d")
    report = deployed.report()
    assert scripted.calls == 3
    assert [(row.item, row.disposition) for row in report.ledger] == [
        ("a", "merged"),
        ("c", "merged"),
        ("d", "skipped"),
    ]
    assert [gap.error.kind for gap in report.gaps] == ["budget"]
    assert report.usage.requests == 2, "what was asked for an item that is gone isn't in this report"


@pytest.mark.slow
def test_what_is_left_open_stays_and_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    """A form sent as it stands decides nothing: no file, no shortfall, and the same form next time."""
    first = Deployed.of(tmp_path)
    first.work()
    resume_flow_run(first.id, run_input={})
    report = first.report()
    assert (report.status, len(report.proposals)) == ("complete", 1)
    assert not (tmp_path / "decisions.yaml").exists()
    assert notes(tmp_path) == []
    second = Deployed.of(tmp_path)
    second.work()
    assert second.form() == first_form(first)
    second.decide(**{"One or two": "different", "year": "leave open"})
    report = second.report()
    assert report.value == {"records": [{"name": "MIT", "year": 1988}, {"name": "MIT License", "year": 1987}]}
    assert len(decisions(tmp_path).load().different) == 1


def first_form(deployed: Deployed) -> Schema:
    """Return the form of the one pause of a run that is over."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(deployed.id)
        (keys,) = [state.state_details.run_input_keyset for state in states if state.is_paused()]
        assert keys is not None
        schema = json.loads(client.read_flow_run_input(deployed.id, keys["schema"]))
        above = json.loads(client.read_flow_run_input(deployed.id, keys["description"]))
    return {**schema, "above": above}


@pytest.mark.slow
def test_what_a_decision_brings_up_is_asked_next(tmp_path: Path) -> None:
    """Two records made one differ on a year that was no question before: the run is suspended once more for it."""
    said: dict[str, JsonValue] = {"a": {"name": "MIT", "year": 1988}, "b": {"name": "MIT License", "year": 1987}}
    scripted = ScriptedExecutor(said)
    deployed = Deployed.of(tmp_path, items=list(said), executor=scripted)
    deployed.work()
    deployed.decide(**{"One or two": "same"})
    assert deployed.work().name == "NeedsReview"
    deployed.decide(**{"year of MIT": "2. 1987 (from licences/b)"})
    report = deployed.report()
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}
    assert (len(report.decided.same), len(report.decided.fields)) == (1, 1)
    assert scripted.calls == 2


@pytest.mark.slow
def test_of_two_people_who_answer_one_form_the_first_wins(tmp_path: Path) -> None:
    """The second one is told that the run isn't paused any more; an answer that is no option is refused before that."""
    deployed = Deployed.of(tmp_path)
    deployed.work()
    form = deployed.form()["properties"]
    with pytest.raises(RuntimeError, match="is not one of"):
        resume_flow_run(deployed.id, run_input={field(form, "One or two"): "both"})
    deployed.decide(**{"One or two": "different"})
    with pytest.raises(NotPausedError):
        resume_flow_run(deployed.id, run_input={field(form, "One or two"): "same"})
    report = deployed.report()
    assert (len(report.decided.different), report.decided.same) == (1, ())


@pytest.mark.slow
def test_of_two_runs_that_ask_the_same_the_first_answer_wins(tmp_path: Path) -> None:
    """The second run follows it, and says so in its report and its state; what nobody decided before it adds."""
    first, second = Deployed.of(tmp_path), Deployed.of(tmp_path)
    first.work()
    second.work()
    first.decide(**{"One or two": "different"})
    second.decide(**{"One or two": "same", "year of MIT": "2. 1987 (from licences/a)"})
    assert first.report().status == "complete"
    state = second.work()
    report = cast("Report", state.result())
    assert state.name == "CompletedWithGaps"
    assert report.shortfalls == (
        "Decided otherwise before this review was answered, and kept: One or two: MIT | MIT License.",
    )
    assert report.shortfalls[0] in str(state.message)
    assert report.decided == Decisions(fields=(Choice(record={"name": "MIT"}, field="year", value=1987),))
    assert report.value == {"records": [{"name": "MIT", "year": 1987}, {"name": "MIT License", "year": 1987}]}
    assert (decisions(tmp_path).load().same, len(decisions(tmp_path).load().different)) == ((), 1)


@pytest.mark.slow
def test_an_answer_to_a_run_that_did_not_go_on_is_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resumed, and cancelled before a worker took it up: the next run has the answer; an earlier decision stays."""
    first = Deployed.of(tmp_path)
    first.work()
    first.decide(**{"One or two": "same", "year": "2. 1987 (from licences/a)"})
    first.set(Cancelled(), force=True)
    decisions(tmp_path).add(Decisions(different=(({"name": "MIT"}, {"name": "MIT License"}),)))
    report = run(tmp_path)
    assert report.value == {"records": [{"name": "MIT", "year": 1987}, {"name": "MIT License", "year": 1987}]}
    assert "and later, so the earlier decision stays: One or two: MIT | MIT License" in caplog.text
    assert notes(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["cancelled", "expired", "deleted"])
def test_a_form_that_cannot_be_sent_any_more_is_forgotten(ending: str, store: Path, tmp_path: Path) -> None:
    """Its run was cancelled in the UI, has waited too long, or is deleted: the next run removes its note and record."""
    deployed = Deployed.of(tmp_path)
    deployed.work()
    elsewhere, broken = (tmp_path / f".decisions.yaml.review-{name}.json" for name in ("elsewhere", "broken"))
    (note,) = notes(tmp_path)
    elsewhere.write_text(note.read_text().replace(str(PREFECT_API_URL.value()), "http://127.0.0.1:9/api"))
    broken.write_text("{}")
    run(tmp_path)
    assert note.exists(), "the run waits, so an answer may come"
    if ending == "cancelled":
        deployed.set(Cancelling())  # what the button does
        assert deployed.state.name == "Cancelled"
    elif ending == "expired":
        deployed.set(Failed(message="The flow was paused and never resumed."), force=True)
    else:
        with get_client(sync_client=True) as client:
            client.delete_flow_run(deployed.id)
    run(tmp_path)
    assert notes(tmp_path) == [broken, elsewhere]
    assert list(store.glob("*review*")) == []


@pytest.mark.slow
def test_a_run_that_is_retried_after_it_has_waited_too_long_asks_again(tmp_path: Path) -> None:
    """Retry in the UI is a new attempt: the same form, and an answer to it counts."""
    deployed = Deployed.of(tmp_path, limits=Limits(retries=0, review_s=1))
    waits = deployed.work().state_details.pause_timeout
    assert waits is not None
    deployed.set(Failed(message="The flow was paused and never resumed."), force=True)
    deployed.parameters = given(tmp_path)
    deployed.set(Scheduled(name="AwaitingRetry"))
    assert deployed.work().name == "NeedsReview"
    deployed.decide(**{"One or two": "same", "year": "2. 1987 (from licences/a)"})
    assert deployed.report().value == {"records": [{"name": "MIT", "year": 1987}]}


@pytest.mark.slow
def test_without_a_shared_result_storage_a_resumed_run_fails_before_it_asks(store: Path, tmp_path: Path) -> None:
    """Another machine that finds nothing of what was answered would pay for all of it again; the decision is kept."""
    scripted = ScriptedExecutor(SAID)
    deployed = Deployed.of(tmp_path, executor=scripted)
    deployed.work()
    deployed.decide(**{"One or two": "same"})
    rmtree(store)
    with pytest.raises(DispatchError, match="share no result storage"):
        deployed.work().result()
    assert scripted.calls == 3
    assert len(decisions(tmp_path).load().same) == 1


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["note", "file"])
def test_a_worker_with_another_copy_of_the_folder_applies_the_answer(gone: str, tmp_path: Path) -> None:
    """The note of the form is only for later runs: the run itself finds its answer in Prefect."""
    deployed = Deployed.of(tmp_path)
    deployed.work()
    deployed.decide(**{"One or two": "same", "year": "2. 1987 (from licences/a)"})
    if gone == "note":
        for note in notes(tmp_path):
            note.unlink()
    else:
        deployed.parameters["folder"] = str(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
    report = deployed.report()
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}
    assert len(report.decided.same) == 1


@pytest.mark.slow
def test_a_file_that_breaks_during_a_review_loses_no_decision(tmp_path: Path) -> None:
    """The run fails with what is wrong in the file; once that is corrected, the next run has the decision."""
    deployed = Deployed.of(tmp_path)
    deployed.work()
    deployed.decide(**{"One or two": "same", "year": "2. 1987 (from licences/a)"})
    decisions(tmp_path).path.write_text("same: 3")
    state = deployed.work()
    assert state.is_failed()
    assert "The decisions file 'decisions.yaml' is not a mapping" in str(state.message)
    decisions(tmp_path).path.unlink()
    assert run(tmp_path).value == {"records": [{"name": "MIT", "year": 1987}]}


class Stopped(Linking):
    """Merges while the run is being ended."""

    state = staticmethod(Cancelled)

    def with_decisions(self, decisions: Decisions) -> Stopped:
        """Follow these decisions."""
        return type(self)(self.aliases, decisions)

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run.get_id()), self.state(), force=True)
        return super().merge(briefs, outcomes)


class Stopping(Stopped):
    """Merges while the run begins to be ended."""

    state = staticmethod(Cancelling)


@pytest.mark.slow
@pytest.mark.parametrize("integrator", [Stopped(), Stopping()])
def test_a_run_that_is_cancelled_before_its_review_is_not_suspended(integrator: Linking, tmp_path: Path) -> None:
    """It ends as cancelled, publishes its answers without a merged value, and leaves no form."""
    deployed = Deployed.of(tmp_path, integrator=integrator, out=str(tmp_path / "out"))
    assert deployed.work().is_cancelled()
    assert notes(tmp_path) == []
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["run"]["cancelled"], report["value"], report["run"].get("review")) == (True, None, None)


@pytest.mark.slow
def test_a_run_without_a_deployment_says_what_is_open_and_where_to_decide(tmp_path: Path) -> None:
    """It ends at once, as NeedsReview with gaps; with the lines that it gives in the file, the next run is complete."""
    out = tmp_path / "out"
    state = run(tmp_path, out=str(out), return_state=True)
    assert (state.type, state.name) == (StateType.COMPLETED, "NeedsReview")
    report: Report = state.result()
    assert report.status == "gaps"
    (shortfall,) = report.shortfalls
    assert shortfall == (
        "Not decided: 2 open among proposals and conflicts. Decide in 'decisions.yaml', for which to-decide.md has the "
        "lines; the next run follows it."
    )
    assert report.run["review"] == {"open": 2, "decisions": str(tmp_path / "decisions.yaml")}
    lines = (out / "to-decide.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert lines == (
        'same:\n- [{"name": "MIT"}, {"name": "MIT License"}]\n'
        'fields:\n- {"record": {"name": "MIT"}, "field": "year", "value": 1988}\n'
        '# - {"record": {"name": "MIT"}, "field": "year", "value": 1987}\n'
    )
    assert audit_report(out).violations == ()
    decisions(tmp_path).path.write_text(lines)
    report = run(tmp_path)
    assert (report.status, report.shortfalls) == ("complete", ())
    assert report.value == {"records": [{"name": "MIT", "year": 1988}]}


@pytest.mark.slow
def test_a_field_of_one_of_two_equal_names_is_decided_on_by_what_tells_them_apart(tmp_path: Path) -> None:
    """Records that contradict each other in a compared field are named with it, in the pair and in the conflict."""
    said: dict[str, JsonValue] = {
        "a": {"name": "Ann", "year": 1950, "town": "Rome"},
        "b": {"name": "Ann", "year": 1950, "town": "Oslo"},
        "c": {"name": "Ann", "year": 1999, "town": "Bath"},
    }
    integrator = MergeRecords.model_validate(
        {"identity": ["name"], "match": {"fields": ["year"]}, "aliases": "decisions.yaml"}
    )
    output: dict[str, Any] = {"type": "object", "properties": {"name": {}, "year": {}, "town": {}}}
    brief = BRIEF.model_copy(update={"output": output})
    job = {"briefs": [brief], "items": list(said), "executor": ScriptedExecutor(said), "integrator": integrator}
    out = tmp_path / "out"
    assert run(tmp_path, out=str(out), **job).status == "gaps"
    lines = (out / "to-decide.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert lines == (
        'same:\n- [{"name": "Ann", "year": 1950}, {"name": "Ann", "year": 1999}]\n'
        'fields:\n- {"record": {"name": "Ann", "year": 1950}, "field": "town", "value": "Oslo"}\n'
        '# - {"record": {"name": "Ann", "year": 1950}, "field": "town", "value": "Rome"}\n'
    )
    decisions(tmp_path).path.write_text(lines.replace("same", "different").replace('"Oslo"', '"Rome"'))
    report = run(tmp_path, **job)
    assert (report.status, report.proposals) == ("complete", ())
    assert [record["town"] for record in report.value["records"]] == ["Rome", "Bath"]


@pytest.mark.slow
def test_a_field_of_two_records_of_one_name_is_not_decided_on_for_both(tmp_path: Path) -> None:
    """Where a learned model keeps equal names apart, a decision that names a record by its name alone isn't offered."""
    names = [f"{given} {family}" for given in ("Ann", "Bert", "Cleo", "Dora") for family in ("Wong", "Lee", "Kim")]
    said: dict[str, JsonValue] = {}
    for at, name in enumerate(names):
        common: dict[str, JsonValue] = {"name": name, "year": 1940 + at, "phone": f"{5550000 + at * 37}"}
        said |= {f"{at}-left": {**common, "town": f"Town {at}"}, f"{at}-right": {**common, "town": f"Ville {at}"}}
    said["other"] = {"name": "Ann Wong", "year": 1999, "phone": "8881234", "town": "Bath"}
    integrator = MergeRecords.model_validate(
        {"identity": ["name"], "match": {"model": "learned"}, "aliases": "decisions.yaml"}
    )
    output: dict[str, Any] = {"type": "object", "properties": {"name": {}, "year": {}, "phone": {}, "town": {}}}
    brief = BRIEF.model_copy(update={"output": output})
    out = tmp_path / "out"
    executor = ScriptedExecutor(said)
    report = run(tmp_path, briefs=[brief], items=list(said), executor=executor, integrator=integrator, out=str(out))
    assert [record["year"] for record in report.value["records"] if record["name"] == "Ann Wong"] == [1940, 1999]
    to_decide = (out / "to-decide.md").read_text()
    assert '"Bert Lee"' in to_decide
    assert '"Ann Wong"' not in to_decide


@pytest.mark.slow
def test_inside_a_flow_of_a_users_the_report_comes_back_at_once(tmp_path: Path) -> None:
    """Prefect suspends no subflow, whether or not its parent is deployed; the caller sees that it isn't decided."""

    @flow
    def pipeline() -> Report:
        return cast("Report", run(tmp_path))

    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(pipeline), f"of-a-test-{uuid4()}")
        made = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(made.id, Pending())
        for report in (pipeline(), cast("Report", run_flow(pipeline, flow_run=client.read_flow_run(made.id)))):
            assert (report.status, len(report.proposals)) == ("gaps", 1)
            assert report.shortfalls[0].startswith("Not decided: 2 open")
            own: Any = report.run["flow_run"]
            state = client.read_flow_run(UUID(own["id"])).state
            assert state is not None
            assert state.name == "NeedsReview"


class Handing(Linking):
    """Hands its value over to something else."""

    def __init__(self, aliases: str | None = "decisions.yaml", decisions: Decisions | None = None) -> None:
        """Begin with nothing handed over."""
        super().__init__(aliases, decisions)
        self.handed: list[JsonValue] = []

    def resolve_paths(self, folder: Path) -> Handing:
        """Follow what the file says."""
        self.decisions = DecisionsFile(folder / str(self.aliases)).load()
        return self

    def with_decisions(self, decisions: Decisions) -> Handing:
        """Follow these decisions."""
        self.decisions = decisions
        return self

    def deliver(self, value: JsonValue, folder: Path) -> Delivery:
        """Hand it over."""
        self.handed.append(value)
        return Delivery(done="Handed over.")


@pytest.mark.slow
def test_nothing_is_delivered_before_it_is_decided(tmp_path: Path) -> None:
    """A report says what is open; whatever the value is for gets it from the run in which nothing is."""
    integrator = Handing()
    run(tmp_path, integrator=integrator)
    assert integrator.handed == []
    both = Decisions(
        same=(({"name": "MIT"}, {"name": "MIT License"}),),
        fields=(Choice(record={"name": "MIT"}, field="year", value=1987),),
    )
    decisions(tmp_path).add(both)
    run(tmp_path, integrator=integrator)
    assert integrator.handed == [{"records": [{"name": "MIT", "year": 1987}]}]


JOB = {
    "briefs": [BRIEF.model_dump(mode="json", include={"name", "instructions", "output"})],
    "items": [{"key": "a", "value": "MIT 1987"}, {"key": "b", "value": "MIT 1988"}],
    "executor": {"kind": "python", "function": "said:said"},
    "integrator": {"kind": "merge_records", "identity": ["name"], "rules": {"year": "max"}, "aliases": "decided.yaml"},
    "review": True,
}


@pytest.mark.slow
def test_the_command_line_exits_3_and_says_where_to_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the file and the lines for it; the same command applies what stands there, and exits 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "said.py").write_text(
        "def said(item):\n    name, year = item.value.split()\n    return {'name': name, 'year': int(year)}\n"
    )
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    assert main(["run", "job.json", "--out", "out"]) == GAPS
    told = capsys.readouterr().out
    file = tmp_path / "decided.yaml"
    assert f"Decide in {file} (lines for it: out/to-decide.md), and run the same command again." in told
    assert main(["run", "job.json"]) == GAPS
    assert "(lines for it: the run's artifacts; --out DIR writes them to to-decide.md)" in capsys.readouterr().out
    file.write_text((tmp_path / "out" / "to-decide.md").read_text().split("```yaml\n")[1].split("```")[0])
    assert main(["run", "job.json", "--out", "out"]) == 0
    assert not (tmp_path / "out" / "to-decide.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("integrator", "told"),
    [
        pytest.param(Collate(), "Collate leaves nothing to decide", id="cannot"),
        pytest.param(None, "Collate leaves nothing to decide", id="by-default"),
        pytest.param(Linking(aliases=None), "integrator.aliases", id="no-file"),
        pytest.param(Linking(aliases="job.yaml/decisions.yaml"), "can't be written to", id="no-folder"),
    ],
)
def test_a_review_that_cannot_be_kept_is_refused_first(integrator: object, told: str, tmp_path: Path) -> None:
    """Refused in a sentence before anything is asked."""
    (tmp_path / "job.yaml").write_text("")
    scripted = ScriptedExecutor(SAID)
    with pytest.raises(JobError, match=told):
        run(tmp_path, integrator=integrator, executor=scripted)
    assert scripted.calls == 0


def test_a_broken_file_of_decisions_is_refused_first(tmp_path: Path) -> None:
    """What can't be read can't be added to."""
    (tmp_path / "decisions.yaml").write_text("same: 3")
    scripted = ScriptedExecutor(SAID)
    with pytest.raises(JobError, match="decisions file"):
        run(tmp_path, executor=scripted)
    assert scripted.calls == 0


@pytest.mark.slow
def test_decisions_of_others_are_kept(tmp_path: Path) -> None:
    """What stood in the file still stands there after a review, what was decided meanwhile included."""
    other = Decisions(different=(({"name": "X"}, {"name": "Y"}),))
    meanwhile = Decisions(same=(({"name": "V"}, {"name": "W"}),))
    decisions(tmp_path).add(other)
    deployed = Deployed.of(tmp_path)
    deployed.work()
    decisions(tmp_path).add(meanwhile)
    deployed.decide(**{"One or two": "same", "year": "2. 1987 (from licences/a)"})
    deployed.report()
    kept = decisions(tmp_path).load()
    assert kept.different == other.different
    assert kept.same == (({"name": "MIT"}, {"name": "MIT License"}), *meanwhile.same)


@pytest.mark.slow
def test_a_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """A form that was sent before the update isn't lost: its note has the same fields as today's."""
    deployed = Deployed.of(tmp_path)
    deployed.work()
    deployed.decide(**{"One or two": "same"})
    (note,) = notes(tmp_path)
    assert json.loads(note.read_text()).keys() == {"api", "flow_run", "key", "form"}
    collect_answers(decisions(tmp_path))
    assert len(decisions(tmp_path).load().same) == 1


@pytest.mark.slow
def test_what_agents_say_cannot_act_in_the_form(tmp_path: Path) -> None:
    """Markup, control characters and templates in names stand there as text, and are taken back as what they are."""
    hostile = "MIT<img src=x onerror=alert(1)> {{ 1 + 1 }} [a](http://e.example)\u202e\x1b[31m\n# head"
    said: dict[str, JsonValue] = {"a": {"name": "MIT", "year": 1}, "b": {"name": hostile, "year": 1}}
    deployed = Deployed.of(tmp_path, items=list(said), executor=ScriptedExecutor(said))
    deployed.work()
    form = deployed.form()
    assert not {"<", "\x1b", "\u202e"} & set(form["above"])
    assert "](" not in form["above"]
    assert "# head" not in form["above"]
    (shown,) = form["properties"].values()
    assert shown["title"].isprintable()
    deployed.decide(**{"One or two": "same"})
    report = deployed.report()
    assert report.decided.same == (({"name": "MIT"}, {"name": hostile}),)
    assert decisions(tmp_path).load().same == report.decided.same


@pytest.mark.slow
def test_what_a_decisions_file_has_no_words_for_is_not_asked(tmp_path: Path) -> None:
    """A field with a dot in its name, a field of an element of a list: the run goes on without a form."""
    said: dict[str, JsonValue] = {
        key: {"name": "MIT", "a.b": at, "authors": [{"id": 1, "born": at}]} for at, key in enumerate(SAID)
    }
    integrator = MergeRecords.model_validate(
        {
            "identity": ["name"],
            "rules": {"a.b": "max", "authors": {"rule": "union", "identity": ["id"]}},
            "aliases": "decisions.yaml",
        }
    )
    anything = Brief(name="licences", instructions="Name it.", output={"type": "object"})
    report = run(tmp_path, briefs=[anything], executor=ScriptedExecutor(said), integrator=integrator)
    assert report.shortfalls == ()
    assert {row.path for row in report.fields if row.losers} == {"/records/0/a.b", "/records/0/authors/0/born"}
