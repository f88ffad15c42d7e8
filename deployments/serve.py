"""Flows, served from this process to Prefect's UI, schedules and API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import serve as serve_deployments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect_dispatch.deployments.building import Wanted


def serve(deployments: Sequence[Wanted]) -> None:  # pragma: no cover -- never ends; test_worker runs it as a process
    """Serve deployments, each with one run at a time, until interrupted."""
    serve_deployments(*(each.made for each in deployments), limit=len(deployments))
