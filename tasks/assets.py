"""What is written, as assets of Prefect: an event for each, with what it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.assets import Asset
from prefect.events import emit_event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import JsonValue

NAME = "prefect-dispatch"
"""The tool that materialised an asset, as events name it."""


def materialized(keys: Iterable[str], *, made_of: Iterable[str] = (), metadata: Mapping[str, JsonValue]) -> None:
    """Tell Prefect that some assets were written in the flow or task run that is under way.

    These are the events of `prefect.assets.materialize`, which knows the keys only where a task is defined.

    Args:
        keys: The assets.
        made_of: The assets that they were made of.
        metadata: What there is to say of them.
    """
    upstream = sorted(set(made_of))
    for key in upstream:
        emit_event("prefect.asset.referenced", resource={"prefect.resource.id": Asset(key=key).key})
    related = [{"prefect.resource.id": key, "prefect.resource.role": "asset"} for key in upstream]
    related.append({"prefect.resource.id": NAME, "prefect.resource.role": "asset-materialized-by"})
    for key in keys:
        emit_event(
            "prefect.asset.materialization.succeeded",
            resource={"prefect.resource.id": Asset(key=key).key},
            related=related,
            payload=dict(metadata),
        )
