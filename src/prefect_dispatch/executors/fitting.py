"""Do the briefs and the executor fit? Found out before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Demanding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Brief


def require_fit(briefs: Sequence[Brief], executor: Executor) -> None:
    """Check that an executor can answer some briefs.

    Raises:
        JobError: If it can't, or would pass over a command; the message says what to change.
    """
    if isinstance(executor, Demanding):
        executor.require_fit(briefs)
        return
    for brief in briefs:
        if brief.command:
            raise JobError(
                f"Brief {brief.name!r} has a command, and {type(executor).__name__} runs none: set the executor's kind "
                "to 'shell' or 'coding', or leave the command out."
            )
