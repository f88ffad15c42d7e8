"""Whether anybody can use Prefect's API: asked of the API itself, without credentials."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import httpx
from prefect.settings import get_current_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 3.0
"""Seconds that the API has for an answer."""
_ELSEWHERE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Addresses that are nobody's: which of ours would one be reached from?"""


def open_address() -> str | None:
    """Return an address, not a loopback one, at which Prefect's API answers whoever asks; None if none is known.

    Prefect Cloud is left out, and so is the server that Prefect starts for one process. An API that is used at a
    loopback address is asked at this machine's own address too, where a server on all interfaces is found.
    """
    settings = get_current_settings()
    if not settings.api.url:
        return None
    url = httpx.URL(settings.api.url).copy_with(userinfo=b"")  # which httpx would send as credentials
    if str(url).startswith(settings.cloud.api_url):
        return None
    for host in _hosts(url.host):
        asked = url.copy_with(host=host)
        if answers(asked):
            return str(asked)
    return None


def _hosts(host: str) -> Iterator[str]:
    """Yield where the API may be found by others."""
    if _is_loopback(host):
        yield from own_addresses()
    else:
        yield host


def own_addresses() -> Iterator[str]:
    """Yield the addresses at which others reach this machine: those that it would reach others from."""
    for nobody, family in _ELSEWHERE:
        with socket.socket(family, socket.SOCK_DGRAM) as own, suppress(OSError):  # no way there at all
            own.connect((nobody, 9))  # of a datagram socket: nothing is sent
            yield str(own.getsockname()[0])


def _is_loopback(host: str) -> bool:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip_address(each.partition("%")[0]).is_loopback for each in found)


def answers(url: httpx.URL) -> bool:
    """Say whether Prefect's API tells its version to somebody without credentials (its health is for everybody)."""
    settings = get_current_settings().api
    try:
        trusted = ssl.create_default_context(cafile=settings.ssl_cert_file)
        verify = not settings.tls_insecure_skip_verify and trusted
        with httpx.Client(timeout=PATIENCE_S, verify=verify) as client:
            told = client.get(f"{str(url).rstrip('/')}/admin/version")
            return told.is_success and isinstance(told.json(), str)
    except (httpx.HTTPError, ValueError, OSError):
        return False
