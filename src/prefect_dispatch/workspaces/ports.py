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
    """Return whether nobody listens on any of some ports."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed a moment ago is free
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
