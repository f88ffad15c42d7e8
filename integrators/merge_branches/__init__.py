"""`MergeBranches`: changes of one repository, merged into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches

__all__ = ["MergeBranches"]

__getattr__ = lazy_names(__name__, {"MergeBranches": "merge_branches"})
