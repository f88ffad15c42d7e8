"""One gate for the calls of a run."""

from __future__ import annotations

from prefect_dispatch import Limits
from prefect_dispatch.calls import call_gate


def test_the_calls_of_a_run_pass_one_gate() -> None:
    """A run has one for each of its limits; another run has its own."""
    limits = Limits(budget_requests=3)
    gate = call_gate.gate_for_run("run", limits)
    assert call_gate.gate_for_run("run", Limits(budget_requests=3)) is gate
    assert call_gate.gate_for_run("run", Limits(budget_requests=4)) is not gate
    assert call_gate.gate_for_run("another", limits) is not gate


def test_runs_that_ended_long_ago_are_forgotten() -> None:
    """Those that were used last are kept, however many there were."""
    limits = Limits()
    kept = call_gate.gate_for_run("kept", limits)
    forgotten = call_gate.gate_for_run("forgotten", limits)
    for number in range(call_gate.MAX_GATES):
        call_gate.gate_for_run(f"run {number}", limits)
        assert call_gate.gate_for_run("kept", limits) is kept
    assert call_gate.gate_for_run("forgotten", limits) is not forgotten


def test_a_call_outside_of_flows_has_a_budget_of_its_own() -> None:
    """Nobody could say when a common one ends."""
    assert call_gate.gate_for_run("", Limits()) is not call_gate.gate_for_run("", Limits())
