"""The states of an item: one enum, and the diagram of ARCHITECTURE.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

import pytest

from prefect_dispatch.models.ledger import Disposition
from prefect_dispatch.models.outcome import ItemState, Outcome

ARCHITECTURE = Path(__file__).parents[1] / "ARCHITECTURE.md"
OF_OUTCOMES = {ItemState.ANSWERED, ItemState.CACHED, ItemState.SHARED, ItemState.FAILED, ItemState.SKIPPED}


def test_the_diagram_has_the_states_and_transitions_of_the_code() -> None:
    """The diagram in ARCHITECTURE.md shows each state and each transition, and no other."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    diagram = re.search(r"^stateDiagram-v2\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert diagram
    arrows = set(re.findall(r"^ +(\S+) --> ([^:\s]+)", diagram[1], re.MULTILINE))
    final = {(state.value, "[*]") for state in ItemState if not state.next_states}
    assert arrows == {("[*]", "planned"), *final} | {
        (state.value, after.value) for state in ItemState for after in state.next_states
    }


def test_dispositions_are_the_final_states() -> None:
    """The ledger's dispositions are the states that nothing follows."""
    assert set(get_args(Disposition)) == {state.value for state in ItemState if not state.next_states}


@pytest.mark.parametrize(
    ("status", "origin", "state"),
    [
        ("succeeded", "asked", ItemState.ANSWERED),
        ("succeeded", "stored", ItemState.CACHED),
        ("succeeded", "shared", ItemState.SHARED),
        ("succeeded", None, ItemState.ANSWERED),
        ("failed", "asked", ItemState.FAILED),
        ("failed", "shared", ItemState.FAILED),
        ("skipped", None, ItemState.SKIPPED),
    ],
)
def test_state_of_an_outcome(
    status: Literal["succeeded", "failed", "skipped"],
    origin: Literal["asked", "stored", "shared"] | None,
    state: ItemState,
) -> None:
    """An answer's state says where it came from; without an answer, the state is the status."""
    assert Outcome(brief="b", item="i", status=status, origin=origin).state is state
    assert state in OF_OUTCOMES


def test_each_outcome_can_be_reached_and_each_state_leads_to_the_ledger() -> None:
    """From the plan every state can be reached, and from each of them a disposition."""

    def reachable(start: ItemState) -> set[ItemState]:
        found, waiting = set[ItemState](), [start]
        while waiting:
            if (state := waiting.pop()) not in found:
                found.add(state)
                waiting += state.next_states
        return found

    assert reachable(ItemState.PLANNED) == set(ItemState)
    assert all(any(not after.next_states for after in reachable(state)) for state in ItemState)
