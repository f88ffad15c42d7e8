"""A job file for a flow with a flat form: its keys are the parameters of that flow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from pydantic import create_model

from prefect_dispatch.credentials import SLUGS, reference
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.form_flow import FormFlow, form_of, in_its_words
from prefect_dispatch.strict import Strict

if TYPE_CHECKING:
    from inspect import Parameter
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.flows.carry_out import Parts
    from prefect_dispatch.report import Report

FORMS = ("analyze_files", "research_topics", "content_variants", "build_modules", "test_matrix")
"""The flows with a flat form, as job files name them; each stands in a module of its name."""


Again = bool | str | Sequence[str]
"""What is asked again although an answer is stored."""


class Bounds(TypedDict):
    """What of a job is run."""

    limit: int | None
    """How many items are taken; all of them if it isn't said."""
    refresh: Again
    """What is asked again."""


class FormJob:
    """What a job file for a flow with a flat form says.

    Attributes:
        flow: The flow, as job files name it.
        given: What the file says, in the types of the form.
    """

    def __init__(self, flow: str, said: Strict) -> None:
        """Keep what was said."""
        self.flow = flow
        self._said = said
        self.given: dict[str, Any] = {name: getattr(said, name) for name in said.model_fields_set - {"flow"}}

    @property
    def deployment_name(self) -> str:
        """What the form calls it."""
        return str(cast("Any", self._said).name)

    def parts(self, folder: Path) -> Parts:
        """Return what it consists of."""
        flow = form_flow_named(self.flow)
        return in_its_words(lambda: flow.build(**{**self.given, "folder": str(self.place(folder))}))

    def form_parameters(self, folder: Path) -> dict[str, JsonValue]:
        """Return the parameters of its deployment, as a form shows them."""
        given = self._said.model_dump(mode="json", exclude={"flow"}, exclude_unset=True, exclude_none=True)
        found: dict[str, JsonValue] = shown({**given, "folder": str(self.place(folder))})
        return found

    def report_folder(self, folder: Path) -> Path | None:
        """Return the folder of the report's files, if the job names one."""
        return self.place(folder) / self.given["out"] if self.given.get("out") else None

    def place(self, folder: Path) -> Path:
        """Return the folder that the job names, or that of its file."""
        return folder / str(self.given.get("folder", "."))

    def bounds(self, limit: int | None, refresh: Again) -> Bounds:
        """Return what is said on the way, else what the job says.

        Raises:
            JobError: If its flow takes all items there are.
        """
        if limit is not None and "limit" not in type(self._said).model_fields:
            raise JobError(f"--limit: {self.flow} has no items of which to take the first; leave it out.")
        own = self.given.get("limit"), self.given.get("refresh", False)
        return {"limit": own[0] if limit is None else limit, "refresh": own[1] if refresh is False else refresh}

    def run(self, folder: Path, *, out: str | None, limit: int | None, refresh: Again) -> Report:
        """Run the flow."""
        flow: Any = form_flow_named(self.flow)
        more = {**self.bounds(limit, refresh), **({} if out is None else {"out": out})}
        known = {name: value for name, value in more.items() if name in type(self._said).model_fields}
        return cast("Report", flow(**{**self.given, "folder": str(self.place(folder)), **known}))


def form_flow_named(name: str) -> FormFlow[..., Report]:
    """Return the flow that job files call so."""
    return cast("FormFlow[..., Report]", getattr(import_module(f"prefect_dispatch.flows.{name}"), name))


@cache
def form_model(name: str) -> type[Strict]:
    """Return the model of a job file for a flow with a flat form: the parameters of the flow, and `flow`."""
    fields: dict[str, Any] = {"flow": (Literal[name], ...)}
    for parameter in form_of(form_flow_named(name).build).parameters.values():
        fields[parameter.name] = (parameter.annotation, _default(parameter))
    return create_model(name, __base__=Strict, **fields)


def _default(parameter: Parameter) -> object:
    return ... if parameter.default is parameter.empty else parameter.default


def shown(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return JSON as a form shows it: schemas over several lines, and blocks by reference."""
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] -- JSON
        return [shown(part) for part in parts]
    if not isinstance(value, dict):
        return value
    return {name: _field(name, part) for name, part in cast("dict[str, Any]", value).items()}


def _field(name: str, value: Any) -> Any:  # noqa: ANN401 -- JSON
    if name in SLUGS and isinstance(value, str):
        return reference(name, value)
    if name == "output" and isinstance(value, str) and value.startswith("{"):
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    return shown(value)
