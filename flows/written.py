"""A list of items that somebody has written down, in a job file or a form: unlike one that code made, it has some."""

from __future__ import annotations

from prefect.context import FlowRunContext

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources import Listed, Source

NONE = "There are no items: the list is empty; name some, or a source that may be empty, such as a table or a query."


def written(items: Source) -> Source:
    """Return the items of a job file.

    Raises:
        ValueError: If they are an empty list.

    Example:
        >>> written(Listed.model_validate(["MIT"])).items[0].key
        'MIT'
    """
    if isinstance(items, Listed) and not items.items:
        raise ValueError(NONE)
    return items


def require_written(items: Source) -> None:
    """Check the items of a flow run; a list that a deployment has stands in its form.

    Raises:
        SourceError: If that is empty.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    try:
        written(items)
    except ValueError as error:
        raise SourceError(str(error)) from None
