"""Automations that mark runs as Crashed whose worker died, based on the recipe in Prefect's documentation.

Differences from the recipe: a run that has released its process (suspended, in a review, or waiting for a batch) sends
no heartbeat and isn't dead; our runs have further names of final states; and a run whose process died before its first
heartbeat is marked, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import get_current_settings

from prefect_dispatch.deployments.register import prefect_client
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows import review
from prefect_dispatch.flows.runtime.batch_phase import STATE
from prefect_dispatch.flows.runtime.concurrency import SKIPPED
from prefect_dispatch.flows.runtime.flow_class import MAX_HEARTBEAT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "Crash runs whose worker died"
NEVER_BEGAN = "Crash runs whose process never began"
"""Names of the two automations; an automation of the same name is updated."""
MISSED = 3
"""Consecutive missed heartbeats after which a run is considered dead."""
START_S = 600
"""Seconds from Pending to Running: enough to start a container whose image has to be pulled. The deployments keep the
slot of such a run for as long (`grace_period_seconds`)."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_FINAL_STATES = ("Completed", "CompletedWithGaps", "Failed", "TimedOut", "Cancelled", "Crashed", SKIPPED)
_RELEASED_STATES = ("Suspended", "AwaitingRetry", STATE, review.STATE)
_PENDING_STATES = ("Pending", "Submitting")
_RUNNING_STATES = ("Running", "Retrying")


def silent_run_automation() -> dict[str, Any]:
    """Return the automation for runs without heartbeats, in the format of `prefect automation create --from-file`.

    The time limit is based on the interval of our runs, which send a heartbeat every `MAX_HEARTBEAT_S` seconds at
    least, or on that of the settings of this process if it is longer: then other flows may have it, too.

    Raises:
        JobError: If no run sends heartbeats.
    """
    every_s = get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        raise JobError("Runs send no heartbeats: unset PREFECT_FLOWS_HEARTBEAT_FREQUENCY, or set it to 30 or more.")
    silent_s = MISSED * max(every_s, MAX_HEARTBEAT_S)
    return _crash_automation(
        NAME,
        f"Marks a run as Crashed that has sent no heartbeat for {silent_s} s and has not ended.",
        after=[_HEARTBEAT],
        expect=[_HEARTBEAT, *_state_events(*_FINAL_STATES, *_RELEASED_STATES)],
        within_s=silent_s,
        message=f"No heartbeat for {silent_s} s: its worker died. What had been answered is stored; another run of the "
        "same job goes on from there.",
    )


def unstarted_run_automation(start_s: int = START_S) -> dict[str, Any]:
    """Return the automation for runs whose process died before its first heartbeat.

    A run that is queued for a slot of its deployment is Scheduled, not Pending, and is not affected.

    Args:
        start_s: Seconds that a run may stay Pending or Submitting.
    """
    return _crash_automation(
        NEVER_BEGAN,
        f"Marks a run as Crashed that a worker has taken and that has not begun within {start_s} s.",
        after=_state_events(*_PENDING_STATES),
        expect=[_HEARTBEAT, *_state_events(*_RUNNING_STATES, *_FINAL_STATES, *_RELEASED_STATES)],
        within_s=start_s,
        message=f"A worker took this run, and its process has not begun within {start_s} s. What had been "
        "answered is stored; another run of the same job goes on from there.",
    )


def _crash_automation(
    name: str, description: str, *, after: Sequence[str], expect: Sequence[str], within_s: int, message: str
) -> dict[str, Any]:
    """Return an automation that marks a run as Crashed if no expected event follows a given one in time.

    Args:
        name: Its name.
        description: Its description.
        after: The events that start the clock of a run.
        expect: The events of which one has to follow.
        within_s: Seconds until then.
        message: The message of the state Crashed.
    """
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


def _state_events(*states: str) -> list[str]:
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
    """Create an automation, or update the one with the same name; actions that others have added to it stay.

    Returns:
        A sentence on what was done.

    Raises:
        JobError: If Prefect can't be reached.
    """
    target = AutomationCore.model_validate(automation)
    with prefect_client() as client:
        found = client.read_automations_by_name(target.name)
        for each in found:
            # Replace the actions of our own types, and keep whether it is enabled.
            kinds = {action.type for action in target.actions}
            others = [action for action in each.actions if action.type not in kinds]
            changed = target.model_copy(update={"enabled": each.enabled, "actions": [*target.actions, *others]})
            client.update_automation(each.id, changed)
        if not found:
            client.create_automation(target)
    off = any(not each.enabled for each in found)
    done = f"up to date{', and disabled' if off else ''}" if found else "created"
    return f"Automation {target.name!r}: {done}. {cast('str', automation['description'])}"
