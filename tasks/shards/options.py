"""Options of a job that say where its shards run: `fan_out` and `task_runner`.

Nothing here imports Prefect, so that a job file with a mistake is refused quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from prefect_dispatch.models.base import Strict, Tabs, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

FLOW = "work-shard"
"""The flow that processes shards."""
SILENT_S = 120.0
"""Default of the seconds without a sign of life from a running run after which it is given up."""


class ByDeployment(Strict):
    """Processes shards by runs of a deployment, on any work pool."""

    deployment: str = Field(default=f"{FLOW}/{FLOW}", min_length=1)
    """The deployment of the flow `work-shard`; `prefect-dispatch deploy` creates one."""
    runs: int = Field(default=4, ge=1, le=1000)
    """Concurrent runs of the deployment, which share the limits of the job. Fewer, where the deployment or its work
    pool has a lower limit."""
    silent_s: float = Field(default=SILENT_S, ge=5, le=86_400, title="Silence in seconds")
    """Seconds without a sign of life from a running run after which it is given up, and the rest of its items asked
    again."""

    @property
    def name(self) -> str:
        """The flow and the name of the deployment."""
        return self.deployment if "/" in self.deployment else f"{FLOW}/{self.deployment}"


def _parse_fan_out(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value != "deployment":
        msg = f"there is no {value!r}; {did_you_mean(value, ['deployment'])}"
        raise ValueError(msg)
    return ByDeployment()


FanOutTo = Annotated[ByDeployment, BeforeValidator(_parse_fan_out)]
"""`deployment`, or a mapping with the options of `ByDeployment`."""


Workers = Annotated[int | None, Field(ge=1, le=1000, title="Processes")]


class Threads(Strict):
    """Runs shards in this process, or by the flow's own task runner."""

    kind: Literal["threads"] = "threads"
    """Discriminator of the task runners."""


class Processes(Strict):
    """Runs shards in processes of this machine, each with one task run at a time."""

    kind: Literal["processes"] = "processes"
    """Discriminator of the task runners."""
    workers: Workers = None
    """Number of processes. Empty: the number of cores."""


class _Cluster(Strict):
    """Runs shards on the workers of a cluster, of this machine or at an address."""

    workers: Workers = None
    """Number of processes of a cluster on this machine. Empty: the number of cores."""
    address: Annotated[str | None, Field(min_length=1, title="Address")] = None
    """The address of an existing cluster. Empty: one is started on this machine, for the run."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.workers is not None and self.address is not None:
            msg = "the cluster at 'address' has its own workers; leave one of 'workers' and 'address' out"
            raise ValueError(msg)
        return self


class Dask(_Cluster):
    """Runs shards on a Dask cluster; needs the extra `dask`."""

    kind: Literal["dask"] = "dask"
    """Discriminator of the task runners."""


class Ray(_Cluster):
    """Runs shards on a Ray cluster; needs the extra `ray`."""

    kind: Literal["ray"] = "ray"
    """Discriminator of the task runners."""


_KINDS = {"threads": Threads, "processes": Processes, "dask": Dask, "ray": Ray}


def _parse_task_runner(value: Any) -> Any:  # noqa: ANN401 -- any input of a validator
    if isinstance(value, str):
        value = {"kind": value}
    kind = str(cast("Mapping[str, object]", value).get("kind", "")) if isinstance(value, Mapping) else ""
    if kind not in _KINDS and not isinstance(value, tuple(_KINDS.values())):
        msg = (
            f"there is no {kind!r}; {did_you_mean(kind, [*_KINDS])}" if kind else f"name its kind: {', '.join(_KINDS)}"
        )
        raise ValueError(msg)
    return cast("object", value)


TaskRunnerInput = Annotated[
    Annotated[Threads | Processes | Dask | Ray, Field(discriminator="kind")],
    BeforeValidator(_parse_task_runner),
    Tabs(),
]
"""`threads`, `processes`, `dask` or `ray`, or a mapping with `kind` and the options of one."""
