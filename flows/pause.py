"""A form that a run pauses with in Prefect's UI, and whose answer isn't lost.

A note of the form lies beside the decisions file until its answer is in there: if the
process dies meanwhile, the next run takes the answer from Prefect.
"""

from __future__ import annotations

import glob
import math
from contextlib import suppress
from contextvars import copy_context
from threading import Event, Timer
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput, keyset_from_base_key
from prefect.input.actions import read_flow_run_input
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from pydantic import Field, ValidationError, create_model

from prefect_dispatch.decisions import Decisions, load_decisions, save_decisions
from prefect_dispatch.flows.files import write
from prefect_dispatch.matters import OPEN, Form
from prefect_dispatch.progress import announce
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from pathlib import Path

POLL_S = 2
"""How often a paused run looks whether it was resumed; each look is a request."""
GRACE_S = 60
"""How much later Prefect itself would end a pause: it fails a run that is paused for too long."""


class Pending(Strict):
    """A form that stands in Prefect's UI."""

    api: str
    """Where Prefect's API is."""
    flow_run: UUID
    """The run that is paused."""
    form: Form
    """What is asked, and what each option decides."""


def ask(asked: Form, path: Path, seconds: float) -> Decisions | None:
    """Pause the run until somebody has decided, and store what.

    Args:
        asked: What is asked.
        path: The decisions file.
        seconds: How long to wait.

    Returns:
        What was decided; None if nobody did in time.
    """
    run_id = UUID(flow_run.get_id())
    pending = Pending(api=PREFECT_API_URL.value() or "", flow_run=run_id, form=asked)
    note = path.parent / f".{path.name}.review-{run_id}-{asked.name}.json"
    write(note, [pending.model_dump_json()])
    where = f"{PREFECT_UI_URL.value()}/runs/flow-run/{run_id}"
    told = f"Waiting up to {seconds:g} s for people to decide ({len(asked.matters)} open): press Resume at {where}"
    get_run_logger().info(told)
    if hear := announce.get():
        hear(told)
    answer = _paused(asked, run_id, seconds)
    if answer is None:
        note.unlink()
        return None
    return _stored(asked.decided(answer), path, note)


def gather(path: Path) -> None:
    """Store what was decided in the forms of runs that ended before they could.

    Args:
        path: The decisions file.
    """
    for note in sorted(path.parent.glob(f".{glob.escape(path.name)}.review-*.json")):
        with suppress(ValidationError, FileNotFoundError):  # not ours; or another run was faster
            pending = Pending.model_validate_json(note.read_bytes())
            if pending.api == PREFECT_API_URL.value():
                _gather(pending, path, note)


def _paused(asked: Form, run_id: UUID, seconds: float) -> dict[str, Any] | None:
    """Return what somebody filled in; None if nobody did in time.

    A pause that Prefect ends leaves a failed run, so the run is resumed a little before, from a thread of its own.
    """
    late = Event()

    def end() -> None:
        late.set()
        try:
            resume_flow_run(run_id, run_input={})
        except NotPausedError:  # somebody has just decided
            late.clear()

    timer = Timer(seconds, copy_context().run, (end,))
    timer.daemon = True
    timer.start()
    try:
        answer = pause_flow_run(
            wait_for_input=_input(asked), timeout=math.ceil(seconds) + GRACE_S, poll_interval=POLL_S, key=_key(asked)
        )
    except FlowPauseTimeout:
        return None
    finally:
        timer.cancel()
    if late.is_set():
        timer.join()
    return None if late.is_set() else answer.model_dump()


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


def _key(asked: Form) -> str:
    return f"review-{asked.name}"


def _gather(pending: Pending, path: Path, note: Path) -> None:
    answer: Any = read_flow_run_input(
        keyset_from_base_key(f"paused-{_key(pending.form)}")["response"], pending.flow_run
    )
    if answer is not None:
        _stored(pending.form.decided(answer), path, note)
    elif _over(pending.flow_run):
        note.unlink(missing_ok=True)


def _over(run_id: UUID) -> bool:
    """Return whether no answer can come from a run any more."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()


def _stored(decisions: Decisions, path: Path, note: Path) -> Decisions:
    if decisions != Decisions():
        save_decisions(path, load_decisions(path).plus(decisions))
    note.unlink(missing_ok=True)
    return decisions
