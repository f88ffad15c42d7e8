"""A job file: the parameters of a flow, as YAML or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard, cast

import yaml
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.job_form import FORMS, FormJob, form_model
from prefect_dispatch.flows.job_kinds import Job
from prefect_dispatch.scrub import SECRET_NAME, scrub
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path


__all__ = ["FormJob", "Job", "load_job", "read_job"]

_WITHOUT_MODEL = {"shell": "a shell, which runs commands", "python": "a Python function, which asks whom it likes"}
MAX_SHOWN = 80
"""Characters of a wrong value that are shown."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a key stands once."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys: set[Hashable] = set()
    for key_node, _ in node.value:
        key: Hashable = cast("Any", loader).construct_object(key_node, deep=True)
        if key in keys:
            raise JobError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice.")
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


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
    data = _read(path)
    for change in changes:
        _set(data, change)
    flow = data.get("flow", "dispatch")
    if flow not in ("dispatch", *FORMS):
        raise JobError(f"{path.name}: flow: there is no {flow!r}; {nearest(str(flow), ['dispatch', *FORMS])}")
    if model is not None:
        _ask(data, model, flow)
    if flow == "dispatch" and _is_mapping(data.get("briefs")):  # one brief, which messages call briefs[0]
        data["briefs"] = [data["briefs"]]
    try:
        return Job.model_validate(data) if flow == "dispatch" else FormJob(flow, form_model(flow).model_validate(data))
    except ValidationError as error:
        raise JobError(f"{path.name}: " + " ".join(_sentences(error, data))) from None


def _ask(data: dict[str, Any], model: str, flow: str) -> None:
    """Have a model asked in place of the one that a job names."""
    executor = data.get("executor")
    kind = str(executor.get("kind")) if flow == "dispatch" and _is_mapping(executor) else ""
    if kind in _WITHOUT_MODEL:
        raise JobError(
            f"--model: {_short(model)} would not be asked, as this job's executor is {_WITHOUT_MODEL[kind]}; "
            "leave --model out, or set executor.kind to 'llm'."
        )
    if flow == "dispatch":
        data["executor"] = {**cast("dict[str, Any]", executor if isinstance(executor, dict) else {}), "model": model}
    elif data.get("models") and "models" in form_model(flow).model_fields:
        raise JobError(
            f"--model: {_short(model)} would not be asked, as this job names several models under 'models'; change "
            "those with --set models=[…], or leave --model out."
        )
    elif "model" not in form_model(flow).model_fields:
        raise JobError(f"--model: {_short(model)} would not be asked, as {flow} asks no model; leave --model out.")
    else:
        data["model"] = model


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"The job file {str(path)!r} can't be read: {reason}.") from None
    try:
        data: object = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except RecursionError:
        raise JobError(f"{path.name}: it is nested too deep.") from None
    except JobError as error:
        raise JobError(f"{path.name}: {error}") from None
    except (ValueError, TypeError) as error:  # a date that there isn't, a list as a key
        raise JobError(f"{path.name}: a value in it can't be read: {str(error)[:MAX_SHOWN]}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise JobError(f"{path.name}: {where}not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not _is_mapping(data):
        raise JobError(f"{path.name}: a job is a mapping with 'briefs' and 'items', not {type(data).__name__}.")
    return data


def _set(data: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise JobError(f"--set {change!r}: write it as key.key=value.")
    try:
        value: object = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise JobError(f"--set {change[:MAX_SHOWN]!r}: the value is not YAML.") from None
    place: Any = data
    *parents, last = path.split(".")
    for name in parents:
        place = _step(place, name, change)
    if _is_list(place):
        if not last.isdecimal() or int(last) >= len(place):
            raise JobError(f"--set {change!r}: {last!r} is no place in a list of {len(place)}.")
        place[int(last)] = value
    elif _is_mapping(place):
        place[last] = value
    else:
        raise JobError(f"--set {change!r}: there is nothing below {'.'.join(parents)!r}.")


def _step(place: Any, name: str, change: str) -> Any:  # noqa: ANN401 -- YAML
    if _is_mapping(place):
        return place.setdefault(name, {})
    if _is_list(place) and name.isdecimal() and int(name) < len(place):
        return place[int(name)]
    raise JobError(f"--set {change!r}: there is no {name!r} to go into.")


def _sentences(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each problem: where, what, and the value."""
    sentences: list[str] = []
    for each in error.errors(include_url=False):
        where, value = _locate(data, each["loc"])
        if each["type"] == "element" and _is_list(value):
            value = value[each.get("ctx", {})["number"] - 1]
        message = each["msg"].removeprefix("Value error, ").rstrip(".")
        telling = each["type"] not in ("missing", "unknown_key") and not _secret(repr(value))
        shown = f" (it is {_short(value)})" if telling else ""
        sentences.append(f"{where}: {message}{shown}." if not message.endswith("?") else f"{where}: {message}")
    return list(dict.fromkeys(sentences))


def _locate(data: object, location: Sequence[int | str]) -> tuple[str, object]:
    """Return the path in the user's own file that an error is about, and what stands there."""
    path = ""
    for place, part in enumerate(location, 1):
        if isinstance(part, int) and _is_mapping(data) and part < len(data):
            part = [*data][part]  # noqa: PLW2901 -- a mapping that is taken for a list of what it names
        if _holds(data, part):
            data = cast("Any", data)[part]
        elif place < len(location) or isinstance(part, int) or _is_list(data) or _is_tag(data, part):
            continue  # what the file doesn't have
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "the job", data


def _is_tag(data: object, part: str) -> bool:
    """Return whether a part of a place is the tag of a union."""
    return _is_mapping(data) and part == data.get("kind", "llm")


def _holds(data: object, part: int | str) -> bool:
    if _is_list(data):
        return isinstance(part, int) and part < len(data)
    return _is_mapping(data) and part in data


def _is_mapping(data: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(data, dict)


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return isinstance(data, list)


def _secret(text: str) -> bool:
    return bool(SECRET_NAME.search(text)) or scrub(text) != text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
