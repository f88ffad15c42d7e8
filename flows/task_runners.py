"""`task_runner`: where a job's shards run, by a task runner of Prefect's; refused before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from prefect_dispatch.errors import JobError
from prefect_dispatch.form import Tabs
from prefect_dispatch.prefect_compat import ProcessPool
from prefect_dispatch.strict import Strict, nearest
from prefect_dispatch.tasks.child_process import settle_in
from prefect_dispatch.tasks.elsewhere import Elsewhere, require_sent, room_of

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner
    from typing_extensions import Self

    from prefect_dispatch.executors.base import Executor

THREADS_EACH = 2
"""Task runs at once in each worker of a Dask cluster of ours: while the last items of one come, another has places."""

Workers = Annotated[int | None, Field(ge=1, le=1000, title="Processes")]


class Threads(Strict):
    """This process, or where the flow's own task runner has its task runs."""

    kind: Literal["threads"] = "threads"
    """Tells the task runners apart."""

    def where(self) -> Elsewhere | None:
        """Return where shards run: None, as nothing is said of it."""
        return None


class Processes(Strict):
    """Processes of this machine, one task run each at once."""

    kind: Literal["processes"] = "processes"
    """Tells the task runners apart."""
    workers: Workers = None
    """How many processes. Empty: as many as there are cores."""

    def where(self) -> Elsewhere:
        """Return where shards run."""
        return Elsewhere(self._made, room_of)

    def _made(self) -> TaskRunner[Any]:
        return ProcessPool(max_workers=self.workers or os.cpu_count(), initializer=settle_in)


class _Cluster(Strict):
    """Workers of a cluster, of this machine or at an address."""

    workers: Workers = None
    """How many processes a cluster on this machine has. Empty: as many as there are cores."""
    address: Annotated[str | None, Field(min_length=1, title="Address")] = None
    """The address of a cluster that is there already. Empty: one is started on this machine, for the run."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.workers is not None and self.address is not None:
            msg = "the cluster at 'address' has its own workers; leave one of 'workers' and 'address' out"
            raise ValueError(msg)
        return self


class Dask(_Cluster):
    """Workers of a Dask cluster; needs the extra `dask`."""

    kind: Literal["dask"] = "dask"
    """Tells the task runners apart."""

    def where(self) -> Elsewhere:
        """Return where shards run.

        Raises:
            JobError: If prefect-dask isn't installed.
        """
        _require("dask")
        return Elsewhere(self._made, room_of)

    def _made(self) -> TaskRunner[Any]:
        runner: Any = import_module("prefect_dask").DaskTaskRunner
        if self.address:
            return cast("TaskRunner[Any]", runner(address=self.address))
        own = {"n_workers": self.workers or os.cpu_count(), "threads_per_worker": THREADS_EACH}
        return cast("TaskRunner[Any]", runner(cluster_kwargs={**own, "dashboard_address": None}))


class Ray(_Cluster):
    """Workers of a Ray cluster; needs the extra `ray`."""

    kind: Literal["ray"] = "ray"
    """Tells the task runners apart."""

    def where(self) -> Elsewhere:
        """Return where shards run.

        Raises:
            JobError: If prefect-ray isn't installed.
        """
        _require("ray")
        return Elsewhere(self._made, room_of)

    def _made(self) -> TaskRunner[Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each cluster
        runner: Any = import_module("prefect_ray").RayTaskRunner
        if self.address:
            return cast("TaskRunner[Any]", runner(address=self.address))
        own = {"num_cpus": self.workers or os.cpu_count(), "include_dashboard": False}
        return cast("TaskRunner[Any]", runner(init_kwargs=own))


_KINDS = {"threads": Threads, "processes": Processes, "dask": Dask, "ray": Ray}


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return str(cast("Mapping[str, object]", value).get("kind", ""))
    return next((kind for kind, model in _KINDS.items() if isinstance(value, model)), "")


def _known(value: Any) -> Any:  # noqa: ANN401 -- whatever is given
    if isinstance(value, str):
        value = {"kind": value}
    kind = _kind(value)
    if kind not in _KINDS:
        msg = f"there is no {kind!r}; {nearest(kind, [*_KINDS])}" if kind else f"name its kind: {', '.join(_KINDS)}"
        raise ValueError(msg)
    return value


TaskRunnerInput = Annotated[
    Annotated[Threads, Tag("threads")]
    | Annotated[Processes, Tag("processes")]
    | Annotated[Dask, Tag("dask")]
    | Annotated[Ray, Tag("ray")],
    Discriminator(_kind),
    BeforeValidator(_known),
    Tabs(),
]
"""`threads`, `processes`, `dask` or `ray`, or a mapping that says more of one."""


def shards_of(
    by: Threads | Processes | Dask | Ray | None, executor: Executor, otherwise: Elsewhere | None
) -> Elsewhere | None:
    """Return where a job's shards run; None if it doesn't say.

    Args:
        by: What it says of its task runner.
        executor: Who is asked.
        otherwise: Where they run by anything else that it says.

    Raises:
        JobError: If that can't be, with the way out.
    """
    if by and otherwise:
        raise JobError("task_runner: fan_out says, too, where shards run; leave one of them out.")
    if by is None or (where := by.where()) is None:
        return otherwise
    require_sent(executor)
    return where


def _require(kind: str) -> None:
    if find_spec(f"prefect_{kind}") is None:
        raise JobError(
            f"task_runner: {kind!r} needs prefect-{kind}, which isn't installed here: "
            f"pip install 'prefect-dispatch[{kind}]', or choose 'processes'."
        )
