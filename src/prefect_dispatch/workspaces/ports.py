"""Blocks of ports: no two workspaces that are open on a machine have the same.

A block is held by a socket that is bound to a number of its own, which the operating system gives to nobody else,
whatever process or user asks; it is free again as soon as its holder is gone, however that ended.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from prefect_dispatch.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

SLOT = 10
"""Ports that are held by one socket; a block begins at a multiple of it."""
SLOTS = 1_000
FIRST = 20_000
"""The first port that may be in a block. The last is 29,999: below those that systems give to clients."""
FIRST_HOLDER = 19_000
"""The number of the socket that holds the first slot."""
MOST = 100
"""Ports of the largest block."""

_HOST = "127.0.0.1"


def _families() -> tuple[socket.AddressFamily, ...]:
    """Return the protocols that this machine has; it may know IPv6 and have it switched off."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:  # pragma: no cover -- by machine
        return (socket.AF_INET,)
    return socket.AF_INET, socket.AF_INET6


FAMILIES = _families()
"""The protocols by which a server can listen here."""


@contextmanager
def block(size: int) -> Generator[tuple[int, ...], None, None]:
    """Have some ports in a row, on which nobody listens and which no other block holds.

    Args:
        size: How many.

    Raises:
        TransientError: If all are taken.

    Example:
        >>> with block(2) as ports:
        ...     len(ports), ports[1] - ports[0]
        (2, 1)
    """
    with ExitStack() as held:
        yield _taken(size, held) if size else ()


def _taken(size: int, held: ExitStack) -> tuple[int, ...]:
    slots = -(-size // SLOT)
    starts = range(SLOTS - slots + 1)
    for first in random.sample(starts, len(starts)):
        with ExitStack() as holding:
            ports = tuple(range(FIRST + first * SLOT, FIRST + first * SLOT + size))
            if all(_held(FIRST_HOLDER + slot, holding) for slot in range(first, first + slots)) and _are_free(ports):
                held.push(holding.pop_all())
                return ports
    raise TransientError(
        f"No {size} ports in a row are free between {FIRST} and {FIRST + SLOT * SLOTS - 1}.", kind="ports"
    )


def _held(number: int, holding: ExitStack) -> bool:
    """Return whether a slot is ours now."""
    holder = holding.enter_context(socket.socket())
    try:
        holder.bind((_HOST, number))
    except OSError:
        return False
    return True


def _are_free(ports: Sequence[int]) -> bool:
    """Return whether nobody listens on any of some ports, by whichever protocol."""
    return all(_is_free(family, port) for port in ports for family in FAMILIES)


def _is_free(family: socket.AddressFamily, port: int) -> bool:
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed a moment ago is free
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
