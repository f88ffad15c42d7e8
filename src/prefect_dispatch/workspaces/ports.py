"""Reservation of port ranges: no two open workspaces on a machine have the same ports.

The ports are divided into slots, and each slot has a lock: a socket that is bound to a port of its own, which the
operating system gives to one process only, of any user. The lock is released when its process ends in any way.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from prefect_dispatch.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Generator

SLOT = 10
"""Ports per slot; a block starts at a multiple of it."""
SLOTS = 1_000
"""Number of slots."""
FIRST = 20_000
"""The first port of all blocks. The last is 29,999: below the ephemeral ports that systems give to clients."""
FIRST_HOLDER = 19_000
"""The port whose socket locks the first slot."""
MAX_PORTS = 100
"""Ports of the largest block."""

_HOST = "127.0.0.1"


def _families() -> tuple[socket.AddressFamily, ...]:
    """Return the address families of this machine; IPv6 may be compiled in, but switched off."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:  # pragma: no cover -- by machine
        return (socket.AF_INET,)
    return socket.AF_INET, socket.AF_INET6


FAMILIES = _families()
"""The address families on which a server can listen here."""


@contextmanager
def reserve_ports(size: int) -> Generator[tuple[int, ...], None, None]:
    """Reserve consecutive ports on which no process listens, and which no other block has.

    Args:
        size: Number of ports; 0 reserves none.

    Yields:
        The ports.

    Raises:
        TransientError: If there is no such range.

    Example:
        >>> with reserve_ports(2) as ports:
        ...     len(ports), ports[1] - ports[0]
        (2, 1)
    """
    slots = -(-size // SLOT)  # rounded up
    # In random order, so that workspaces which start at the same time seldom try the same slots.
    starts = range(SLOTS - slots + 1)
    for first in random.sample(starts, len(starts)):
        ports = tuple(range(FIRST + first * SLOT, FIRST + first * SLOT + size))
        with ExitStack() as locks:
            holders = (locks.enter_context(socket.socket()) for _ in range(slots))
            is_locked = all(_can_bind(holder, _HOST, FIRST_HOLDER + first + n) for n, holder in enumerate(holders))
            if is_locked and all(_is_free(family, port) for port in ports for family in FAMILIES):
                yield ports
                return
    raise TransientError(
        f"No {size} ports in a row are free between {FIRST} and {FIRST + SLOT * SLOTS - 1}.", kind="ports"
    )


def _is_free(family: socket.AddressFamily, port: int) -> bool:
    """Return whether no process listens on a port, by the protocols of an address family."""
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return _can_bind(probe, "", port)


def _can_bind(holder: socket.socket, host: str, port: int) -> bool:
    """Bind a socket to a port; return whether that succeeded."""
    try:
        holder.bind((host, port))
    except OSError:
        return False
    return True
