"""`Tournament`: ranks variants by a judge that compares pairs, by a metric, or by the results of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.tournament.tournament import Tournament

__all__ = ["Tournament"]

__getattr__ = lazy_names(__name__, {"Tournament": "tournament"})
