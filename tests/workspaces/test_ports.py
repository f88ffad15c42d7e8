"""Blocks of ports: nobody else has them."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import TransientError
from prefect_dispatch.workspaces import ports
from prefect_dispatch.workspaces.ports import FIRST, SLOT, reserve_ports

if TYPE_CHECKING:
    from collections.abc import Callable

HOLDS = """
from prefect_dispatch.workspaces.ports import reserve_ports

with reserve_ports(1) as ports:
    print(*ports, flush=True)
    input()
"""


def test_blocks_do_not_meet() -> None:
    """In whatever process they are, for as long as they are held."""
    with ExitStack() as held:
        taken = [port for _ in range(20) for port in held.enter_context(reserve_ports(15))]
        other = held.enter_context(
            subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 -- our own words
        )
        assert other.stdout
        taken += map(int, other.stdout.readline().split())
        other.kill()
    assert len(taken) == len(set(taken)) == 301


@pytest.mark.parametrize("size", [1, SLOT, SLOT + 1, 100])
def test_a_block_is_in_a_row_and_free(size: int) -> None:
    """Servers can listen on all of them, on every address."""
    with reserve_ports(size) as mine, ExitStack() as held:
        assert len(mine) == size
        assert all(two - one == 1 for one, two in pairwise(mine))
        for port in mine:
            held.enter_context(socket.create_server(("", port)))


def test_no_ports() -> None:
    """Who asks for none holds nothing."""
    with reserve_ports(0) as mine:
        assert mine == ()


WITHOUT_THE_NEW = pytest.mark.skipif(socket.AF_INET6 not in ports.FAMILIES, reason="This machine has no IPv6.")


def by_the_new_protocol(port: int) -> socket.socket:
    """Return a server on IPv6 alone."""
    return socket.create_server(("::1", port), family=socket.AF_INET6)


def by_the_old_protocol(port: int) -> socket.socket:
    """Return a server on IPv4 alone."""
    return socket.create_server(("127.0.0.1", port))


@pytest.mark.parametrize("listening", [by_the_old_protocol, pytest.param(by_the_new_protocol, marks=WITHOUT_THE_NEW)])
def test_what_somebody_listens_on_is_passed_over(
    listening: Callable[[int], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was there before keeps its port; where all are taken, another try may find one."""
    with reserve_ports(1) as (port,):
        pass
    monkeypatch.setattr(ports, "FIRST", port - port % SLOT)
    monkeypatch.setattr(ports, "FIRST_HOLDER", ports.FIRST_HOLDER + (port - FIRST) // SLOT)
    monkeypatch.setattr(ports, "SLOTS", 2)
    with listening(port):
        with reserve_ports(1) as (mine,):
            assert mine == port + SLOT
        with pytest.raises(TransientError, match=f"No 11 ports in a row are free between {port} and ") as caught:
            reserve_ports(11).__enter__()
    assert caught.value.kind == "ports"
    with reserve_ports(20), pytest.raises(TransientError, match="No 1 ports"):
        reserve_ports(1).__enter__()
