"""Every kind of integrator, as a parameter takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.form import Tabs
from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.consensus import Consensus
from prefect_dispatch.integrators.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records import MergeRecords
from prefect_dispatch.integrators.readiness import unfit
from prefect_dispatch.integrators.synthesize import Synthesize
from prefect_dispatch.integrators.test_matrix import TestMatrix
from prefect_dispatch.integrators.tournament import Tournament


def _source(value: object) -> str:
    kinds = (Collate, Consensus, MergeBranches, MergeRecords, Synthesize, TestMatrix, Tournament)
    data = isinstance(value, (Mapping, *kinds))
    return "built-in" if data else "own"


def _is_integrator(value: Any) -> Any:  # noqa: ANN401 -- any object that keeps the Protocol
    if wrong := unfit(value):
        raise ValueError(wrong)
    return value


AnyIntegrator = Annotated[
    Collate | Consensus | MergeBranches | MergeRecords | Synthesize | TestMatrix | Tournament,
    Field(discriminator="kind"),
]
"""A built-in integrator; `kind` tells which."""

PluggableIntegrator = Annotated[
    Annotated[AnyIntegrator, Tag("built-in")]
    | Annotated[SkipJsonSchema[Annotated[Any, AfterValidator(_is_integrator)]], Tag("own")],
    Discriminator(_source),
    Tabs(),
]
"""A built-in integrator, or an object of the user's own that keeps the `Integrator` Protocol."""
