"""What an integrator may want before anything is spent: code of the user's, files, the items, a look at the briefs."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefect_dispatch.callables import misfit
from prefect_dispatch.errors import JobError
from prefect_dispatch.integrators.base import AskingIntegrator, Integrator
from prefect_dispatch.references import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models import Brief, Item


@runtime_checkable
class Resolving(Protocol):
    """An integrator that names functions of the user's."""

    def resolved(self, load: Callable[[str], Any]) -> AnyMerger:
        """Return this integrator with every `module:name` replaced by what `load` returns for it."""
        ...


@runtime_checkable
class Following(Protocol):
    """An integrator that works where the executor does."""

    def following(self, executor: Executor, folder: Path) -> AnyMerger:
        """Return this integrator with what it takes over; raise `JobError` if it doesn't go with the executor."""
        ...


@runtime_checkable
class Placing(Protocol):
    """An integrator that reads files."""

    def placed(self, folder: Path) -> AnyMerger:
        """Return this integrator with what it needs of its files, relative paths starting at a folder."""
        ...


@runtime_checkable
class Seeing(Protocol):
    """An integrator that works with what the agents were given, not with their answers alone."""

    def seeing(self, briefs: Sequence[Brief], items: Sequence[Item]) -> AnyMerger:
        """Return this integrator with the items that it needs to know; raise `JobError` if it can't do with them."""
        ...


@runtime_checkable
class Checking(Protocol):
    """An integrator that can tell that it won't do with certain briefs."""

    def preflight(self, briefs: Sequence[Brief]) -> None:
        """Raise `JobError` if it won't."""
        ...


def unfit(integrator: object) -> str | None:
    """Return why something can't merge, in a sentence with the way out; None if it can.

    Example:
        >>> from prefect_dispatch import Collate
        >>> unfit(Collate())
        >>> unfit(Collate)
        'Collate is a class, not an integrator: pass an object of it, such as Collate().'
    """
    if inspect.isclass(integrator):
        name = integrator.__name__
        return f"{name} is a class, not an integrator: pass an object of it, such as {name}()."
    name = type(integrator).__name__
    if isinstance(integrator, AskingIntegrator):
        why = misfit(integrator.merge_asking, "briefs", "outcomes", "ask")
        return f"{name} is not an integrator: its method 'merge_asking' {why}." if why else None
    if isinstance(integrator, Integrator):
        why = misfit(integrator.merge, "briefs", "outcomes")
        return f"{name} is not an integrator: its method 'merge' {why}." if why else None
    return f"{name} is not an integrator: it needs a method 'merge' (or 'merge_asking')."


def ready(
    integrator: AnyMerger,
    briefs: Sequence[Brief],
    items: Sequence[Item],
    folder: Path,
    executor: Executor | None = None,
) -> AnyMerger:
    """Return an integrator with everything in place that it asks for.

    Args:
        integrator: Any integrator; one that asks for nothing is returned as it is.
        briefs: The briefs of the job.
        items: The items of the job.
        folder: Where relative paths and the user's own code are looked up.
        executor: Who answers, with all that it needs found.

    Raises:
        JobError: If something is missing, it is no integrator, or it won't do with the job.
    """
    if wrong := unfit(integrator):
        raise JobError(wrong)
    if isinstance(integrator, Resolving):
        integrator = _fit(integrator.resolved(partial(resolve, root=folder)), integrator, "resolved")
    if isinstance(integrator, Following) and executor is not None:
        integrator = _fit(integrator.following(executor, folder), integrator, "following")
    if isinstance(integrator, Placing):
        integrator = _fit(integrator.placed(folder), integrator, "placed")
    if isinstance(integrator, Seeing) and items:  # of none there is nothing to see, and nothing will be merged
        integrator = seeing(integrator, briefs, items)
    if isinstance(integrator, Checking):
        integrator.preflight(briefs)
    return integrator


def seeing(integrator: Seeing, briefs: Sequence[Brief], items: Sequence[Item]) -> AnyMerger:
    """Return an integrator with the items that it needs to know.

    Raises:
        JobError: If it won't do with them, or its method returns no integrator.
    """
    return _fit(integrator.seeing(briefs, items), integrator, "seeing")


def _fit(found: AnyMerger, integrator: object, method: str) -> AnyMerger:
    if wrong := unfit(found):
        name = type(integrator).__name__
        raise JobError(f"The method {method!r} of {name} must return an integrator (self, say), and didn't: {wrong}")
    return found
