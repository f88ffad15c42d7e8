"""One gate for all calls of a flow run in this process, whichever task makes them."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from prefect_dispatch.caps import BUDGETS
from prefect_dispatch.gate import Gate

if TYPE_CHECKING:
    from prefect_dispatch.limits import Limits

MOST = 1000
"""Flow runs whose gates are kept: nobody says when a user's own flow has ended."""

_lock = Lock()
_gates: OrderedDict[tuple[str, Limits], Gate] = OrderedDict()


def gate_of(flow_run: str, limits: Limits) -> Gate:
    """Return the gate of a flow run's calls under some limits; outside of flows each call has a gate of its own."""
    if not flow_run:
        return Gate(limits)
    with _lock:
        if (gate := _gates.get((flow_run, limits))) is None:
            gate = _gates[flow_run, limits] = Gate(limits)
        _gates.move_to_end((flow_run, limits))
        while len(_gates) > MOST:
            _gates.popitem(last=False)
        return gate


def gate_beside(name: str, flow_run: str, limits: Limits) -> Gate:
    """Return a gate with a budget of its own, which shares places and pace with all others of a flow run here.

    Args:
        name: What it is found by, in place of a flow run.
        flow_run: The flow run.
        limits: The limits; the others' are the same, but for the budget.
    """
    unspent = limits.model_copy(update=dict.fromkeys(BUDGETS))
    gate = Gate(limits, beside=gate_of(flow_run, unspent))
    with _lock:
        return _gates.setdefault((name, limits), gate)


def reopen(flow_run: str) -> None:
    """Let the calls of a flow run through again: Prefect retries it, within the same budget.

    Args:
        flow_run: The flow run; no call of it is under way.
    """
    with _lock:
        for (name, _), gate in _gates.items():
            if name == flow_run:
                gate.reopen()


def forget(name: str, limits: Limits) -> None:
    """Keep a gate no longer."""
    with _lock:
        _gates.pop((name, limits), None)
