"""`TestMatrix`: test runs in several environments, compared test by test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.test_matrix.matrix_integrator import TestMatrix

__all__ = ["TestMatrix"]

__getattr__ = lazy_names(__name__, {"TestMatrix": "matrix_integrator"})
