"""Registry of integrators: the discriminated unions that parameters accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from prefect_dispatch.integrators.collate import Collate
from prefect_dispatch.integrators.consensus.consensus import Consensus
from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
from prefect_dispatch.integrators.run_merge import integrator_problem
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.integrators.tournament.tournament import Tournament
from prefect_dispatch.models.base import Tabs


def _integrator_tag(value: object) -> str:
    kinds = (Collate, Consensus, MergeBranches, MergeRecords, Synthesize, TestMatrix, Tournament)
    is_built_in = isinstance(value, (Mapping, *kinds))
    return "built-in" if is_built_in else "own"


def _validate_integrator(value: Any) -> Any:  # noqa: ANN401 -- any object that implements the protocol
    if problem := integrator_problem(value):
        raise ValueError(problem)
    return value


AnyIntegrator = Annotated[
    Collate | Consensus | MergeBranches | MergeRecords | Synthesize | TestMatrix | Tournament,
    Field(discriminator="kind"),
]
"""A built-in integrator, discriminated by `kind`."""

PluggableIntegrator = Annotated[
    Annotated[AnyIntegrator, Tag("built-in")]
    | Annotated[SkipJsonSchema[Annotated[Any, AfterValidator(_validate_integrator)]], Tag("own")],
    Discriminator(_integrator_tag),
    Tabs(),
]
"""A built-in integrator, or an object of the user's own that implements the `Integrator` protocol."""
