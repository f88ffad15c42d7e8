"""One gate for all calls of a flow run in this process, whichever task makes them."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

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
        gate = _gates.setdefault((flow_run, limits), Gate(limits))
        _gates.move_to_end((flow_run, limits))
        while len(_gates) > MOST:
            _gates.popitem(last=False)
        return gate
