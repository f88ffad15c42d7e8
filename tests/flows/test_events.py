"""What a run tells Prefect's automations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client

from prefect_dispatch.errors import BudgetError
from prefect_dispatch.flows.dispatch import dispatch
from prefect_dispatch.flows.publish import MAX_NAMES, MAX_TEXT, build_events
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.ledger import Gap, LedgerRow, Ref, Violation
from prefect_dispatch.models.outcome import Failure, Outcome
from prefect_dispatch.models.report import Changes, Report
from prefect_dispatch.testing import ScriptedExecutor
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Ask
    from prefect_dispatch.flows.publish import RunEvent

BRIEFS = [Brief(name="terms", instructions="Say it.")]


def told(report: Report) -> dict[str, RunEvent]:
    """Return the events of a report by the last part of their names."""
    return {each.event.rpartition(".")[2]: each for each in build_events(report, BRIEFS)}


def failed(items: Sequence[str], kind: str) -> Report:
    """Return the report of a run in which some items have no answer."""
    why = Failure(kind=kind, message="sk-not-to-be-told")
    return Report(
        status="gaps",
        message="No answers.",
        ledger=tuple(LedgerRow(brief="terms", item=item, disposition="failed") for item in items),
        gaps=tuple(Gap(brief="terms", item=item, status="failed", error=why) for item in items),
        outcomes=tuple(Outcome(brief="terms", item=item, status="failed", error=why) for item in items),
    )


def test_a_run_that_went_well_and_found_nothing_new_tells_nothing() -> None:
    """Nobody is woken for it."""
    assert told(Report(status="complete", message="1 of 1 answered.", changes=Changes(earlier="found"))) == {}


def test_gaps_are_counted_by_kind_and_the_first_named() -> None:
    """However many there are, and however long their names, the event is small; what a provider said is not in it."""
    event = told(failed([f"{n}\n{'x' * 1000}" for n in range(200)], "rejected"))["gaps"]
    assert event.event == "prefect-dispatch.run.gaps"
    payload: dict[str, Any] = event.payload
    assert (payload["gaps"], payload["items"], payload["kinds"]) == (200, 200, {"rejected": 200})
    assert len(payload["first"]) == MAX_NAMES
    assert all(len(name) == MAX_TEXT and "\n" not in name and name.startswith("terms/") for name in payload["first"])
    assert "sk-not" not in str(payload)
    assert (payload["briefs"], payload["status"], payload["message"]) == (["terms"], "gaps", "No answers.")


def test_a_budget_that_is_reached() -> None:
    """It says how far the run came."""
    report = failed(["a", "b"], "budget")
    assert list(told(report)) == ["gaps", "budget-reached"]
    payload = told(report)["budget-reached"].payload
    assert (payload["skipped"], payload["first"], payload["requests"]) == (2, ["terms/a", "terms/b"], 0)
    asked = report.model_copy(update={"asked": report.outcomes, "outcomes": (), "gaps": ()})
    assert list(told(asked)) == ["budget-reached"]


def test_what_changed() -> None:
    """Each list is counted, those that are empty too, so that a template always finds them."""
    one, two = (Ref(brief="terms", item=name) for name in "ab")
    changes = Changes(earlier="found", gone=(one,), closed=(two,))
    payload = told(Report(status="complete", message="", changes=changes))["changed"].payload
    assert {name: payload[name] for name in ("new", "gone", "changed", "gaps_closed", "gaps_opened")} == {
        "new": 0,
        "gone": 1,
        "changed": 0,
        "gaps_closed": 1,
        "gaps_opened": 0,
    }
    assert (payload["first"], payload["changes"]) == (["gone: terms/a", "gaps closed: terms/b"], str(changes))


def test_a_failed_audit() -> None:
    """It names the law."""
    violation = Violation(law="recall", where="terms/a", message="it is lost")
    payload = told(Report(status="failed", message="", violations=(violation,)))["failed-audit"].payload
    assert (payload["violations"], payload["first"]) == (1, ["recall at terms/a: it is lost"])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_events_of_a_run_reach_prefect() -> None:
    """They stand there under the flow run, which is what an automation goes by."""

    def answer(ask: Ask) -> JsonValue:
        if ask.item.key == "b":
            raise BudgetError("no room")
        return "A"

    executor = ScriptedExecutor(answer)
    report = dispatch(BRIEFS, ["a", "b"], executor=executor)
    run: Any = report.run["flow_run"]
    resource = {"id": [f"prefect.flow-run.{run['id']}"]}
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        with get_client(sync_client=True) as client:
            names = {"name": [f"prefect-dispatch.run.{name}" for name in ("gaps", "budget-reached")]}
            asked = {"filter": {"event": names, "resource": resource, "occurred": {"since": report.run["started"]}}}
            found[:] = client.request("POST", "/events/filter", json=asked).json()["events"]
        return len(found) == 2

    wait_until(arrived, "both events have arrived")
    assert {event["resource"]["prefect.resource.name"] for event in found} == {run["name"]}
    assert {related["prefect.resource.role"] for event in found for related in event["related"]} >= {"flow"}
