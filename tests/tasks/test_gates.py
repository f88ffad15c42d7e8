"""One gate for the calls of a run."""

from __future__ import annotations

from prefect_dispatch import Limits
from prefect_dispatch.tasks import gates


def test_the_calls_of_a_run_pass_one_gate() -> None:
    """A run has one for each of its limits; another run has its own."""
    limits = Limits(budget_requests=3)
    gate = gates.gate_of("run", limits)
    assert gates.gate_of("run", Limits(budget_requests=3)) is gate
    assert gates.gate_of("run", Limits(budget_requests=4)) is not gate
    assert gates.gate_of("another", limits) is not gate


def test_runs_that_ended_long_ago_are_forgotten() -> None:
    """Those that were used last are kept, however many there were."""
    limits = Limits()
    kept = gates.gate_of("kept", limits)
    forgotten = gates.gate_of("forgotten", limits)
    for number in range(gates.MOST):
        gates.gate_of(f"run {number}", limits)
        assert gates.gate_of("kept", limits) is kept
    assert gates.gate_of("forgotten", limits) is not forgotten


def test_a_call_outside_of_flows_has_a_budget_of_its_own() -> None:
    """Nobody could say when a common one ends."""
    assert gates.gate_of("", Limits()) is not gates.gate_of("", Limits())
