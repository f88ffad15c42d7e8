"""The pilot of a run: what is asked first, what follows, and what is never paid for twice."""

from __future__ import annotations

import os
import pty
import select
from io import StringIO
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_runs import resume_flow_run
from prefect.utilities.callables import parameter_schema
from rich.console import Console

from prefect_dispatch import LLM, Ask, Brief, Limits, MergeRecords, Pilot, Reply, analyze_files, dispatch, plan
from prefect_dispatch.cli.commands import COMPLETE, GAPS, UNUSABLE, main
from prefect_dispatch.cli.console import _Display  # pyright: ignore[reportPrivateUsage]
from prefect_dispatch.errors import TerminalError
from prefect_dispatch.flows.pilot_gate import batch_price_ratio
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.reporting.progress import on_question, on_wait
from prefect_dispatch.testing import ScriptedExecutor
from tests.flows.test_review import Deployed
from tests.openai_server import Behaviour, openai_server
from tests.test_cli import started

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

NAMES = Brief(
    name="names",
    instructions="Name it.",
    output={"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
)
ITEMS = ["a" * size for size in range(1, 13)]


def answer(ask: Ask) -> Reply:
    """Answer with the item in capitals, for a cent a character."""
    text = str(ask.item.value)
    usage = Usage(requests=1, prompt_tokens=len(text), cost_usd=0.01 * len(text))
    return Reply(value={"name": text.upper()}, usage=usage)


def run(executor: ScriptedExecutor, pilot: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401 -- parameters of the flow; a report, or a state
    """Run the job with a pilot of four."""
    limits = Limits(retries=0, reasks=1, pilot=Pilot.model_validate({"items": 4, **pilot}))
    parameters: Any = {"items": ITEMS, "executor": executor, "limits": limits, **more}
    start: Any = dispatch
    return start([NAMES], **parameters)


def kinds(report: Report) -> set[tuple[str, str]]:
    """Return the status and the kind of all gaps."""
    return {(gap.status, gap.error.kind) for gap in report.gaps}


@pytest.mark.slow
def test_a_report_gate_ends_the_run_after_the_pilot_and_what_it_paid_for_is_not_paid_again() -> None:
    """Four of twelve are asked, the others skipped; a run without a pilot asks just these."""
    executor = ScriptedExecutor(answer)
    report = run(executor, {"gate": "report"})
    assert (report.status, executor.calls, kinds(report)) == ("gaps", 4, {("skipped", "pilot")})
    pilot: Any = report.run["pilot"]
    assert (pilot["asked"], pilot["rest"], pilot["valid"], pilot["decision"]) == (4, 8, 4, "stop")
    # The cost is a line through the sizes, so the bill is certain: a cent for each of 78 characters.
    assert pilot["projected_usd"] == {"estimate": 0.78, "low": 0.78, "high": 0.78}
    # Sizes are spread over the whole range.
    assert sorted(len(str(ask.item.value)) for ask in executor.asks) == [2, 5, 8, 11]
    again = dispatch([NAMES], ITEMS, executor=executor, limits=Limits())
    assert (again.status, executor.calls, again.usage.cached) == ("complete", 12, 4)


@pytest.mark.parametrize(
    ("gate", "goes_on", "why"),
    [
        pytest.param({"max_usd": 1.0, "min_success": 1.0, "max_reask_rate": 0.0}, True, "", id="all-hold"),
        pytest.param({"max_usd": 0.5}, False, "up to $0.7800, and limits.pilot.max_usd is 0.5", id="too-dear"),
    ],
)
def test_thresholds_decide(gate: dict[str, Any], goes_on: bool, why: str) -> None:  # noqa: FBT001 -- a case
    """A pilot that meets its thresholds is followed by the rest; one that doesn't ends the run, and says why."""
    executor = ScriptedExecutor(answer)
    report = run(executor, {"gate": "auto", **gate})
    assert report.status == ("complete" if goes_on else "gaps")
    assert executor.calls == (12 if goes_on else 4)
    assert why in report.gaps[0].error.message if why else not report.gaps


def test_invalid_answers_and_re_asks_are_counted_and_stop_the_run_with_gaps() -> None:
    """A wrong brief costs a pilot: its failures are gaps, the rest is skipped, and the run isn't called failed."""
    executor = ScriptedExecutor(lambda _: Reply(value={"nam": 1}, usage=Usage(requests=1, cost_usd=None)))
    report = run(executor, {"gate": "auto", "min_success": 0.5, "max_reask_rate": 0.2, "max_usd": 1})
    assert (report.status, executor.calls) == ("gaps", 8)
    assert kinds(report) == {("failed", "invalid_output"), ("skipped", "pilot")}
    pilot: Any = report.run["pilot"]
    assert (pilot["valid"], pilot["reasked"], pilot["projected_usd"]) == (0, 4, None)
    assert pilot["why"] == (
        "0 of 4 are valid, and limits.pilot.min_success is 0.5; "
        "4 of 4 needed a re-ask, and limits.pilot.max_reask_rate is 0.2; the bill is unknown, and limits.pilot.max_usd "
        "is set"
    )


@pytest.mark.slow
def test_without_anybody_to_ask_the_run_needs_a_review() -> None:
    """The state says so, and another run shows the same figures without asking again."""
    executor, messages = ScriptedExecutor(answer), list[str]()
    token = on_wait.set(messages.append)
    try:
        state = run(executor, {}, return_state=True)
        again = run(executor, {}, return_state=True)
    finally:
        on_wait.reset(token)
    assert (state.name, again.name, executor.calls) == ("NeedsReview", "NeedsReview", 4)
    assert "Pilot: 4 asked first, 8 left." in messages[0]


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.slow
def test_a_person_at_the_terminal_decides(says: bool) -> None:  # noqa: FBT001 -- a case
    """Yes asks the rest; no ends the run with what it has."""
    executor, questions = ScriptedExecutor(answer), list[str]()

    def ask(text: str) -> bool:
        questions.append(text)
        return says

    token = on_question.set(ask)
    try:
        report = run(executor, {})
    finally:
        on_question.reset(token)
    assert (report.status, executor.calls) == (("complete", 12) if says else ("gaps", 4))
    assert "Projected bill: $0.7800 (95 %: $0.7800 to $0.7800)" in questions[0]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "status", "calls"), [("go on", "complete", 12), ("stop", "gaps", 4)])
def test_a_deployed_run_is_suspended_and_goes_on_within_its_budget(option: str, status: str, calls: int) -> None:
    """The form decides; the resumed run asks nothing twice, and its budget counts what the pilot has taken."""
    executor = ScriptedExecutor(answer)
    limits = Limits(retries=0, budget_requests=12, pilot=Pilot(items=4))
    parameters = {"briefs": [NAMES], "items": ITEMS, "executor": executor, "limits": limits}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(dispatch), f"of-a-test-{uuid4()}")
        deployed = Deployed(parameters, client.create_flow_run_from_deployment(deployment).id)
    suspended = deployed.work()
    assert (suspended.name, executor.calls) == ("NeedsReview", 4)
    assert "Pilot to decide on" in str(suspended.message)
    assert "Valid answers: 4 of 4" in str(deployed.form()["above"])
    resume_flow_run(deployed.id, run_input={"answer": option})
    report: Report = deployed.work().result()
    assert (report.status, executor.calls, report.usage.requests) == (status, calls, calls)


@pytest.mark.slow
def test_an_accepted_pilot_is_not_asked_again_after_a_run_that_died() -> None:
    """The next process finds the decision, and has neither a pilot nor a question."""
    executor = ScriptedExecutor(answer)

    def die(ask: Ask) -> Reply:
        if executor_calls() > 4:
            raise TerminalError("the process ends here")
        return answer(ask)

    dying = ScriptedExecutor(die)

    def executor_calls() -> int:
        return dying.calls

    accepted = {"gate": "auto", "min_success": 0.5}
    assert run(dying, accepted, return_state=True).is_failed()
    report = run(executor, {})  # its gate would ask a person
    assert (report.status, "pilot" in report.run) == ("complete", False)
    # Once all is answered, what is asked again has a pilot of its own.
    assert run(executor, {"gate": "report"}, refresh=True).status == "gaps"


def test_an_error_that_all_would_meet_stops_the_pilot_and_the_run() -> None:
    """There is nothing to decide then: the run has failed."""

    def refuse(_: Ask) -> Reply:
        raise TerminalError("no key")

    state = run(ScriptedExecutor(refuse), {}, return_state=True)
    assert state.is_failed()


@pytest.mark.slow
def test_a_pilot_of_all_that_is_left_has_no_gate() -> None:
    """Stored items aren't sampled: with four left of twelve, all four are asked."""
    executor = ScriptedExecutor(answer)
    dispatch([NAMES], ITEMS[:8], executor=executor)
    report = run(executor, {"gate": "report"})
    assert (report.status, executor.calls, "pilot" in report.run) == ("complete", 12, False)


def test_equal_items_count_once_and_share_the_answer() -> None:
    """Of six items with three texts, a pilot of two asks two; each equal item has its answer."""
    items = [{"key": f"{text}{at}", "value": text} for text in ("x", "yy", "zzz") for at in (1, 2)]
    executor = ScriptedExecutor(answer)
    report = run(executor, {"items": 2, "gate": "report"}, items=items)
    assert (executor.calls, len(report.gaps)) == (2, 2)


def test_a_plan_says_that_there_will_be_a_pilot() -> None:
    """How many come first, and what decides; nothing where all fits."""
    limits = Limits(pilot=Pilot(items=4))
    notes = " ".join(plan(NAMES, ITEMS, ScriptedExecutor(answer), limits=limits).notes)
    assert "4 of 12 are asked first, then a person decides" in notes
    few = " ".join(plan(NAMES, ITEMS[:4], ScriptedExecutor(answer), limits=limits).notes)
    assert "limits.pilot.items is 4, and 4 are to be asked: all are asked, without a pilot." in few


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pilot", "named"),
    [
        ("{items: 0}", "limits.pilot.items"),
        ("{itmes: 3}", "'items'"),
        ("{items: five}", "limits.pilot.items"),
        ("{gate: maybe}", "limits.pilot.gate"),
        ("{gate: auto}", "max_usd, min_success, max_reask_rate"),
        ("{min_success: 0.5}", "min_success is for gate auto"),
        ("{gate: auto, max_usd: -1}", "limits.pilot.max_usd"),
        ("{gate: auto, max_reask_rate: 2}", "limits.pilot.max_reask_rate"),
        ("5", "limits.pilot"),
    ],
)
def test_a_refused_value_is_named_and_nothing_is_spent(
    pilot: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, with the key."""
    job = tmp_path / "job.yaml"
    job.write_text(f"briefs: {{name: a, instructions: Do.}}\nitems: [a]\nlimits: {{pilot: {pilot}}}\n")
    assert main(["run", str(job)]) == UNUSABLE
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_ends_with_3_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price is unknown, so no projection can meet the threshold."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for at in range(8):
        (tmp_path / f"{at}.txt").write_text("x" * (at + 1))
    with openai_server(Behaviour(content="Fine.")) as server:
        job = tmp_path / "job.yaml"
        job.write_text(
            f"flow: dispatch\nbriefs: {{name: a, instructions: Do.}}\nitems: {{glob: '*.txt'}}\n"
            f"executor: {{model: openai/test, api_base: {server.url}}}\n"
            "limits: {pilot: {items: 3, gate: auto, max_usd: 1}}\n"
        )
        assert main(["run", str(job)]) == GAPS
        assert server.count == 3
    assert "the bill is unknown, and limits.pilot.max_usd is set" in capsys.readouterr().out


def test_a_batch_is_projected_at_its_own_price() -> None:
    """The pilot is asked live, for twice the price of a batch."""
    model = LLM(model="openai/gpt-4o-mini", mode="batch")
    assert batch_price_ratio(model) == pytest.approx(0.5)
    assert batch_price_ratio(LLM(model="openai/own", mode="batch")) == 1.0
    assert batch_price_ratio(ScriptedExecutor({})) == 1.0


def test_work_that_others_need_comes_first() -> None:
    """A sample is drawn from the first stage alone."""
    modules = [
        Brief(name=name, instructions=f"Write {name}.", writes=(f"{name}.txt",), reads=(f"{read}.txt",) if read else ())
        for name, read in (("a", ""), ("b", "a"), ("c", ""), ("d", "c"))
    ]
    limits = Limits(on_dependence="serialize", pilot=Pilot(items=1, gate="report"))
    report: Report = dispatch(modules, ["x"], executor=ScriptedExecutor(lambda _: "done"), limits=limits)
    assert len(report.gaps) == 3
    assert next(row.brief for row in report.ledger if row.disposition == "merged") in {"a", "c"}


def test_a_pilot_that_prefect_cannot_show_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The figures are in the log and in the report all the same."""

    def fail(**_: object) -> None:
        raise OSError("the server is gone")

    monkeypatch.setattr("prefect_dispatch.flows.pilot_gate.create_markdown_artifact", fail)
    assert run(ScriptedExecutor(answer), {"gate": "report"}).run["pilot"]
    assert "The pilot can't be shown in Prefect" in caplog.text


@pytest.mark.slow
def test_a_pilot_in_other_processes_counts_all_task_runs() -> None:
    """The sample and the rest each have task runs of their own."""
    report = run(ScriptedExecutor(answer), {"gate": "auto", "min_success": 0.5})
    assert report.run["task_runs"] == {"made": 12}


@pytest.mark.slow
def test_a_review_is_not_asked_for_after_a_pilot_that_ended_the_run(tmp_path: Path) -> None:
    """Nothing is merged yet, so there is nothing to decide on."""
    records = MergeRecords(identity=("name",), aliases="decisions.yaml")
    report = run(ScriptedExecutor(answer), {"gate": "report"}, integrator=records, review=True, folder=str(tmp_path))
    assert (report.status, "review" in report.run) == ("gaps", False)
    assert len(report.value["answers"]) == 4


@pytest.mark.parametrize(("typed", "goes_on"), [("Yes\n", True), ("\n", False), ("", False)])
def test_only_yes_goes_on(typed: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 -- a case
    """Going on costs money: an empty line and the end of input are no."""
    screen = StringIO()
    monkeypatch.setattr("sys.stdin", StringIO(typed))
    display = _Display(Console(file=screen, force_terminal=True))
    display.start()
    try:
        assert display.ask("Pilot: 4 asked first.\nProjected bill: $1.") == goes_on
    finally:
        display.stop()
    assert "Projected bill: $1." in screen.getvalue()


@pytest.mark.slow
def test_a_terminal_is_asked(tmp_path: Path) -> None:
    """The figures stand above the question, and yes goes on."""
    for at in range(8):
        (tmp_path / f"{at}.txt").write_text("x" * (at + 1))
    with openai_server(Behaviour(content="Fine.")) as server:
        (tmp_path / "job.yaml").write_text(
            f"briefs: {{name: a, instructions: Do.}}\nitems: {{glob: '*.txt'}}\n"
            f"executor: {{model: openai/test, api_base: {server.url}}}\nlimits: {{pilot: {{items: 3}}}}\n"
        )
        ours, theirs = pty.openpty()
        process = started(["run", str(tmp_path / "job.yaml")], tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        screen, is_typed = b"", False
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    screen += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
            if not is_typed and b"Ask the rest?" in screen:
                is_typed = bool(os.write(ours, b"yes\n"))
        assert process.wait(timeout=60) == COMPLETE
        assert server.count == 8
    assert b"Pilot: 3 asked first, 5 left." in screen


@pytest.mark.slow
@pytest.mark.parametrize("fields", ["pilot: {items: 3}", "limits: {pilot: {items: 3}}"])
def test_a_form_has_a_pilot_among_its_limits(fields: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job file of a form may give it in the group or by itself; the form begins without one."""
    for at in range(5):
        (tmp_path / f"{at}.txt").write_text("x" * (at + 1))
    job = tmp_path / "job.yaml"
    job.write_text(f"flow: analyze_files\nfiles: '*.txt'\ninstructions: Do.\nmodel: openai/gpt-4o-mini\n{fields}\n")
    assert main(["plan", str(job)]) == COMPLETE
    assert "Pilot (limits.pilot): 3 of 5 are asked first" in capsys.readouterr().out
    schema: Any = parameter_schema(analyze_files).model_dump()
    (shown,) = (each["properties"]["pilot"] for each in schema["definitions"].values() if each.get("title") == "Limits")
    assert shown["anyOf"][0] == {"title": "None", "type": "null"}
