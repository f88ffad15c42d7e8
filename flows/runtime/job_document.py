"""Job files as documents: YAML or JSON with overrides, refused for an unknown flow or key before a model is imported.

Importing the models of a job takes most of a second, those of a form with Prefect several: a misspelt key is
refused without them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

from pydantic import ValidationError, create_model

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.base import Strict, did_you_mean
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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FLOWS = {
    "dispatch": "name briefs items executor integrator limits review fan_out task_runner out limit refresh",
    "analyze_files": (
        "files instructions credentials model fields several output merge identity rules conflicts match scope "
        "constraints folder limit profile concurrency budget_usd min_success name out review decisions refresh "
        "max_tokens pilot reader cheap_model budget merging limits report advanced"
    ),
    "research_topics": (
        "question topics topics_file credentials model sources source_forms answers models finding "
        "writer_model judge_model scope constraints folder limit profile concurrency budget_usd min_success name out "
        "refresh max_tokens researcher pilot budget limits report advanced"
    ),
    "content_variants": (
        "product instructions variants credentials model evaluation criterion judge_model metric results constraints "
        "max_words folder profile concurrency budget_usd min_success name out refresh max_tokens pilot "
        "budget limits report advanced"
    ),
    "build_modules": (
        "modules repo base agent credentials model api_base about setup accept branch force publish on_conflict "
        "overlap check max_usd budget_usd concurrency time_limit_s idle_limit_s max_turns retries reasks min_success "
        "params pass_env keep folder name out refresh answers pilot budget merging limits results advanced"
    ),
    "test_matrix": (
        "command axes repo base setup report exclude include required on_red retry retries env service ready ports "
        "time_limit_s concurrency pass_env keep folder name out refresh environments limits results advanced"
    ),
}
"""The flows as job files name them, each with the keys of its job file beside `flow`."""
_MODEL_FREE = {"shell": "a shell, which runs commands", "python": "a Python function, which makes its own calls"}


class JobDocument(NamedTuple):
    """A job file as data, with its overrides."""

    name: str
    """The name of the file."""
    flow: str
    """The flow that runs it."""
    data: dict[str, Any]
    """Its content, overrides included."""
    changed: list[tuple[list[str | int], str]]
    """The path of each override, and the option as messages quote it."""
    document: YamlDocument
    """The file, with the lines of its values."""

    def name_place(self, place: Sequence[str | int]) -> str:
        """Return a position for error messages: the last override that set the value, or its line in the file."""
        options = (option for path, option in reversed(self.changed) if path == [*place[: len(path)]])
        return next(options, str(self.document.position.find(place)))

    def explain(self, error: ValidationError) -> JobError:
        """Return the error for invalid values, with the line or the option of each."""
        return JobError(f"{self.name}: " + " ".join(explain_errors(error, self.data, self.name_place)))


def read_document(path: Path, changes: Sequence[str] = (), *, model: str | None = None) -> JobDocument:
    """Read a job file, for any flow; the arguments are those of `job_file.read_job`.

    Raises:
        JobError: If the file can't be read, isn't a mapping, names an unknown flow, or has an unknown key.
    """
    # 1. Parse the file, and apply the overrides.
    document = read_mapping(path)
    data = cast("dict[str, Any]", document.value)
    changed = [_apply_change(data, change) for change in changes]
    flow = data.get("flow", "dispatch")
    found = JobDocument(path.name, flow, data, changed, document)
    # 2. Determine the flow, and check the keys.
    if not isinstance(flow, str) or flow not in FLOWS:
        raise JobError(
            f"{path.name}: {found.name_place(['flow'])}: flow: there is no {show_value(flow)}; "
            f"{did_you_mean(str(flow), [*FLOWS])}"
        )
    if model is not None:
        _override_model(data, model, flow)
    try:
        _key_model(flow).model_validate(data)
    except ValidationError as error:
        raise found.explain(error) from None
    if flow == "dispatch" and _is_mapping(data.get("briefs")):  # one brief, which messages call briefs[0]
        data["briefs"] = [data["briefs"]]
    return found


@cache
def _key_model(name: str) -> type[Strict]:
    """Return a model that knows the keys of a job file for a flow, and accepts any value."""
    fields: dict[str, Any] = dict.fromkeys(("flow", *FLOWS[name].split()), (Any, None))
    return create_model(name, __base__=Strict, **fields)


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
    elif data.get("models") and "models" in FLOWS[flow].split():
        raise JobError(
            f"--model: {show_value(model)} would not be asked, as this job names several models under 'models'; change "
            "those with --set models=[…], or leave --model out."
        )
    elif "model" not in FLOWS[flow].split():
        raise JobError(f"--model: {show_value(model)} would not be asked, as {flow} asks no model; leave --model out.")
    else:
        data["model"] = model


def read_mapping(path: Path) -> YamlDocument:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        JobError: If it can't be read, or holds anything else.
    """
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
