"""The human gate: who is asked what, what becomes of the answer, and what happens where none comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling

from prefect_dispatch import Brief, Collate, Limits, MergeRecords, dispatch
from prefect_dispatch.decisions import Choice, Decisions
from prefect_dispatch.decisions_file import DecisionsFile
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.flows.pause import gather
from prefect_dispatch.flows.review import require_review
from prefect_dispatch.progress import announce
from prefect_dispatch.testing import ScriptedExecutor
from tests.flows.linking import Linking

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often whether a run was resumed."""
    monkeypatch.setattr("prefect_dispatch.flows.pause.POLL_S", 0.1)


def decisions(folder: Path) -> DecisionsFile:
    """Return the decisions file of the job."""
    return DecisionsFile(folder / "decisions.yaml")


def run(folder: Path, *, review_s: float = 60, **changes: Any) -> Any:  # noqa: ANN401 -- any parameter of the flow; a report, or a state
    """Run the job with a review."""
    given: dict[str, Any] = {
        "executor": ScriptedExecutor(SAID),
        "integrator": Linking(),
        "limits": Limits(retries=0, review_s=review_s),
        "review": True,
        "folder": str(folder),
    }
    return dispatch([BRIEF], list(SAID), **{**given, **changes})


@contextmanager
def reviewer(*answers: Callable[[Schema], Mapping[str, str]]) -> Generator[list[Schema]]:
    """Answer form after form as soon as each stands there; yields the forms."""
    forms: list[Schema] = []

    def work() -> None:
        for answer in answers:
            run_id, form = paused()
            forms.append(form)
            resume_flow_run(run_id, run_input=dict(answer(form["properties"])))

    thread = threading.Thread(target=copy_context().run, args=(work,))
    thread.start()
    yield forms
    thread.join()


def paused() -> tuple[UUID, Schema]:
    """Wait for a run that is paused, and return it with its form and what stands above it."""
    only = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    end = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            for found in client.read_flow_runs(flow_run_filter=only):
                assert found.state is not None
                keys = found.state.state_details.run_input_keyset
                assert keys is not None
                try:
                    schema = json.loads(client.read_flow_run_input(found.id, keys["schema"]))
                    above = json.loads(client.read_flow_run_input(found.id, keys["description"]))
                except Exception:  # noqa: BLE001, S112 -- a moment later it is there
                    continue
                return found.id, {**schema, "above": above}
            time.sleep(0.05)
    pytest.fail("no run paused within 60 s")


def field(form: Schema, title: str) -> str:
    """Return the name of the field with a title."""
    (name,) = [name for name, each in form.items() if title in each["title"]]
    return name


def test_what_people_decide_is_kept_and_used(tmp_path: Path) -> None:
    """Same, and another year: merged by that at once, kept in the file; the next run neither asks nor pauses."""
    scripted = ScriptedExecutor(SAID)

    def first(form: Schema) -> dict[str, str]:
        assert [each["title"] for each in form.values()] == ["1. One or two: MIT | MIT License", "2. year of MIT"]
        return {field(form, "One or two"): "same", field(form, "year of MIT"): "2. 1987 (from licences/a)"}

    with reviewer(first) as forms:
        report = run(tmp_path, executor=scripted)
    assert "2 to decide" in forms[0]["above"]
    assert report.status == "complete"
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}
    kept = Decisions(
        same=(({"name": "MIT"}, {"name": "MIT License"}),),
        fields=(Choice(record={"name": "MIT"}, field="year", value=1987),),
    )
    assert report.decided == decisions(tmp_path).load() == kept
    assert [row.rule for row in report.fields if row.path == "/records/0/year"] == ["decided"]

    again = run(tmp_path, executor=scripted)
    assert again.value == report.value
    assert again.decided == Decisions()
    assert scripted.calls == 3
    assert [path.name for path in tmp_path.iterdir() if ".review-" in path.name] == []


def test_what_is_left_open_stays_and_is_asked_again(tmp_path: Path) -> None:
    """A form sent as it stands decides nothing: no file, no shortfall, and the same form next time."""
    with reviewer(lambda _: {}) as first:
        report = run(tmp_path)
    assert (report.status, len(report.proposals)) == ("complete", 1)
    assert not (tmp_path / "decisions.yaml").exists()
    with reviewer(
        lambda form: {field(form, "One or two"): "different", field(form, "year"): "1. 1988 (from licences/b)"}
    ) as second:
        report = run(tmp_path)
    assert first == second
    assert report.value == {"records": [{"name": "MIT", "year": 1988}, {"name": "MIT License", "year": 1987}]}
    assert run(tmp_path).proposals == ()


def test_what_a_decision_brings_up_is_asked_next(tmp_path: Path) -> None:
    """Two records made one differ on a year that nobody had to decide on before: a second form asks for it."""
    said: dict[str, JsonValue] = {"a": {"name": "MIT", "year": 1988}, "b": {"name": "MIT License", "year": 1987}}
    with reviewer(
        lambda form: {field(form, "One or two"): "same"},
        lambda form: {field(form, "year of MIT"): "2. 1987 (from licences/b)"},
    ) as forms:
        report = dispatch(
            [BRIEF],
            list(said),
            executor=ScriptedExecutor(said),
            integrator=Linking(),
            limits=Limits(review_s=60),
            review=True,
            folder=str(tmp_path),
        )
    assert [len(form["properties"]) for form in forms] == [1, 1]
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}


def test_where_nobody_decides_the_report_is_published_and_says_so(tmp_path: Path) -> None:
    """The time is over: undecided, complete with gaps, and the run has not failed in Prefect."""
    heard: list[str] = []
    token = announce.set(heard.append)
    try:
        state = run(tmp_path, review_s=1, return_state=True)
    finally:
        announce.reset(token)
    report: Report = state.result()
    assert "press Resume at http" in heard[0]
    assert report.status == "gaps"
    assert report.shortfalls == ("Nobody decided within 1 s: 2 open among proposals and conflicts.",)
    run_id: Any = report.run["flow_run"]
    with get_client(sync_client=True) as client:
        kept = client.read_flow_run(UUID(run_id["id"])).state
    assert kept is not None
    assert (kept.type, kept.name) == (StateType.COMPLETED, "CompletedWithGaps")
    assert list(tmp_path.glob("*decisions.yaml*")) == []


@contextmanager
def other_process(folder: Path) -> Generator[tuple[UUID, Schema]]:
    """Run the job in a process of its own until it pauses, and kill it there; yields the run and its form."""
    program = f"from pathlib import Path; from tests.flows.test_review import run; run(Path({str(folder)!r}))"
    process = subprocess.Popen(  # noqa: S603 -- our own program
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(folder / "home")},
        start_new_session=True,
    )
    try:
        yield paused()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_an_answer_to_a_run_that_died_is_not_lost(tmp_path: Path) -> None:
    """Killed while its form stands in Prefect, which somebody sends all the same: the next run has the answer."""
    with other_process(tmp_path) as (run_id, form):
        pass
    assert len(list(tmp_path.glob(".decisions.yaml.review-*.json"))) == 1
    open_still = {field(form["properties"], "year"): "2. 1987 (from licences/a)"}
    resume_flow_run(run_id, run_input={field(form["properties"], "One or two"): "same", **open_still})
    report = run(tmp_path)
    assert report.value == {"records": [{"name": "MIT", "year": 1987}]}
    assert len(decisions(tmp_path).load().same) == 1
    assert list(tmp_path.glob(".*.json")) == []


@pytest.mark.slow
def test_a_form_that_nobody_can_send_any_more_is_forgotten(tmp_path: Path) -> None:
    """A run that was killed and cancelled leaves a note, which the next run looks into and removes."""
    with other_process(tmp_path) as (run_id, _):
        pass
    elsewhere = tmp_path / ".decisions.yaml.review-elsewhere.json"
    (note,) = tmp_path.glob(".decisions.yaml.review-*.json")
    elsewhere.write_text(note.read_text().replace(str(PREFECT_API_URL.value()), "http://127.0.0.1:9/api"))
    broken = tmp_path / ".decisions.yaml.review-broken.json"
    broken.write_text("{}")
    gather(decisions(tmp_path))
    assert note.exists(), "the run is paused, somebody may still decide"
    with get_client(sync_client=True) as client:
        client.delete_flow_run(run_id)
    gather(decisions(tmp_path))
    assert sorted(tmp_path.glob(".*")) == [broken, elsewhere]


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


def test_decisions_of_others_are_kept(tmp_path: Path) -> None:
    """What stood in the file still stands there after a review, what somebody decided meanwhile included."""
    other = Decisions(different=(({"name": "X"}, {"name": "Y"}),))
    meanwhile = Decisions(same=(({"name": "V"}, {"name": "W"}),))
    decisions(tmp_path).add(other)

    def answer(form: Schema) -> dict[str, str]:
        decisions(tmp_path).add(meanwhile)
        return {field(form, "One or two"): "same"}

    with reviewer(answer, lambda _: {}):
        run(tmp_path)
    kept = decisions(tmp_path).load()
    assert kept.different == other.different
    assert kept.same == (({"name": "MIT"}, {"name": "MIT License"}), *meanwhile.same)


def stop(run_id: UUID, state: State[Any]) -> None:
    """Set the state of a run, as somebody else does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, state, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "state",
    [
        pytest.param(Cancelled(), id="cancelled"),
        pytest.param(Cancelling(), id="in-the-ui-without-a-worker"),
    ],
)
def test_a_run_that_is_cancelled_at_the_gate_ends_as_cancelled(state: State[Any], tmp_path: Path) -> None:
    """It waits no longer, nothing is published, and nobody is asked for it any more; its answers are stored."""
    thread = threading.Thread(target=copy_context().run, args=(lambda: stop(paused()[0], state),))
    thread.start()
    scripted = ScriptedExecutor(SAID)
    ended = run(tmp_path, review_s=3600, executor=scripted, out=str(tmp_path / "out"), return_state=True)
    thread.join()
    assert ended.is_cancelled()
    with get_client(sync_client=True) as client:
        kept = client.read_flow_run(ended.state_details.flow_run_id).state
    assert kept is not None
    assert kept.is_cancelled()
    failure = ended.result(raise_on_failure=False)
    assert isinstance(failure, DispatchFailed)
    assert failure.report.status == "failed"
    assert failure.report.message == "The run was cancelled before people had decided. 3 of 3 answered."
    assert list((tmp_path / "out").iterdir()) == []
    assert list(tmp_path.glob(".*.json")) == []
    run(tmp_path, review_s=1, executor=scripted)
    assert scripted.calls == len(SAID)


class Stopped(Linking):
    """Merges while somebody ends the run."""

    def decided(self, decisions: Decisions) -> Stopped:
        """Follow these decisions."""
        return type(self)(self.aliases, decisions)

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge."""
        stop(UUID(flow_run.get_id()), self.ended())
        return super().merge(briefs, outcomes)

    def ended(self) -> State[Any]:
        """Return the state that the run gets."""
        return Cancelled()


class Stopping(Stopped):
    """Merges while somebody begins to end the run."""

    def ended(self) -> State[Any]:
        """Return the state that the run gets."""
        return Cancelling()


@pytest.mark.parametrize("integrator", [Stopped(), Stopping()])
def test_a_run_that_is_cancelled_before_the_gate_does_not_pause(integrator: Linking, tmp_path: Path) -> None:
    """There is nobody to wait for."""
    with pytest.raises(DispatchFailed, match="cancelled before people had decided"):
        run(tmp_path, review_s=3600, integrator=integrator)
    assert list(tmp_path.glob(".*.json")) == []


def test_a_run_that_is_deleted_at_the_gate_ends(tmp_path: Path) -> None:
    """Prefect has no such run any more, and says so; nobody waits."""

    def delete() -> None:
        run_id, _ = paused()
        with get_client(sync_client=True) as client:
            client.delete_flow_run(run_id)

    thread = threading.Thread(target=copy_context().run, args=(delete,))
    thread.start()
    with pytest.raises(ObjectNotFound):
        run(tmp_path, review_s=3600)
    thread.join()
    assert list(tmp_path.glob(".*.json")) == []


def test_a_retry_asks_again_what_was_left_open(tmp_path: Path) -> None:
    """The same run comes to the same form once more: it pauses once more."""
    (tmp_path / "out" / "report.json").mkdir(parents=True)  # so both attempts fail when they write
    with reviewer(lambda _: {}, lambda _: {}) as forms, pytest.raises(IsADirectoryError):
        dispatch.with_options(retries=2)(  # Prefect counts a resumption as an attempt
            [BRIEF],
            list(SAID),
            executor=ScriptedExecutor(SAID),
            integrator=Linking(),
            limits=Limits(review_s=60),
            review=True,
            folder=str(tmp_path),
            out=str(tmp_path / "out"),
        )
    assert len(forms) == 2
    assert forms[0] == forms[1]


def test_a_file_that_breaks_meanwhile_loses_neither_report_nor_decision(tmp_path: Path) -> None:
    """The report says what is wrong with the file; once that is mended, the next run has the decision."""

    def answer(form: Schema) -> dict[str, str]:
        decisions(tmp_path).path.write_text("same: 3")
        return {field(form, "One or two"): "same", field(form, "year"): "2. 1987 (from licences/a)"}

    with reviewer(answer):
        report = run(tmp_path)
    assert report.status == "gaps"
    assert "What was decided could not be used: The decisions file 'decisions.yaml'" in report.message
    decisions(tmp_path).path.unlink()
    assert run(tmp_path).value == {"records": [{"name": "MIT", "year": 1987}]}


def test_without_a_server_of_ones_own_a_review_is_refused(tmp_path: Path) -> None:
    """Nobody could open the form: refused, with the two ways out."""
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(JobError, match="run without review and decide in"):
        require_review(Linking(), tmp_path)


def test_what_agents_say_cannot_act_in_the_form(tmp_path: Path) -> None:
    """Markup, control characters and templates in names stand there as text, and are taken back as what they are."""
    hostile = "MIT<img src=x onerror=alert(1)> {{ 1 + 1 }} [a](http://e.example)\u202e\x1b[31m\n# head"
    said: dict[str, JsonValue] = {"a": {"name": "MIT", "year": 1}, "b": {"name": hostile, "year": 1}}
    with reviewer(lambda form: {field(form, "One or two"): "same"}) as forms:
        report = dispatch(
            [BRIEF],
            list(said),
            executor=ScriptedExecutor(said),
            integrator=Linking(),
            limits=Limits(review_s=60),
            review=True,
            folder=str(tmp_path),
        )
    above = forms[0]["above"]
    assert not {"<", "\x1b", "\u202e"} & set(above)
    assert "](" not in above
    assert "# head" not in above
    (shown,) = forms[0]["properties"].values()
    assert shown["title"].isprintable()
    assert report.decided.same == (({"name": "MIT"}, {"name": hostile}),)
    assert decisions(tmp_path).load().same == report.decided.same


@pytest.mark.slow
def test_an_answer_in_the_last_moment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent before the time was over, though the run looks only after that: it is an answer."""
    monkeypatch.setattr("prefect_dispatch.flows.pause.POLL_S", 8)
    with reviewer(lambda form: {field(form, "One or two"): "same"}) as forms:
        report = run(tmp_path, review_s=5)
    assert len(forms) == 1
    assert len(decisions(tmp_path).load().same) == 1
    assert len(report.decided.same) == 1


@pytest.mark.slow
def test_an_answer_counts_that_comes_while_the_run_stops_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has seen that the time is over, and somebody is faster than what it does then."""
    first = True

    def resume(run_id: UUID, run_input: dict[str, Any]) -> None:
        nonlocal first
        if first:
            first = False
            resume_flow_run(run_id, run_input={field(paused()[1]["properties"], "One or two"): "same"})
        resume_flow_run(run_id, run_input=run_input)

    monkeypatch.setattr("prefect_dispatch.flows.pause.resume_flow_run", resume)
    report = run(tmp_path, review_s=1)
    assert len(report.decided.same) == 1
    assert report.shortfalls == ("Nobody decided within 1 s: 1 open among proposals and conflicts.",)


@pytest.mark.slow
def test_a_pause_that_prefect_ends_loses_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run can't be resumed in time, Prefect fails it; what came of it is written all the same."""
    monkeypatch.setattr("prefect_dispatch.flows.pause.GRACE_S", -4)
    run(tmp_path, review_s=5, out=str(tmp_path / "out"), return_state=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["shortfalls"] == ["Nobody decided within 5 s: 2 open among proposals and conflicts."]
    assert len(report["ledger"]) == 3


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
    report = dispatch(
        [anything],
        list(said),
        executor=ScriptedExecutor(said),
        integrator=integrator,
        limits=Limits(review_s=1),
        review=True,
        folder=str(tmp_path),
    )
    assert report.shortfalls == ()
    assert {row.path for row in report.fields if row.losers} == {"/records/0/a.b", "/records/0/authors/0/born"}
