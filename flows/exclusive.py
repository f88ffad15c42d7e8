"""Exclusive resources, held across processes and machines by named Prefect limits."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from prefect_dispatch.fingerprint import digest

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

LEASE_S = 60.0
"""Seconds after which the limits of a killed process are free again."""

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,80}")


def limit_name(resource: str) -> str:
    """Return the name of the Prefect limit that stands for a resource.

    Example:
        >>> limit_name("staging-db")
        'prefect-dispatch-staging-db'
        >>> limit_name("port 80/tcp")
        'prefect-dispatch-1f28afa8b1b8'
    """
    return "prefect-dispatch-" + (resource if _PLAIN.fullmatch(resource) else digest(resource)[:12])


@contextmanager
def exclusive(resources: Collection[str]) -> Generator[None, None, None]:
    """Hold some resources while the body runs; wait while another run holds one of them.

    All are taken in one step, once for a whole fan-out: a limit taken for each call costs
    seconds on a busy server.

    Args:
        resources: Their names; none is free.
    """
    if not resources:
        yield
        return
    names = sorted(map(limit_name, resources))
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    with concurrency(names, occupy=1, lease_duration=LEASE_S, strict=True, raise_on_lease_renewal_failure=False):
        yield
