"""Data of a job: briefs, items, outcomes, usage, limits, the ledger and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.outcome import Answer, Outcome

__all__ = ["Answer", "Brief", "Item", "Outcome"]

__version__ = "0.1.0"
"""Version of the package, which reports contain; apart from the package itself, whose names import everything."""
__getattr__ = lazy_names(__name__, {"Answer": "outcome", "Outcome": "outcome", "Brief": "brief", "Item": "item"})
