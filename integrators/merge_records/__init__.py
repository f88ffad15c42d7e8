"""`MergeRecords`: deduplicate records and merge them field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords

__all__ = ["MergeRecords"]

__getattr__ = lazy_names(__name__, {"MergeRecords": "merge_records"})
