"""The flow `dispatch`: maps briefs over items, merges the answers, and accounts for every item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from prefect.context import FlowRunContext
from pydantic import Field, GetPydanticSchema

from prefect_dispatch.errors import SourceError
from prefect_dispatch.executors.registry import AnyExecutor  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.flows.run_job import run_job
from prefect_dispatch.flows.runtime.flow_class import DataFlow, run_attempt
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.registry import PluggableIntegrator  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.models.brief import Brief, BriefsInput, Name
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.report import Report  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.sources import ItemsInput, validate_items
from prefect_dispatch.tasks.result_store import ReportSerializer
from prefect_dispatch.tasks.shards.options import (
    FanOutTo,  # noqa: TC001 -- Prefect reads the signature
    TaskRunnerInput,  # noqa: TC001 -- Prefect reads the signature
)
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature

if TYPE_CHECKING:
    from prefect_dispatch.sources import Source

Items = Annotated[Any, GetPydanticSchema(lambda _, handler: handler(ItemsInput))]
"""A source in any of its forms; for a type checker any value that can be converted, futures of tasks included."""
Briefs = Annotated[Brief | Sequence[Brief], GetPydanticSchema(lambda _, handler: handler(BriefsInput))]
"""One brief or several: for a form a list."""


def _require_items(items: Source) -> None:
    """Check the items of a flow run of a deployment, whose list is filled in by a person in its form.

    Raises:
        SourceError: If the list is empty.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    try:
        validate_items(items)
    except ValueError as error:
        raise SourceError(str(error)) from None


def _dispatch(  # noqa: PLR0913, PLR0917 -- the parameters are the job
    briefs: Briefs,
    items: Items,
    executor: AnyExecutor | None = None,
    integrator: PluggableIntegrator | None = None,
    limits: Limits = Limits(),  # noqa: B008 -- frozen
    review: bool = False,  # noqa: FBT001, FBT002 -- a box in a form
    folder: str = ".",
    out: Annotated[str, Field(title="Folder")] | None = None,
    limit: Annotated[int, Field(title="Number", ge=1)] | None = None,
    refresh: Refresh = False,  # noqa: FBT002 -- a box in a form, or a list
    fan_out: FanOutTo | None = None,
    task_runner: TaskRunnerInput | None = None,
    name: Annotated[Name, Field(title="Name")] | None = None,
) -> Report:
    """Run briefs over items, merge the answers, and account for every item.

    Called alone it is a flow run, inside a flow a subflow. It completes, with gaps
    if some (brief, item) have no answer, or raises if none has, if fewer than
    `limits.min_success` have, if an error stopped it that every item would meet,
    or if the merged value fails its audit.

    Args:
        briefs: What is asked: one brief or several, each for every item.
        items: Where the items come from.
        executor: The executor. None: the model named in the settings, else the local one.
        integrator: How the answers are merged. None: they are collated, in the order of the items.
        limits: The limits of the run.
        review: Let people decide on open pairs and conflicts before anything is published. A run of a deployment is
            suspended until its form in Prefect's UI is answered; any other ends as `NeedsReview`, with status `gaps`.
        folder: The folder that relative paths and your own code are looked up in.
        out: A folder, or a URL such as s3://bucket/report, for report.html, report.json, report.md, outcomes.jsonl and
            a CSV for each table; or a file in it for the merged rows as well, such as report/answers.xlsx (or .csv,
            .parquet). None: no files are written.
        limit: Take only the first so many items. None: all of them.
        refresh: Ask again even where an answer is stored: all of it, or what some patterns name: a `brief/item`, an
            item, or a glob of either, such as `terms/*.txt`. Then an integrator's own questions are asked again
            where what they ask has changed.
        fan_out: Where shards run: by `deployment`, as runs of one on any work pool. None: in the run's own process.
        task_runner: Which of Prefect's task runners runs shards: `threads`, `processes`, `dask` or `ray`. None: the
            flow's own.
        name: What the job is called: small letters, digits and hyphens. Each run is compared with the last one of that
            name. None: with the last one of the same briefs over the same source.

    Returns:
        The report: merged value, ledger, gaps, usage.

    Raises:
        JobError: If the job is unusable; nothing was spent.
        DispatchFailed: If the run failed; `.report` says how each item ended.
        CancelledRun: If it was cancelled or interrupted; answers received until then are stored.
    """

    def carry() -> Report:
        _require_items(items)
        asked = cast("list[Brief]", briefs)
        parts = asked, items, executor, integrator, limits, review, folder, out, limit, refresh, fan_out, task_runner
        return run_job(JobSpec(*parts, name=name))

    return run_attempt(carry)


# A deployment finds the flow in this module by the name of its function.
_dispatch.__name__ = _dispatch.__qualname__ = "dispatch"
dispatch = DataFlow(_dispatch, name="dispatch", result_serializer=ReportSerializer())
