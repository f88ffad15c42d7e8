"""What an integrator may want before anything is spent: code of the user's, files, the items, a look at the briefs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefect_dispatch.references import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.models import Brief, Item


@runtime_checkable
class Resolving(Protocol):
    """An integrator that names functions of the user's."""

    def resolved(self, load: Callable[[str], Any]) -> AnyMerger:
        """Return this integrator with every `module:name` replaced by what `load` returns for it."""
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


def ready(integrator: AnyMerger, briefs: Sequence[Brief], items: Sequence[Item], folder: Path) -> AnyMerger:
    """Return an integrator with everything in place that it asks for.

    Args:
        integrator: Any integrator; one that asks for nothing is returned as it is.
        briefs: The briefs of the job.
        items: The items of the job.
        folder: Where relative paths and the user's own code are looked up.

    Raises:
        JobError: If something is missing, or the integrator won't do with the job.
    """
    if isinstance(integrator, Resolving):
        integrator = integrator.resolved(partial(resolve, root=folder))
    if isinstance(integrator, Placing):
        integrator = integrator.placed(folder)
    if isinstance(integrator, Seeing):
        integrator = integrator.seeing(briefs, items)
    if isinstance(integrator, Checking):
        integrator.preflight(briefs)
    return integrator
