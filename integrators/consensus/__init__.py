"""`Consensus`: several answers to the same item become one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.consensus.consensus import Consensus

__all__ = ["Consensus"]

__getattr__ = lazy_names(__name__, {"Consensus": "consensus"})
