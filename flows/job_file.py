"""Job files: the parameters of a flow as YAML or JSON, validated before a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypedDict, TypeGuard, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, create_model

from prefect_dispatch.blocks import block_reference
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.block_references import SLUGS
from prefect_dispatch.executors.registry import BuiltInExecutor
from prefect_dispatch.flows.forms import FormFlow, form_signature, validate_items, with_form_messages
from prefect_dispatch.flows.prepare import build_plan, load_stored_answers, prepare
from prefect_dispatch.flows.remote_targets import FanOutTo, TaskRunnerInput, resolve_deployment, shard_target
from prefect_dispatch.flows.review import require_deciding, require_review
from prefect_dispatch.flows.run_job import JobSpec
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.base import Strict, did_you_mean
from prefect_dispatch.models.brief import Brief, Name, to_brief_list
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.validation_messages import MAX_SHOWN, explain_errors, show_value
from prefect_dispatch.serialization.strict_yaml import (
    MAX_BYTES,
    YamlDocument,
    YamlError,
    decode,
    describe_value,
    load_documents,
    load_with_positions,
)
from prefect_dispatch.sources import ItemsInput
from prefect_dispatch.tasks.work_item import Refresh

if TYPE_CHECKING:
    from collections.abc import Collection
    from inspect import Parameter
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.flows.runtime.prepared_job import PreparedJob
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.tasks.plan import Plan


FORMS = ("analyze_files", "research_topics", "content_variants", "build_modules", "test_matrix")
"""The flows with a flat form, as job files name them; each is defined in a module of its name."""
RefreshInput = bool | str | Sequence[str]
"""Which items to ask again although an answer is stored: all, none, or those that match patterns."""


class Bounds(TypedDict):
    """The part of a job that is run."""

    limit: int | None
    """Number of items to take; None for all of them."""
    refresh: RefreshInput
    """Which items to ask again."""


class FormJob:
    """Job file for a flow with a flat form.

    Attributes:
        flow: The flow, as job files name it.
        given: The fields that the file sets, in the types of the form.
    """

    def __init__(self, flow: str, form: Strict) -> None:
        """Store the validated form."""
        self.flow = flow
        self._form = form
        self.values: dict[str, Any] = {name: getattr(form, name) for name in form.model_fields_set - {"flow"}}

    @property
    def deployment_name(self) -> str:
        """The name in the form."""
        return str(cast("Any", self._form).name)

    def parts(self, folder: Path) -> JobSpec:
        """Return the parts of the job."""
        flow = load_form_flow(self.flow)
        return with_form_messages(lambda: flow.build(**{**self.values, "folder": str(self.place(folder))}))

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of the job's deployment, as a form shows them."""
        given = self._form.model_dump(mode="json", exclude={"flow"}, exclude_unset=True, exclude_none=True)
        parameters: dict[str, JsonValue] = to_form_json({**given, "folder": str(self.place(folder))})
        return parameters

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one."""
        return self.place(folder) / self.values["out"] if self.values.get("out") else None

    def place(self, folder: Path) -> Path:
        """Return the folder that the job names, or that of its file."""
        return folder / str(self.values.get("folder", "."))

    def bounds(self, limit: int | None, refresh: RefreshInput) -> Bounds:
        """Return the limits given by the caller, else those of the job.

        Raises:
            JobError: If there is a limit, and the flow always takes all items.
        """
        if limit is not None and "limit" not in type(self._form).model_fields:
            raise JobError(f"--limit: {self.flow} has no items of which to take the first; leave it out.")
        own = self.values.get("limit"), self.values.get("refresh", False)
        return {"limit": own[0] if limit is None else limit, "refresh": own[1] if refresh is False else refresh}

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: RefreshInput) -> Report:
        """Run the flow."""
        flow: Any = load_form_flow(self.flow)
        more = {**self.bounds(limit, refresh), **({} if out is None else {"out": out})}
        own = {name: value for name, value in more.items() if name in type(self._form).model_fields}
        return cast("Report", flow(**{**self.values, "folder": str(self.place(folder)), **own}))


def load_form_flow(name: str) -> FormFlow[..., Report]:
    """Import the flow that job files call by a name."""
    return cast("FormFlow[..., Report]", getattr(import_module(f"prefect_dispatch.flows.{name}"), name))


@cache
def form_model(name: str) -> type[Strict]:
    """Return the model of a job file for a flow with a flat form: the parameters of the flow, and `flow`."""
    fields: dict[str, Any] = {"flow": (Literal[name], ...)}
    for parameter in form_signature(load_form_flow(name).build).parameters.values():
        fields[parameter.name] = (parameter.annotation, _default(parameter))
    return create_model(name, __base__=Strict, **fields)


def _default(parameter: Parameter) -> object:
    return ... if parameter.default is parameter.empty else parameter.default


def to_form_json(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Convert JSON to what a form shows: schemas over several lines, and blocks by reference."""
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
        return [to_form_json(part) for part in parts]
    if not isinstance(value, dict):
        return value
    return {name: _field_to_form_json(name, part) for name, part in cast("dict[str, Any]", value).items()}


def _field_to_form_json(name: str, value: Any) -> Any:  # noqa: ANN401 -- JSON
    if name in SLUGS and isinstance(value, str):
        return block_reference(name, value)
    if name == "output" and isinstance(value, str) and value.startswith("{"):
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    return to_form_json(value)


_RUN_PARAMETERS = ("name", "out", "limit", "refresh")
"""Parameters of the flow that are not parts of a job."""


class AnyJob(Protocol):
    """Interface of every job, independent of the flow that runs it."""

    @property
    def flow(self) -> str:
        """The flow that runs it, as a job file names it."""
        ...

    @property
    def deployment_name(self) -> str:
        """The default name of its deployment."""
        ...

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one; relative to the folder of the job file."""
        ...

    def parts(self, folder: Path) -> JobSpec:
        """Return the parts of the job.

        Args:
            folder: The folder of the job file.

        Raises:
            JobError: If they can't be built.
        """
        ...

    def place(self, folder: Path) -> Path:
        """Return the base folder of its relative paths, for a job file in a folder."""
        ...

    def bounds(self, limit: int | None, refresh: RefreshInput) -> Bounds:
        """Return the item limit and the refresh selection: those of the caller, else those of the job."""
        ...

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, as a form shows them: JSON, blocks by reference.

        Raises:
            JobError: If a block doesn't exist.
        """
        ...

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: RefreshInput) -> Report:
        """Run its flow; None and False stand for the values of the job.

        Raises:
            JobError: If it is unusable; nothing was spent.
            DispatchFailed: If the run failed.
        """
        ...


class Job(Strict):
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

    def parameters(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Return the parameters of the flow as objects, without the excluded ones."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in {"flow", *exclude}}

    def parts(self, folder: Path) -> JobSpec:  # noqa: ARG002 -- the signature of every job
        """Return the parts of the job."""
        return JobSpec(**self.parameters(exclude=_RUN_PARAMETERS))

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one."""
        return None if self.out is None else folder / self.out

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of the job's deployment, as a form shows them."""
        given = self.model_dump(mode="json", exclude={"flow"}, exclude_none=True)
        for brief in given["briefs"]:
            for hidden in ("sample", "part"):  # set while a job runs; no form has them, and Prefect rejects them
                del brief[hidden]
        if not self.refresh:  # the default of the flow
            del given["refresh"]
        parameters: dict[str, JsonValue] = to_form_json({**given, "folder": str(folder)})
        return parameters

    def place(self, folder: Path) -> Path:
        """Return the folder itself."""
        return folder

    def bounds(self, limit: int | None, refresh: RefreshInput) -> Bounds:
        """Return the limits given by the caller, else those of the job."""
        return {
            "limit": self.limit if limit is None else limit,
            "refresh": self.refresh if refresh is False else refresh,
        }

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: RefreshInput) -> Report:
        """Run `dispatch`."""
        from prefect_dispatch.flows.dispatch import dispatch  # noqa: PLC0415 -- a plan needs no flow

        run: Any = dispatch
        given = {**self.parameters(), **self.bounds(limit, refresh), **({} if out is None else {"out": out})}
        return cast("Report", run(**given, folder=str(folder)))


def validate_job(job: AnyJob, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False) -> PreparedJob:
    """Validate a job and return it ready to run; nothing is asked, and only a job with a block needs a server.

    Args:
        job: The job.
        folder: The folder of its file.
        limit: Number of items to take, in place of the job's own.
        refresh: Which items to ask again, in place of the job's own.

    Raises:
        JobError: If it is unusable.
    """
    parts, place = job.parts(folder), job.place(folder)
    if parts.review:
        require_review(parts.integrator, place)
    return _prepare(job, parts, place, job.bounds(limit, refresh))


def plan_job(job: AnyJob, folder: Path, *, limit: int | None = None, refresh: RefreshInput = False) -> Plan:
    """Return the plan of a job; nothing is asked. The arguments are those of `validate_job`.

    Raises:
        JobError: If it is unusable.
    """
    parts = job.parts(folder)
    if parts.review:
        require_deciding(parts.integrator)  # without the check of `validate_job` that the file can be written
    prepared = _prepare(job, parts, job.place(folder), job.bounds(limit, refresh))
    plan = build_plan(*load_stored_answers(prepared))
    way = resolve_deployment(parts.fan_out, prepared.work, prepared.executor, job.place(folder).resolve())
    shard_target(parts.task_runner, prepared.executor, way.target)
    return plan.model_copy(update={"notes": (*plan.notes, *way.notes)})


def _prepare(job: AnyJob, parts: JobSpec, place: Path, bounds: Bounds) -> PreparedJob:
    def step() -> PreparedJob:
        return prepare(
            parts.briefs, parts.items, parts.executor, parts.integrator, parts.limits, folder=place.resolve(), **bounds
        )

    return step() if isinstance(job, Job) else with_form_messages(step)


__all__ = ["FormJob", "Job", "load_job", "read_job"]


_MODEL_FREE = {"shell": "a shell, which runs commands", "python": "a Python function, which makes its own calls"}


def load_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> Job:
    """Load the job file of a job for `dispatch`; see `read_job`.

    Raises:
        JobError: If it isn't one.
    """
    job = read_job(path, changes, model=model)
    if not isinstance(job, Job):
        raise JobError(f"{path.name}: flow: a job for 'dispatch' is wanted here, and this one is for {job.flow!r}.")
    return job


def read_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> Job | FormJob:
    """Load a job file, for any flow.

    Args:
        path: The file.
        changes: Overrides such as `limits.concurrency=4`; the part after the first `=` is YAML.
        model: The model to ask instead of the one in the file.

    Raises:
        JobError: If the file can't be read, or isn't a job.
    """
    # 1. Parse the file, and apply the overrides.
    document = _read_document(path)
    data = cast("dict[str, Any]", document.value)
    changed = [_apply_change(data, change) for change in changes]

    def where(place: Sequence[str | int]) -> str:
        """Return a position for error messages: the last change that set the value, or its line in the file."""
        changes = (option for path, option in reversed(changed) if path == [*place[: len(path)]])
        return next(changes, str(document.position.find(place)))

    # 2. Determine the flow, whose model validates the rest.
    flow = data.get("flow", "dispatch")
    if flow not in ("dispatch", *FORMS):
        raise JobError(
            f"{path.name}: {where(['flow'])}: flow: there is no {show_value(flow)}; "
            f"{did_you_mean(str(flow), ['dispatch', *FORMS])}"
        )
    if model is not None:
        _override_model(data, model, flow)
    if flow == "dispatch" and _is_mapping(data.get("briefs")):  # one brief, which messages call briefs[0]
        data["briefs"] = [data["briefs"]]
    # 3. Validate; the errors name the line or the option of each value.
    try:
        return Job.model_validate(data) if flow == "dispatch" else FormJob(flow, form_model(flow).model_validate(data))
    except ValidationError as error:
        raise JobError(f"{path.name}: " + " ".join(explain_errors(error, data, where))) from None


def _override_model(data: dict[str, Any], model: str, flow: str) -> None:
    """Replace the model of a job."""
    executor = data.get("executor")
    kind = str(executor.get("kind")) if flow == "dispatch" and _is_mapping(executor) else ""
    if kind in _MODEL_FREE:
        raise JobError(
            f"--model: {show_value(model)} would not be asked, as this job's executor is {_MODEL_FREE[kind]}; "
            "leave --model out, or set executor.kind to 'llm'."
        )
    if flow == "dispatch":
        data["executor"] = {**cast("dict[str, Any]", executor if isinstance(executor, dict) else {}), "model": model}
    elif data.get("models") and "models" in form_model(flow).model_fields:
        raise JobError(
            f"--model: {show_value(model)} would not be asked, as this job names several models under 'models'; change "
            "those with --set models=[…], or leave --model out."
        )
    elif "model" not in form_model(flow).model_fields:
        raise JobError(f"--model: {show_value(model)} would not be asked, as {flow} asks no model; leave --model out.")
    else:
        data["model"] = model


def _read_document(path: Path) -> YamlDocument:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JobError(f"The job file {str(path)!r} can't be read: {error.strerror}.") from None
    try:
        parsed = load_with_positions(decode(content))
    except YamlError as error:
        raise JobError(f"{path.name}: {error}.") from None
    if len(parsed) > 1:
        raise JobError(f"{path.name}: {parsed[1].position}: another document begins here; a job file holds one job.")
    if not parsed or not _is_mapping(parsed[0].value):
        has = describe_value(parsed[0].value) if parsed and parsed[0].value is not None else "an empty file"
        raise JobError(
            f"{path.name}: a job is a mapping with 'briefs' and 'items', or with 'flow' and the fields of its form, "
            f"and this is {has}."
        )
    return parsed[0]


def _apply_change(data: dict[str, Any], change: str) -> tuple[list[str | int], str]:
    """Change one value of a job; return its path, and the option as error messages quote it."""
    option = f"--set {change[:MAX_SHOWN]!r}"
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise JobError(f"{option}: write it as key.key=value.")
    try:
        values = load_documents(text)
    except YamlError as error:
        raise JobError(f"{option}: the value can't be read as YAML: {error}.") from None
    if len(values) > 1:
        raise JobError(f"{option}: the value is several documents of YAML; write one.")
    # Walk to the parent of the value; missing mappings on the path are created.
    *parents, last = name.split(".")
    inside: Any = data
    path: list[str | int] = []
    for parent in parents:
        part = _resolve_part(inside, parent, option)
        if isinstance(part, str) and inside.get(part) is None:
            inside[part] = {}
        inside = inside[part]
        path.append(part)
    path.append(_resolve_part(inside, last, option))
    inside[path[-1]] = values[0] if values else None
    return path, option


def _resolve_part(inside: object, name: str, option: str) -> str | int:
    """Return one part of a `--set` path as the key of a mapping, or the index of a list."""
    if _is_mapping(inside):
        return name
    if not _is_list(inside):
        raise JobError(f"{option}: {name!r} would be a part of {describe_value(inside)}, which has none.")
    if not name.isdecimal() or int(name) >= len(inside):
        raise JobError(f"{option}: {name!r} is no place in a list of {len(inside)}; the first is 0.")
    return int(name)


def _is_mapping(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)
