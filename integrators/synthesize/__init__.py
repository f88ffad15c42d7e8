"""`Synthesize`: one text or value of all answers, written by a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.synthesize.synthesize import Synthesize

__all__ = ["Synthesize"]

__getattr__ = lazy_names(__name__, {"Synthesize": "synthesize"})
