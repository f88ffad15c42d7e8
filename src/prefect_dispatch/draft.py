"""What keeps the replies of one piece of work until there is an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.executors.base import Reply


class Draft(Protocol):
    """Keeps every reply of one piece of work from the moment it came, until there is an answer."""

    @property
    def lost(self) -> int:
        """Calls that were sent by runs that died before they heard; nobody knows what they cost."""
        ...

    def heard(self, tier: int) -> Sequence[Reply]:
        """Return what an executor said to a run that died before it had an answer."""
        ...

    async def send(self) -> None:
        """Note that a call is sent now."""
        ...

    async def hear(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Take a reply, or that the call brought none; keep it at once, or with whatever is kept next."""
        ...

    async def keep(self) -> None:
        """Keep what was heard and isn't kept yet."""
        ...

    async def end(self, *, settled: bool) -> None:
        """Forget what was heard, as the attempt failed and its spending is told; keep the replies if not settled."""
        ...


class NoDraft:
    """Keeps nothing."""

    lost = 0
    """No call is lost, as none is noted."""

    def heard(self, tier: int) -> Sequence[Reply]:  # noqa: ARG002 -- the protocol's signature
        """Return nothing."""
        return ()

    async def send(self) -> None:
        """Note nothing."""

    async def hear(self, tier: int, reply: Reply | None, *, at_once: bool = True) -> None:
        """Keep nothing."""

    async def keep(self) -> None:
        """Keep nothing."""

    async def end(self, *, settled: bool) -> None:
        """Forget nothing."""
