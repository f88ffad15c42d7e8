"""Whom an integrator asks in place of the job's executor, a judge say: it must be there before answers are paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.keys import require_key, with_block
from prefect_dispatch.executors.kinds import is_executor
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.executors.local import is_local, located, model_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger


def own_executors(integrator: AnyMerger) -> dict[str, Executor]:
    """Return whom an integrator asks itself, by what the job calls it.

    Example:
        >>> from prefect_dispatch import Tournament
        >>> list(own_executors(Tournament(criterion="Which is clearer?", judge=LLM(model="openai/gpt-5-mini"))))
        ['integrator.judge']
    """
    return {f"integrator.{name}": each for name, each in vars(integrator).items() if is_executor(each)}


def require_known(integrator: AnyMerger, folder: Path) -> None:
    """Check that whoever an integrator asks is known: the model, and the block that it names.

    Args:
        integrator: Any.
        folder: Where the files of local models are looked up.

    Raises:
        JobError: If not; the message names the field.
    """
    for where, llm in _models(integrator):
        with_block(llm, where)
        try:
            llm.require_known()
            for model in filter(is_local, llm.models):
                model_file(located(model, folder))
        except JobError as error:
            raise JobError(f"{where}: {error}") from None


def require_keys(integrator: AnyMerger) -> None:
    """Check that there is a key for whoever an integrator asks; to be called where the run is, and its environment.

    Raises:
        JobError: If there is none.
    """
    for where, llm in _models(integrator):
        require_key(with_block(llm, where), where)


def _models(integrator: AnyMerger) -> Iterator[tuple[str, LLM]]:
    return ((where, each) for where, each in own_executors(integrator).items() if isinstance(each, LLM))
