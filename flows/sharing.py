"""One pace for many runs: each takes its share of a named Prefect limit, once and for as long as it asks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.exclusive import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect_dispatch.limits import Limits


def share_of(limits: Limits) -> Limits:
    """Return what a run may take of a pace that it shares: of rates as much as of the slots.

    Raises:
        JobError: If there is no such limit, or if the run wants more slots than it has.
    """
    if limits.pace_limit is None:
        return limits
    with get_client(sync_client=True) as client:
        try:
            slots = client.read_global_concurrency_limit_by_name(limits.pace_limit).limit
        except ObjectNotFound:
            raise JobError(
                f"limits.pace_limit: Prefect has no concurrency limit {limits.pace_limit!r}; make it, with as many "
                f"slots as calls may be under way at once: prefect gcl create {limits.pace_limit} --limit 100"
            ) from None
    if limits.concurrency > slots:
        raise JobError(
            f"limits.concurrency: {limits.concurrency} are more than the {slots} slots of {limits.pace_limit!r} "
            "(limits.pace_limit); ask for fewer at once."
        )
    rates = {name: getattr(limits, name) for name in ("requests_per_minute", "tokens_per_minute")}
    shares = {name: max(1, rate * limits.concurrency // slots) for name, rate in rates.items() if rate is not None}
    return limits.model_copy(update=shares)


@contextmanager
def sharing(limits: Limits) -> Generator[None, None, None]:
    """Occupy the slots of a shared pace while the body runs; wait while other runs have them.

    They are taken once for a run: taken for each call, they would cost seconds on a busy server.
    """
    if limits.pace_limit is None:
        yield
        return
    with concurrency(
        limits.pace_limit,
        occupy=limits.concurrency,
        lease_duration=LEASE_S,
        strict=True,
        raise_on_lease_renewal_failure=False,
    ):
        yield
