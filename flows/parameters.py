"""A flow whose parameters hold data.

Prefect looks through every parameter for block references (any `$ref`, such
as a JSON Schema has), keeps parameters with the run, up to 512 KB, and turns
unknown objects inside out to do so. Briefs and items are data, and a user's
own executor may hold a key: they are validated here, and recorded in short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import BaseModel, TypeAdapter, ValidationError

from prefect_dispatch.fingerprint import canonical, digest
from prefect_dispatch.models import Brief
from prefect_dispatch.sources import ItemsInput

P = ParamSpec("P")
R = TypeVar("R")

MAX_RECORDED = 100_000
"""Characters of JSON beyond which the recorded items are a count and a digest."""

_DATA: dict[str, TypeAdapter[Any]] = {"briefs": TypeAdapter(list[Brief]), "items": TypeAdapter(ItemsInput)}
_OBJECTS = ("executor", "integrator")


class DataFlow(Flow[P, R]):
    """A flow whose `briefs` and `items` are data, and whose executor and integrator may be any object."""

    def with_options(self, *args: Any, **kwargs: Any) -> DataFlow[P, R]:  # noqa: ANN401 -- Prefect's signature
        """Return the flow with other options, still a flow of this kind."""
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = type(self)  # Prefect builds a plain Flow, which has the same attributes
        return changed  # type: ignore[return-value]

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters in their types, with the data left as it is.

        Raises:
            ParameterTypeError: If a parameter is wrong.
        """
        data = {name: parameters[name] for name in _DATA if name in parameters}
        valid = super().validate_parameters({**parameters, **dict.fromkeys(data, ())})
        try:
            return {**valid, **{name: _DATA[name].validate_python(value) for name, value in data.items()}}
        except ValidationError as error:
            raise ParameterTypeError.from_validation_error(error) from None

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as they are kept with the run."""
        opaque = {
            name: f"<{type(parameters[name]).__name__}>"
            for name in _OBJECTS
            if not isinstance(parameters.get(name), BaseModel | dict | None)
        }
        if isinstance(parameters.get("items"), Iterator):  # to show it would be to use it up
            opaque["items"] = "<iterator>"
        kept = super().serialize_parameters({**parameters, **opaque})
        for name in _DATA:
            size = len(canonical(kept.get(name)))
            if size > MAX_RECORDED:
                kept[name] = f"<{size} characters of JSON, sha256 {digest(kept[name])}>"
        return kept
