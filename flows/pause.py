"""A form that a run pauses with in Prefect's UI, and whose answer isn't lost.

A note of the form lies beside the decisions file until its answer is in there: if the
process dies meanwhile, the next run takes the answer from Prefect.
"""

from __future__ import annotations

import glob
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, CancelledRun, FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import resume_flow_run
from prefect.input import RunInput, keyset_from_base_key, keyset_from_paused_state
from prefect.input.actions import read_flow_run_input
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.states import Paused
from prefect.utilities.engine import propose_state_sync
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.decisions import Decisions
from prefect_dispatch.matters import OPEN, Form
from prefect_dispatch.progress import announce
from prefect_dispatch.strict import Strict
from prefect_dispatch.whole import write

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

    from prefect_dispatch.decisions_file import DecisionsFile

POLL_S = 2
"""How often a paused run looks whether it was resumed; each look is a request."""
GRACE_S = 60
"""How much later Prefect itself would end a pause: it fails a run that is paused for too long."""
ENDED = "The run was cancelled before people had decided."
"""What is told where somebody ends a run that waits."""


class Pending(Strict):
    """A form that stands in Prefect's UI."""

    api: str
    """Where Prefect's API is."""
    flow_run: UUID
    """The run that is paused."""
    key: str
    """What the pause is called there: no other, be it of a retry of the run, is called so."""
    form: Form
    """What is asked, and what each option decides."""


def ask(asked: Form, file: DecisionsFile, seconds: float) -> Decisions | None:
    """Pause the run until somebody has decided, and store what.

    Args:
        asked: What is asked.
        file: The decisions file.
        seconds: How long to wait.

    Returns:
        What was decided; None if nobody did in time.

    Raises:
        CancelledRun: If the run was cancelled, ended in any other way, or deleted, meanwhile.
        JobError: If the decisions can't be stored; the next run tries again.
    """
    run_id = UUID(flow_run.get_id())
    pending = Pending(api=PREFECT_API_URL.value() or "", flow_run=run_id, key=f"review-{uuid4()}", form=asked)
    note = file.path.parent / f".{file.path.name}.review-{run_id}-{asked.name}.json"
    write(note, [pending.model_dump_json()])
    where = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run_id}"
    told = f"Waiting up to {seconds:g} s for people to decide ({len(asked.matters)} open): press Resume at {where}"
    get_run_logger().info(told)
    if hear := announce.get():
        hear(told)
    try:
        answer = _paused(pending, seconds)
    except CancelledRun:
        note.unlink()
        raise
    if answer is None:
        note.unlink()
        return None
    return _stored(asked.decided(answer), file, note)


def gather(file: DecisionsFile) -> None:
    """Store what was decided in the forms of runs that ended before they could.

    Args:
        file: The decisions file.

    Raises:
        JobError: If it can't be stored.
    """
    for note in sorted(file.path.parent.glob(f".{glob.escape(file.path.name)}.review-*.json")):
        with suppress(ValidationError, FileNotFoundError):  # not ours; or another run was faster
            pending = Pending.model_validate_json(note.read_bytes())
            if pending.api == PREFECT_API_URL.value():
                _gather(pending, file, note)


def _paused(pending: Pending, seconds: float) -> dict[str, Any] | None:
    """Return what somebody filled in; None if nobody did in time.

    What Prefect's own `pause_flow_run` does, but for two things: that would wait for a run that was cancelled,
    and a pause that Prefect ends leaves a failed run, so this one is resumed a little before.
    """
    waiting: State[Any] = Paused(timeout_seconds=math.ceil(seconds) + GRACE_S, pause_key=pending.key)
    keys = keyset_from_paused_state(waiting)
    waiting.state_details.run_input_keyset = {str(name): key for name, key in keys.items()}
    model, run_id = _input(pending.form), pending.flow_run
    with get_client(sync_client=True) as client:
        _pause(client, run_id, waiting)
        model.save(keys)
        end = time.monotonic() + seconds
        while (state := _state(client, run_id)) is not None and state.is_paused():
            left = end - time.monotonic()
            if left <= 0 and _resumed(run_id):
                return None
            time.sleep(min(POLL_S, left) if left > 0 else POLL_S)
    if state is None or not state.is_running():
        raise CancelledRun(ENDED)
    return cast("RunInput", model.load(keys)).model_dump()


def _pause(client: SyncPrefectClient, run_id: UUID, waiting: State[Any]) -> None:
    """Pause a run, unless somebody has just ended it."""
    with suppress(Abort, ObjectNotFound):
        if propose_state_sync(client, waiting, flow_run_id=run_id).is_paused():
            return
    raise CancelledRun(ENDED)


def _resumed(run_id: UUID) -> bool:
    """Return whether a run goes on without an answer: somebody may just have given one, or cancelled it."""
    try:
        resume_flow_run(run_id, run_input={})
    except (NotPausedError, ObjectNotFound):
        return False
    except FlowPauseTimeout:
        pass
    return True


def _state(client: SyncPrefectClient, run_id: UUID) -> State[Any] | None:
    """Return the state of a run, or None if there is no such run any more."""
    try:
        return client.read_flow_run(run_id).state
    except ObjectNotFound:
        return None


def _input(asked: Form) -> type[RunInput]:
    """Return the form as Prefect takes it: the options are an enumeration that its server checks, too."""
    fields: dict[str, Any] = {
        matter.name: (
            Annotated[str, Field(json_schema_extra={"enum": list(matter.options), "position": at})],
            Field(default=OPEN, title=f"{at}. {matter.title}", description=matter.why),
        )
        for at, matter in enumerate(asked.matters, 1)
    }
    model = create_model("Decisions", __base__=RunInput, **fields)
    return model.with_initial_data(description=asked.description())


def _gather(pending: Pending, file: DecisionsFile, note: Path) -> None:
    answer: Any = read_flow_run_input(keyset_from_base_key(f"paused-{pending.key}")["response"], pending.flow_run)
    if answer is not None:
        _stored(pending.form.decided(answer), file, note)
    elif _over(pending.flow_run):
        note.unlink(missing_ok=True)


def _over(run_id: UUID) -> bool:
    """Return whether no answer can come from a run any more."""
    with get_client(sync_client=True) as client:
        state = _state(client, run_id)
    return state is None or state.is_final()


def _stored(decisions: Decisions, file: DecisionsFile, note: Path) -> Decisions:
    if decisions != Decisions():
        file.add(decisions)
    note.unlink(missing_ok=True)
    return decisions
