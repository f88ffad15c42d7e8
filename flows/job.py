"""A job file: the parameters of a flow, as YAML or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard, cast

from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.job_form import FORMS, FormJob, form_model
from prefect_dispatch.flows.job_kinds import Job
from prefect_dispatch.strict import nearest
from prefect_dispatch.wrong_values import MAX_SHOWN, explain_errors, show_value
from prefect_dispatch.yaml_text import (
    MAX_BYTES,
    Document,
    YamlError,
    decode,
    describe,
    documents,
    read_documents,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


__all__ = ["FormJob", "Job", "load_job", "read_job"]

_WITHOUT_MODEL = {"shell": "a shell, which runs commands", "python": "a Python function, which asks whom it likes"}


def load_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> Job:
    """Return the job for `dispatch` that a file describes; see `read_job`.

    Raises:
        JobError: If it isn't one.
    """
    job = read_job(path, changes, model=model)
    if not isinstance(job, Job):
        raise JobError(f"{path.name}: flow: a job for 'dispatch' is wanted here, and this one is for {job.flow!r}.")
    return job


def read_job(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> Job | FormJob:
    """Return the job that a file describes, for whichever flow.

    Args:
        path: The file.
        changes: Texts such as `limits.concurrency=4`; the part after the first `=` is YAML.
        model: The model to ask instead of the one in the file.

    Raises:
        JobError: If the file can't be read, or isn't a job.
    """
    document = _read(path)
    data = cast("dict[str, Any]", document.value)
    changed = [_set(data, change) for change in changes]

    def where(place: Sequence[str | int]) -> str:
        """Return what a message calls a place: the last change that set it, or its line in the file."""
        changes = (shown for path, shown in reversed(changed) if path == [*place[: len(path)]])
        return next(changes, str(document.place.find(place)))

    flow = data.get("flow", "dispatch")
    if flow not in ("dispatch", *FORMS):
        raise JobError(
            f"{path.name}: {where(['flow'])}: flow: there is no {show_value(flow)}; "
            f"{nearest(str(flow), ['dispatch', *FORMS])}"
        )
    if model is not None:
        _ask(data, model, flow)
    if flow == "dispatch" and _is_mapping(data.get("briefs")):  # one brief, which messages call briefs[0]
        data["briefs"] = [data["briefs"]]
    try:
        return Job.model_validate(data) if flow == "dispatch" else FormJob(flow, form_model(flow).model_validate(data))
    except ValidationError as error:
        raise JobError(f"{path.name}: " + " ".join(explain_errors(error, data, where))) from None


def _ask(data: dict[str, Any], model: str, flow: str) -> None:
    """Have a model asked in place of the one that a job names."""
    executor = data.get("executor")
    kind = str(executor.get("kind")) if flow == "dispatch" and _is_mapping(executor) else ""
    if kind in _WITHOUT_MODEL:
        raise JobError(
            f"--model: {show_value(model)} would not be asked, as this job's executor is {_WITHOUT_MODEL[kind]}; "
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


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JobError(f"The job file {str(path)!r} can't be read: {error.strerror}.") from None
    try:
        found = read_documents(decode(content))
    except YamlError as error:
        raise JobError(f"{path.name}: {error}.") from None
    if len(found) > 1:
        raise JobError(f"{path.name}: {found[1].place}: another document begins here; a job file holds one job.")
    if not found or not _is_mapping(found[0].value):
        has = describe(found[0].value) if found and found[0].value is not None else "an empty file"
        raise JobError(
            f"{path.name}: a job is a mapping with 'briefs' and 'items', or with 'flow' and the fields of its form, "
            f"and this is {has}."
        )
    return found[0]


def _set(data: dict[str, Any], change: str) -> tuple[list[str | int], str]:
    """Change one value of a job; return its path, and what a message calls the change."""
    shown = f"--set {change[:MAX_SHOWN]!r}"
    name, equals, text = change.partition("=")
    if not equals or not name:
        raise JobError(f"{shown}: write it as key.key=value.")
    try:
        found = documents(text)
    except YamlError as error:
        raise JobError(f"{shown}: the value can't be read as YAML: {error}.") from None
    if len(found) > 1:
        raise JobError(f"{shown}: the value is several documents of YAML; write one.")
    *parents, last = name.split(".")
    inside: Any = data
    path: list[str | int] = []
    for parent in parents:
        part = _part(inside, parent, shown)
        if isinstance(part, str) and inside.get(part) is None:
            inside[part] = {}
        inside = inside[part]
        path.append(part)
    path.append(_part(inside, last, shown))
    inside[path[-1]] = found[0] if found else None
    return path, shown


def _part(inside: object, name: str, shown: str) -> str | int:
    """Return a part of a path of `--set` as the key, or the number, that it is in a value."""
    if _is_mapping(inside):
        return name
    if not _is_list(inside):
        raise JobError(f"{shown}: {name!r} would be a part of {describe(inside)}, which has none.")
    if not name.isdecimal() or int(name) >= len(inside):
        raise JobError(f"{shown}: {name!r} is no place in a list of {len(inside)}; the first is 0.")
    return int(name)


def _is_mapping(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)
