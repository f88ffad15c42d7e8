"""Job files: the parameters of a flow as YAML or JSON, validated before a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, create_model, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.block_references import SLUGS
from prefect_dispatch.executors.registry import BuiltInExecutor
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.flows.runtime.job_document import read_document
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import Brief, Name, to_brief_list
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.sources import ItemsInput, validate_items
from prefect_dispatch.tasks.shards.options import FanOutTo, TaskRunnerInput
from prefect_dispatch.tasks.work_item import Refresh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Self

    from prefect_dispatch.flows.runtime.form import Form
    from prefect_dispatch.flows.runtime.job_document import JobDocument
    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.tasks.plan import Plan

R = TypeVar("R")

RefreshInput = bool | str | Sequence[str]
"""Which items to ask again although an answer is stored: all, none, or those that match patterns."""


class JobFile(Strict):
    """Job file: the parameters of a flow. The model of each flow with a form is derived from this one."""

    flow: Any
    """The flow that runs it, as job files name it: in each model one name."""

    @property
    def deployment_name(self) -> str:
        """The default name of its deployment."""
        return str(cast("Any", self).name)

    def place(self, folder: Path) -> Path:
        """Return the base folder of its relative paths, for a job file in a folder."""
        return folder / str(getattr(self, "folder", "."))

    def parameters(
        self, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False, out: str | None = None
    ) -> dict[str, Any]:
        """Return the parameters of the flow, as objects.

        Args:
            folder: The folder of the job file.
            limit: Number of items to take, in place of the job's own.
            refresh: Which items to ask again, in place of the job's own.
            out: The folder of the report's files, in place of the job's own.

        Raises:
            JobError: If there is a limit, and the flow always takes all items.
        """
        fields = type(self).model_fields
        if limit is not None and "limit" not in fields:
            raise JobError(f"--limit: {self.flow} has no items of which to take the first; leave it out.")
        own = {name: getattr(self, name) for name in fields if name != "flow"}
        options = {"limit": limit, "refresh": refresh or None, "out": out, "folder": str(self.place(folder))}
        return own | {name: value for name, value in options.items() if value is not None}

    def spec(self, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False) -> JobSpec:
        """Return the parts of the job; the arguments are those of `parameters`.

        Raises:
            JobError: If they can't be built.
        """
        return load_form(self.flow).build(**self.parameters(folder, limit=limit, refresh=refresh))

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, as a form shows them: JSON, blocks by reference.

        Raises:
            JobError: If a block doesn't exist.
        """
        given = self.model_dump(mode="json", exclude={"flow"}, exclude_unset=True, exclude_none=True)
        return cast("dict[str, JsonValue]", to_form_json({**given, "folder": str(self.place(folder))}))

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: RefreshInput) -> Report:
        """Run its flow; the arguments are those of `parameters`.

        Raises:
            JobError: If it is unusable; nothing was spent.
            DispatchFailed: If the run failed.
        """
        report: Report = load_flow(self.flow)(**self.parameters(folder, limit=limit, refresh=refresh, out=out))
        return report


class Job(JobFile):
    """Job file for the flow `dispatch`."""

    flow: Literal["dispatch"] = "dispatch"
    """The flow that runs it."""
    name: Name | None = None
    """The name of the job: each run is compared with the last one of that name. None: see `LastRunStore`."""
    briefs: Annotated[list[Brief], Field(min_length=1), BeforeValidator(to_brief_list)]
    """What is asked: one brief or several."""
    items: Annotated[ItemsInput, AfterValidator(validate_items)]
    """The source of the items."""
    executor: BuiltInExecutor | None = None
    """The executor that answers the briefs."""
    integrator: AnyIntegrator | None = None
    """How the answers are merged."""
    limits: Limits = Limits()
    """The limits of the run."""
    review: bool = False
    """Whether people decide on open pairs and conflicts before the run publishes."""
    fan_out: FanOutTo | None = None
    """Where shards run: by `deployment`, as runs of one on any work pool. None: in the run's own process."""
    task_runner: TaskRunnerInput | None = None
    """The task runner of Prefect's for shards: `threads`, `processes`, `dask` or `ray`. None: the flow's own."""
    out: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the report's files. None: no files are written."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of items to take, from the first. None: all of them."""
    refresh: Refresh = False
    """Which items are asked again even where an answer is stored."""

    @property
    def deployment_name(self) -> str:
        """The name of the job, else that of its first brief."""
        return self.name or self.briefs[0].name

    def spec(self, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False) -> JobSpec:
        """Return the parts of the job; the arguments are those of `parameters`."""
        return JobSpec(**self.parameters(folder, limit=limit, refresh=refresh))  # a plan needs no flow

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of the job's deployment, as a form shows them, with all defaults of its parts."""
        given = self.model_dump(mode="json", exclude={"flow"}, exclude_none=True)
        for brief in given["briefs"]:
            for hidden in (
                "sample",
                "part",
                "start",
            ):  # set while a job runs; no form has them, and Prefect rejects them
                del brief[hidden]
        if not self.refresh:  # the default of the flow
            del given["refresh"]
        return cast("dict[str, JsonValue]", to_form_json({**given, "folder": str(folder)}))


class FormJob(JobFile):
    """Job file for a flow with a form: its values stand by themselves or in the groups of the form."""

    @model_validator(mode="after")
    def _without_groups(self) -> Self:
        """Return the job with each value of a group under its own parameter."""
        form = load_form(self.flow)
        groups: dict[str, Any] = {group: getattr(self, group) for group in form.layout.groups}
        if not any(groups.values()):
            return self
        given = {name: getattr(self, name) for name in form.defaults}
        try:
            flat = form.layout.flatten(given, form.defaults)
        except JobError as error:
            raise ValueError(str(error).rstrip(".")) from None
        changes = {name: value for name, value in flat.items() if value != given[name]}
        return self.model_copy(update={**dict.fromkeys(groups), **changes})

    def parameters(
        self, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False, out: str | None = None
    ) -> dict[str, Any]:
        """Return the parameters of the flow without its groups; see `JobFile.parameters`."""
        every = super().parameters(folder, limit=limit, refresh=refresh, out=out)
        return {name: value for name, value in every.items() if name not in load_form(self.flow).layout.groups}

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, each in the group in which the form shows it."""
        nested: dict[str, JsonValue] = load_form(self.flow).layout.nest(super().form_parameters(folder))
        return nested


def load_flow(name: str) -> Any:  # noqa: ANN401 -- the flow class depends on the name
    """Return the flow that job files call by a name."""
    return getattr(import_module(f"prefect_dispatch.flows.{name}"), name)


def load_form(name: str) -> Form[...]:
    """Import the form of the flow that job files call by a name."""
    form: Form[...] = import_module(f"prefect_dispatch.flows.{name}").FORM
    return form


@cache
def form_model(name: str) -> type[JobFile]:
    """Return the model of a job file for a flow with a flat form: the parameters of the flow, and `flow`."""
    fields: dict[str, Any] = {"flow": (Literal[name], ...)}
    for each in load_form(name).signature.parameters.values():
        fields[each.name] = (each.annotation, ... if each.default is each.empty else each.default)
    return create_model(name, __base__=FormJob, **fields)


def to_form_json(value: Any, name: str = "") -> Any:  # noqa: ANN401 -- JSON
    """Convert JSON to what a form shows: schemas over several lines, and blocks by reference.

    Args:
        value: The JSON.
        name: The name of the field that has this value.
    """
    if isinstance(value, dict):
        return {key: to_form_json(part, key) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
        return [to_form_json(part) for part in parts]
    if name in SLUGS and isinstance(value, str):
        from prefect_dispatch.blocks import block_reference  # noqa: PLC0415 -- imports Prefect

        return block_reference(name, value)
    if name == "output" and isinstance(value, str) and value.startswith("{"):
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    return value


def validate_job(job: JobFile, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False) -> PreparedJob:
    """Validate a job and return it ready to run; nothing is asked, and only a job with a block needs a server.

    Args:
        job: The job.
        folder: The folder of its file.
        limit: Number of items to take, in place of the job's own.
        refresh: Which items to ask again, in place of the job's own.

    Raises:
        JobError: If it is unusable.
    """
    from prefect_dispatch.flows.prepare import prepare  # noqa: PLC0415 -- a wrong value is refused without it

    def step() -> PreparedJob:
        spec = job.spec(folder, limit=limit, refresh=refresh)
        if spec.review:
            from prefect_dispatch.flows.review import require_review  # noqa: PLC0415 -- imports Prefect

            require_review(spec.integrator, spec.place)
        return prepare(spec)

    return _with_messages(job, step)


def plan_job(
    job: JobFile,
    folder: Path,
    *,
    limit: int | None = None,
    refresh: RefreshInput = False,
    deadline: str | None = None,
) -> Plan:
    """Return the plan of a job; nothing is asked. The other arguments are those of `validate_job`.

    Args:
        job: The job.
        folder: Its folder.
        limit: The number of items to take.
        refresh: What is asked again.
        deadline: The time that the job has, such as `2h`.

    Raises:
        JobError: If it is unusable.
    """
    from prefect_dispatch.flows.prepare import plan_prepared, prepare  # noqa: PLC0415 -- a wrong value is refused without it

    def step() -> Plan:
        spec = job.spec(folder, limit=limit, refresh=refresh)
        if spec.review:
            from prefect_dispatch.flows.review import require_deciding  # noqa: PLC0415 -- imports Prefect

            require_deciding(spec.integrator)
        return plan_prepared(prepare(spec), spec, deadline)

    return _with_messages(job, step)


def _with_messages(job: JobFile, step: Callable[[], R]) -> R:
    """Run a step; its error messages use the field names of the job file."""
    if isinstance(job, Job):
        return step()
    return with_form_messages(step)


def load_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> Job:
    """Load the job file of a job for `dispatch`; see `read_job`.

    Raises:
        JobError: If it isn't one.
    """
    job = read_job(path, changes, model=model)
    if not isinstance(job, Job):
        raise JobError(f"{path.name}: flow: a job for 'dispatch' is wanted here, and this one is for {job.flow!r}.")
    return job


def read_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> JobFile:
    """Load a job file, for any flow.

    Args:
        path: The file.
        changes: Overrides such as `limits.concurrency=4`; the part after the first `=` is YAML.
        model: The model to ask instead of the one in the file.

    Raises:
        JobError: If the file can't be read, or isn't a job.
    """
    return parse_job(read_document(path, changes, model=model))


def parse_job(document: JobDocument) -> JobFile:
    """Return the job that a document holds.

    Raises:
        JobError: If a value is wrong; the message names the line or the option of each.
    """
    model = Job if document.flow == "dispatch" else form_model(document.flow)
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise document.explain(error) from None
