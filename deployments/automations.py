"""The automation that ends runs whose worker died, after the recipe in Prefect's documentation.

What differs from the recipe: a run that has given its process back, suspended or waiting for a batch, sends no
heartbeat and isn't dead; and a run of ours may end under a name of its own.
"""

from __future__ import annotations

from typing import Any, cast

import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import get_current_settings

from prefect_dispatch.deployments.registering import prefect_client
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.batch import STATE

NAME = "Crash runs whose worker died"
MISSED = 3
"""Heartbeats that a living run never misses in a row."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "CompletedWithGaps", "Failed", "TimedOut", "Cancelled", "Crashed")
_GIVEN_BACK = ("Suspended", "AwaitingRetry", STATE)


def zombies() -> dict[str, Any]:
    """Return the automation, as `prefect automation create --from-file` takes it.

    Raises:
        JobError: If no run sends heartbeats.
    """
    every_s = get_current_settings().flows.heartbeat_frequency
    if every_s is None:
        raise JobError("Runs send no heartbeats: unset PREFECT_FLOWS_HEARTBEAT_FREQUENCY, or set it to 30 or more.")
    return {
        "name": NAME,
        "description": f"Marks a run as Crashed that has sent no heartbeat for {MISSED * every_s} s and has not ended.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": [_HEARTBEAT],
            "expect": [_HEARTBEAT, *(f"prefect.flow-run.{name}" for name in (*_ENDS, *_GIVEN_BACK))],
            "threshold": 1,
            "within": MISSED * every_s,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": StateType.CRASHED.value,
                "message": f"No heartbeat for {MISSED * every_s} s: its worker died. What had been answered is stored; "
                "another run of the same job goes on from there.",
            }
        ],
    }


def as_yaml(automation: dict[str, Any]) -> str:
    """Return an automation as YAML.

    Example:
        >>> print(as_yaml({"name": "a", "trigger": {"within": 540}}))
        name: a
        trigger:
          within: 540
    """
    return yaml.safe_dump(automation, sort_keys=False, width=110).rstrip()


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
