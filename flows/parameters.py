"""A flow whose parameters hold data.

Prefect looks through every parameter for block references (any `$ref`, such
as a JSON Schema has), keeps parameters with the run, up to 512 KB, and turns
unknown objects inside out to do so. Briefs and items are data, and a user's
own executor may hold a key: they are validated here, and recorded in short.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect import allow_failure
from prefect.exceptions import ParameterTypeError
from prefect.futures import PrefectFuture
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from prefect_dispatch.fingerprint import canonical, digest
from prefect_dispatch.flows.beats import without_prefects
from prefect_dispatch.flows.job_flow import JobFlow
from prefect_dispatch.heap import at_rest
from prefect_dispatch.inert import nowhere_nul
from prefect_dispatch.models import BriefsInput  # noqa: TC001 -- pydantic reads the annotations
from prefect_dispatch.prefect_compat import visit_parts
from prefect_dispatch.sources import ItemsInput  # noqa: TC001 -- pydantic reads the annotations
from prefect_dispatch.temporary_server import use_server

P = ParamSpec("P")
R = TypeVar("R")

MAX_RECORDED = 100_000
"""Characters of JSON beyond which the recorded items are a count and a digest."""


class _Data(TypedDict, total=False):
    """The parameters that are data."""

    briefs: BriefsInput
    items: ItemsInput


_ADAPTER = TypeAdapter(_Data)
_DATA = ("briefs", "items")
_OBJECTS = ("executor", "integrator")


def at_home(module: str, name: str) -> object:
    """Return what a module has under a name, or None."""
    return getattr(sys.modules.get(module) or import_module(module), name, None)


def changed(module: str, name: str) -> Any:  # noqa: ANN401 -- a flow
    """Return a flow like the one that a module has, to be given other options."""
    home: Any = at_home(module, name)
    kind: Any = DataFlow
    made: Any = kind.__new__(kind)
    made.__dict__.update(home.__dict__)
    return made


class DataFlow(JobFlow[P, R]):
    """A flow whose `briefs` and `items` are data, and whose executor and integrator may be any object."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled by name: Prefect pickles somebody's flow with all that it calls, to run it in another process.

        A function that stands in its module under the name of its flow would be pickled by value, without what its
        annotations name.
        """
        place = (self.fn.__module__, self.fn.__name__)
        if at_home(*place) is self:
            return at_home, place
        return changed, place, {name: value for name, value in vars(self).items() if value is not self.fn}

    if not TYPE_CHECKING:  # pragma: no branch -- the overloads are Prefect's

        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- Prefect's signature
            """Run the flow; that a task run failed which its items come from is told as what is wrong with them.

            Prefect would leave a run behind that waits forever, and say that something is not available.
            """
            names = list(self.parameters.properties)
            kwargs = {name: _with_failures(value) if name == "items" else value for name, value in kwargs.items()}
            given = zip(names, args, strict=False)
            args = (
                *(_with_failures(value) if name == "items" else value for name, value in given),
                *args[len(names) :],
            )
            with at_rest(), use_server(), without_prefects():  # to read the items begins it
                return super().__call__(*args, **kwargs)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in their types, with the data left as it is.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        data = {name: parameters[name] for name in _DATA if name in parameters}
        valid = super().validate_parameters({**parameters, **dict.fromkeys(data, ())})
        try:
            return {**valid, **_ADAPTER.validate_python(data)}
        except ValidationError as error:
            raise ParameterTypeError.from_validation_error(error) from None

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as they are kept with the run; PostgreSQL has no NUL."""
        opaque = {
            name: f"<{type(parameters[name]).__name__}>"
            for name in _OBJECTS
            if not isinstance(parameters.get(name), BaseModel | dict | None)
        }
        if isinstance(parameters.get("items"), allow_failure):
            parameters = {**parameters, "items": parameters["items"].unwrap()}
        if isinstance(parameters.get("items"), Iterator):  # to show it would be to use it up
            opaque["items"] = "<iterator>"
        kept = super().serialize_parameters({**parameters, **opaque})
        for name in _DATA:
            size = len(canonical(kept.get(name)))
            if size > MAX_RECORDED:
                kept[name] = f"<{size} characters of JSON, sha256 {digest(kept[name])}>"
        return {name: nowhere_nul(value) for name, value in kept.items()}


def _with_failures(items: object) -> object:
    """Return items in which a failed task run stands as its error, if there are futures among them."""
    found: list[object] = []

    def look(each: Any) -> Any:  # noqa: ANN401 -- whatever is in them
        if isinstance(each, PrefectFuture):
            found.append(cast("object", each))
        return cast("object", each)

    if isinstance(items, list):  # texts are nothing to look into, and there may be very many
        visit_parts([each for each in cast("list[object]", items) if not isinstance(each, str)], look)
    elif isinstance(items, PrefectFuture | tuple | dict):
        visit_parts(cast("object", items), look)
    return allow_failure(items) if found else items  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
