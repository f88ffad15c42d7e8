"""Several answers to one brief: from several models, or from one that is asked several times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import Protocol, runtime_checkable  # see executors.base

from prefect_dispatch.errors import BriefError, JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.models import Brief


@runtime_checkable
class Switching(Protocol):
    """An executor that can ask another model."""

    def switched(self, model: str) -> Executor:
        """Return the same executor, asking that model and no other."""
        ...


@runtime_checkable
class Repeating(Protocol):
    """An executor that may know that it gives the same answer each time."""

    @property
    def repeats(self) -> bool:
        """Whether asking once more is pointless."""
        ...


def executor_for(brief: Brief, executor: Executor) -> Executor:
    """Return who answers a brief: the executor, asking the brief's own model if it names one.

    Raises:
        BriefError: If it names one, and the executor is no language model.
    """
    if not brief.model:
        return executor
    if not isinstance(executor, Switching):
        raise BriefError(
            f"Brief {brief.name!r} names a model ({brief.model!r}), which only a language model's executor can ask; "
            f"this is a {type(executor).__name__}."
        )
    return executor.switched(brief.model)


def sampled(brief: Brief) -> tuple[Brief, ...]:
    """Return a brief as often as its samples say, each with a name and a number of its own.

    Raises:
        JobError: If the names would be too long.

    Example:
        >>> from prefect_dispatch.models import Brief
        >>> [each.name for each in sampled(Brief(name="label", instructions="Label it.", samples=3))]
        ['label-1', 'label-2', 'label-3']
    """
    if brief.samples == 1 or brief.sample:
        return (brief,)
    if len(f"{brief.name}-{brief.samples}") > LONGEST_NAME:
        raise JobError(
            f"Brief {brief.name!r} has no room for the numbers of its samples; "
            f"give it a name of {LONGEST_NAME - 1 - len(str(brief.samples))} characters at most."
        )
    return tuple(
        brief.model_copy(update={"name": f"{brief.name}-{number}", "sample": number})
        for number in range(1, brief.samples + 1)
    )


LONGEST_NAME = 60
"""Characters of a brief's name."""


def origin(brief: Brief) -> str:
    """Return the name of the brief that a sample was made of; of any other brief its own."""
    return brief.name.removesuffix(f"-{brief.sample}") if brief.sample else brief.name


def require_variety(briefs: Sequence[Brief], executor: Executor) -> None:
    """Check that who is asked several times can answer differently.

    Raises:
        JobError: If not: all samples would cost, and be one answer.
        BriefError: If a brief names a model, and the executor is no language model.
    """
    for brief in briefs:
        who = executor_for(brief, executor)
        if brief.samples > 1 and isinstance(who, Repeating) and who.repeats:
            raise JobError(
                f"Brief {origin(brief)!r} asks for {brief.samples} samples of one answer: at temperature 0 a model "
                "says the same each time. Set the executor's params.temperature (to 0.7, say), or samples to 1."
            )
