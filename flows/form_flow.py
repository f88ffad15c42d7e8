"""Flows with a flat form: what an analyst fills in is put together to the parts of a job, and carried out."""

from __future__ import annotations

import inspect
import json
import re
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, get_type_hints

from prefect.blocks.core import Block
from pydantic import ValidationError

from prefect_dispatch.credentials import SLUGS, named
from prefect_dispatch.errors import BriefError, JobError, SourceError
from prefect_dispatch.flows.carry_out import Parts, carry_out
from prefect_dispatch.flows.ending import run_attempt
from prefect_dispatch.flows.job_flow import JobFlow
from prefect_dispatch.report import Report
from prefect_dispatch.tasks.store import ReportSerializer
from prefect_dispatch.temporary_server import use_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

P = ParamSpec("P")
R = TypeVar("R")

_INSIDE = re.compile(r"\b(?:limits|executor|integrator|items|briefs\[0\])\.(?=[a-z])")
"""Where a field stands in a job of `dispatch`; a flat form has no such place."""
_NAMED = re.compile(r"[a-z_]+(?:\.\w+)*: ")
_FIELDS = {"glob": "files", "aliases": "decisions"}
"""What a form calls the fields of its parts."""
_WORDS = (
    ("`root`", "`folder`"),
    (", or raise `max_bytes`", ""),
    (", or set `encoding` if it is text", ""),
    ("; narrow the glob.", "; narrow `files`."),
    ("executor: the agent has no key", "credentials: the agent has no key"),
    ("workspace.repo: ", "repo: "),
    ("workspace.base: ", "base: "),
    (", or set stdin: true and read it there", ""),
)
"""What is said of fields that a form doesn't have."""


class FormFlow(JobFlow[P, R]):
    """A flow whose blocks go by their names, and whose JSON Schema is data.

    Attributes:
        build: Puts the parts of the job together, of the same parameters.
    """

    build: Callable[..., Parts]

    def with_options(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed = super().with_options(*args, **kwargs)
        changed.build = self.build
        return changed

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow, with a temporary server where the settings name none."""
            with use_server():
                return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in their types; a `$ref` in a schema is no block's.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        return super().validate_parameters(_plain(parameters))

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as they are kept with the run.

        Raises:
            JobError: If a block isn't saved: only its name is kept.
        """
        return super().serialize_parameters(_plain(parameters))


def form_flow(build: Callable[P, Parts], name: str) -> FormFlow[P, Report]:
    """Return the flow that carries out what a function makes of its parameters.

    Args:
        build: Has the parameters of the form, `name`, `folder`, `out`, `refresh` and perhaps `limit` among
            them.
        name: What the flow is called in Prefect.
    """
    form = form_of(build)
    unnamed = form.parameters["name"].default

    @wraps(build)
    def carried(*args: P.args, **kwargs: P.kwargs) -> Report:
        bound = form.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments

        def carry() -> Report:
            return carry_out(
                build(*args, **kwargs),
                folder=given["folder"],
                out=given["out"] or None,
                limit=given.get("limit"),
                refresh=given["refresh"],
                name=None if given["name"] == unnamed else given["name"],
            )

        return run_attempt(lambda: in_its_words(carry))

    # A deployment finds the flow in this module by the name of its function.
    cast("Any", carried).__signature__ = form  # Prefect would look up the names of types in this module
    carried.__name__ = carried.__qualname__ = build.__name__.lstrip("_")
    flow: Any = FormFlow(cast("Any", carried), name=name, result_serializer=ReportSerializer())
    flow.build = build
    return cast("FormFlow[P, Report]", flow)


def form_of(build: Callable[..., Parts]) -> inspect.Signature:
    """Return the parameters of a form with their types, as a flow has them."""
    types = get_type_hints(build, include_extras=True)
    signature = inspect.signature(build)
    parameters = [each.replace(annotation=types[name]) for name, each in signature.parameters.items()]
    return signature.replace(parameters=parameters, return_annotation=Report)


def in_its_words(step: Callable[[], R]) -> R:
    """Return what a step returns; what it says of a job, it says of a flat form.

    Raises:
        JobError: If the job is unusable.
    """
    try:
        return step()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(_FIELDS.get(str(part), str(part)) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise JobError(_flat(f"{where}: {said}." if where else f"{_sentence(said)}.")) from None
    except (BriefError, SourceError) as error:
        raise type(error)(_flat(str(error))) from None
    except JobError as error:
        if type(error) is not JobError:
            raise
        raise JobError(_flat(str(error))) from None


def _sentence(said: str) -> str:
    """Return what is said with a capital, unless it begins with the name of a field."""
    return said if _NAMED.match(said) else f"{said[:1].upper()}{said[1:]}"


def _flat(said: str) -> str:
    said = _INSIDE.sub("", said)
    for theirs, ours in _WORDS:
        said = said.replace(theirs, ours)
    return said


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for field in SLUGS:
        if isinstance(block := parameters.get(field), Block):
            try:
                changed[field] = named(field, block)
            except ValueError as error:
                raise JobError(f"{field}: {error}.") from None
    if isinstance(schema := parameters.get("output"), dict):
        changed["output"] = json.dumps(schema)
    return {**parameters, **changed}
