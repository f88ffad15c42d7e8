"""Audit of a merge: compares what an integrator returned with the outcomes it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.audit.laws import audit

__all__ = ["audit"]

__getattr__ = lazy_names(__name__, {"audit": "laws"})
