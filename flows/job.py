"""A job file: the parameters of a flow, as YAML or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import yaml
from pydantic import Field, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.llm import LLM
from prefect_dispatch.integrators.kinds import AnyIntegrator
from prefect_dispatch.models import Brief, Limits
from prefect_dispatch.sources import ItemsInput
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path


MAX_SHOWN = 80
"""Characters of a wrong value that are shown."""


class Job(Strict):
    """What a job file says."""

    flow: Literal["dispatch"] = "dispatch"
    """The flow that runs it."""
    briefs: Annotated[list[Brief], Field(min_length=1)]
    """What is asked."""
    items: ItemsInput
    """Where the items come from."""
    executor: LLM | None = None
    """Who is asked."""
    integrator: AnyIntegrator | None = None
    """How the answers are merged."""
    limits: Limits = Limits()
    """How the run is bounded."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the flow, as objects."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "flow"}


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
    """Return the job that a file describes.

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
    if model is not None:
        executor = data.get("executor")
        data["executor"] = {**cast("dict[str, Any]", executor if isinstance(executor, dict) else {}), "model": model}
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{path.name}: " + " ".join(_sentences(error, data))) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"The job file {str(path)!r} can't be read: {reason}.") from None
    try:
        data: object = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except JobError as error:
        raise JobError(f"{path.name}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise JobError(f"{path.name}: {where}not YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(data, dict):
        raise JobError(f"{path.name}: a job is a mapping with 'briefs' and 'items', not {type(data).__name__}.")
    return cast("dict[str, Any]", data)


def _set(data: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise JobError(f"--set {change!r}: write it as key.key=value.")
    try:
        value: object = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except yaml.YAMLError:
        raise JobError(f"--set {change!r}: the value is not YAML.") from None
    place: Any = data
    *parents, last = path.split(".")
    for name in parents:
        place = _step(place, name, change)
    if isinstance(place, list):
        items = cast("list[Any]", place)
        if not last.isdecimal() or int(last) >= len(items):
            raise JobError(f"--set {change!r}: {last!r} is no place in a list of {len(items)}.")
        items[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise JobError(f"--set {change!r}: there is nothing below {'.'.join(parents)!r}.")


def _step(place: Any, name: str, change: str) -> Any:  # noqa: ANN401 -- YAML
    if isinstance(place, dict):
        return cast("dict[str, Any]", place).setdefault(name, {})
    if isinstance(place, list) and name.isdecimal() and int(name) < len(cast("list[Any]", place)):
        return cast("list[Any]", place)[int(name)]
    raise JobError(f"--set {change!r}: there is no {name!r} to go into.")


def _sentences(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each problem: where, what, and the value."""
    sentences: list[str] = []
    for each in error.errors(include_url=False):
        where, value = _locate(data, each["loc"])
        message = each["msg"].removeprefix("Value error, ").rstrip(".")
        shown = f" (it is {_short(value)})" if each["type"] not in ("missing", "unknown_key") else ""
        sentence = f"{where}: {message}{shown}." if not message.endswith("?") else f"{where}: {message}"
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


def _locate(data: Any, location: Sequence[int | str]) -> tuple[str, Any]:  # noqa: ANN401 -- YAML
    """Return the path in the user's own file that an error is about, and what stands there."""
    path = ""
    for part in location:
        if _holds(data, part):
            data = data[part]
        elif part is not location[-1] or not _is_mapping(data):
            continue  # the tag of a union, which the file doesn't have
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "the job", data


def _holds(data: Any, part: int | str) -> bool:  # noqa: ANN401 -- YAML
    if isinstance(data, list):
        return isinstance(part, int) and part < len(cast("list[Any]", data))
    return _is_mapping(data) and part in data


def _is_mapping(data: object) -> bool:
    return isinstance(data, dict)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
