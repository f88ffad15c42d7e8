"""From the answers of `run_brief` to outcomes, for those who take the parts and not the whole flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from prefect_dispatch.errors import ExecutorError
from prefect_dispatch.models import Answer, Failure
from prefect_dispatch.tasks.ends import End
from prefect_dispatch.tasks.stops import failure_of
from prefect_dispatch.tasks.store import usable
from prefect_dispatch.tasks.work import Work

if TYPE_CHECKING:
    from prefect_dispatch.models import Brief, Item, Outcome


def outcome_of(brief: Brief, item: Item, said: PrefectFuture[Any] | State[Any] | Answer | BaseException) -> Outcome:
    """Return the outcome of a brief for an item: what `integrate` demands one of, whatever came of it.

    Args:
        brief: What was asked.
        item: What it was asked about.
        said: What `run_brief` gave: a future (of `.submit` or `.map`, which is waited for), a state, an answer, or
            the error that it raised.

    Returns:
        A success, or a failure with its reason: an error, a crash, a cancelled task run, a stored answer that is
        not valid any more.

    Example:
        >>> from prefect_dispatch import Brief, Item
        >>> brief, item = Brief(name="b", instructions="Do."), Item(key="a", value=1)
        >>> outcome_of(brief, item, Answer(value="yes")).value
        'yes'
        >>> outcome_of(brief, item, ExecutorError("No.", kind="refused")).error
        Failure(kind='refused', message='No.')
    """
    state: State[Any] | None = None
    if isinstance(said, PrefectFuture):
        said.wait()
        state = said.state
    elif isinstance(said, State):
        state = said
    found: object = said if state is None else _result(state)
    return _ended(brief, item, found, stored=state is not None and state.name == "Cached")


def _result(state: State[Any]) -> object:
    """Return what a task run gave, be it an error."""
    try:
        return state.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 -- it never ran, or its result can't be read; still an outcome
        return error


def _ended(brief: Brief, item: Item, found: object, *, stored: bool) -> Outcome:
    work = Work(brief, item, found.fingerprint if isinstance(found, Answer) else "")
    if isinstance(found, BaseException):
        attempts = found.attempts if isinstance(found, ExecutorError) else ()
        end = End(work, "failed", error=failure_of(found), attempts=attempts)
    elif (answer := usable(found, work)) is not None:
        end = End(work, "succeeded", answer, stored=stored)
    else:
        message = "What came is no valid answer to this brief; ask again with refresh_cache=True."
        end = End(work, "failed", error=Failure(kind="invalid_output", message=message))
    return end.outcomes([work], ())[0]
