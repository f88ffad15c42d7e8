"""The automations that end runs whose worker died, after the recipe in Prefect's documentation.

What differs from the recipe: a run that has given its process back, suspended, in a review or waiting for a batch,
sends no heartbeat and isn't dead; a run of ours may end under a name of its own; and a run whose process died before
its first heartbeat is ended, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import get_current_settings

from prefect_dispatch.deployments.registering import prefect_client
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows import pause
from prefect_dispatch.flows.batch import STATE
from prefect_dispatch.flows.beats import MOST_S
from prefect_dispatch.flows.overlap import SKIPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "Crash runs whose worker died"
NEVER_BEGAN = "Crash runs whose process never began"
MISSED = 3
"""Heartbeats that a living run never misses in a row."""
START_S = 600
"""Seconds from Pending to Running: enough to start a container whose image has to be pulled. The deployments keep the
slot of such a run for as long (`grace_period_seconds`)."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "CompletedWithGaps", "Failed", "TimedOut", "Cancelled", "Crashed", SKIPPED)
_GIVEN_BACK = ("Suspended", "AwaitingRetry", STATE, pause.STATE)
_STARTING = ("Pending", "Submitting")
_BEGUN = ("Running", "Retrying")


def zombies() -> dict[str, Any]:
    """Return the automation for runs that fell silent, as `prefect automation create --from-file` takes it.

    It waits for as long as any run of ours may be silent, which sends a heartbeat every `MOST_S` seconds at least, and
    longer only where heartbeats are rarer by the settings of this process: then other flows' may be, too.

    Raises:
        JobError: If no run sends heartbeats.
    """
    every_s = get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        raise JobError("Runs send no heartbeats: unset PREFECT_FLOWS_HEARTBEAT_FREQUENCY, or set it to 30 or more.")
    silent_s = MISSED * max(every_s, MOST_S)
    return _crashing(
        NAME,
        f"Marks a run as Crashed that has sent no heartbeat for {silent_s} s and has not ended.",
        after=[_HEARTBEAT],
        expect=[_HEARTBEAT, *_events(*_ENDS, *_GIVEN_BACK)],
        within_s=silent_s,
        message=f"No heartbeat for {silent_s} s: its worker died. What had been answered is stored; another run of the "
        "same job goes on from there.",
    )


def never_began(start_s: int = START_S) -> dict[str, Any]:
    """Return the automation for runs whose process died before it sent a heartbeat.

    A run that is queued for a slot of its deployment is Scheduled, not Pending: it is left alone.

    Args:
        start_s: Seconds that a run may stay Pending or Submitting.
    """
    return _crashing(
        NEVER_BEGAN,
        f"Marks a run as Crashed that a worker has taken and that has not begun within {start_s} s.",
        after=_events(*_STARTING),
        expect=[_HEARTBEAT, *_events(*_BEGUN, *_ENDS, *_GIVEN_BACK)],
        within_s=start_s,
        message=f"A worker took this run, and its process has not begun within {start_s} s. What had been "
        "answered is stored; another run of the same job goes on from there.",
    )


def _crashing(
    name: str, description: str, *, after: Sequence[str], expect: Sequence[str], within_s: int, message: str
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": [*after],
            "expect": [*expect],
            "threshold": 1,
            "within": within_s,
        },
        "actions": [{"type": "change-flow-run-state", "state": StateType.CRASHED.value, "message": message}],
    }


def _events(*states: str) -> list[str]:
    return [f"prefect.flow-run.{name}" for name in states]


def as_yaml(automations: Sequence[dict[str, Any]]) -> str:
    """Return automations as YAML.

    Example:
        >>> print(as_yaml([{"name": "a", "trigger": {"within": 540}}]))
        - name: a
          trigger:
            within: 540
    """
    return yaml.safe_dump([*automations], sort_keys=False, width=110).rstrip()


def apply(automation: dict[str, Any]) -> str:
    """Create an automation, or bring the one of its name up to date; what others have added to that one stays.

    Returns:
        What was done, in a sentence.

    Raises:
        JobError: If Prefect can't be reached.
    """
    wanted = AutomationCore.model_validate(automation)
    with prefect_client() as client:
        found = client.read_automations_by_name(wanted.name)
        for each in found:
            kinds = {action.type for action in wanted.actions}
            others = [action for action in each.actions if action.type not in kinds]
            changed = wanted.model_copy(update={"enabled": each.enabled, "actions": [*wanted.actions, *others]})
            client.update_automation(each.id, changed)
        if not found:
            client.create_automation(wanted)
    off = any(not each.enabled for each in found)
    done = f"up to date{', and disabled' if off else ''}" if found else "created"
    return f"Automation {wanted.name!r}: {done}. {cast('str', automation['description'])}"
