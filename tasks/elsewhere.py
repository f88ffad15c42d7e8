"""Where shards run that don't run in this process: a task runner of Prefect's, and how much room it has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect.context import FlowRunContext
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from prefect_dispatch.errors import JobError
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.task_runners import TaskRunner

    from prefect_dispatch.executors.base import Executor


class Room(NamedTuple):
    """How much a task runner runs at once."""

    processes: int
    """In how many processes; the places of the run are divided among them."""
    shards: int
    """How many task runs in all; those in one process share its places."""


@dataclass(frozen=True)
class Elsewhere:
    """A task runner whose task runs are in other processes.

    Of the runner nothing is used but its public interface: it is entered, and gets
    `submit(task=…, parameters={"shard": Shard, "executor": Executor, "limits": Limits}, wait_for=None)`, the task being
    `tasks.shards.run_shard`, and the limits the shard's share of what the run may take. Of the future that comes back
    `add_done_callback`, `wait` and `result` are used; the result is an `Ended`, or a list of `Came`, and anything else
    means that the process has died: then the shard's answers are looked for in the store, and the rest is asked again.
    """

    make: Callable[[], TaskRunner[Any]]
    """Returns the runner; called where a fan-out begins."""
    room: Callable[[Any], Room]
    """Says how much the runner, once entered, runs at once; asked again before each shard."""
    entered: bool = False
    """Whether the runner is entered already, by whoever has made it."""
    isolated: bool = False
    """Whether each task run has a process of its own, so that none dies of what another does."""


def elsewhere() -> Elsewhere | None:
    """Return where the task runs of the flow are, or None if that is in this process."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, ThreadPoolTaskRunner):
        return None
    runner: Any = context.task_runner
    return Elsewhere(lambda: runner, room_of, entered=True)


def require_sent(executor: Executor) -> None:
    """Check that an executor can be sent to another process.

    Raises:
        JobError: If it can't.
    """
    try:
        import_module("cloudpickle").dumps(executor)  # which has no types
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it holds
        raise JobError(
            f"The executor {type(executor).__name__} can't be sent to another process ({told(error)}); leave out what "
            "can't be pickled, or run the job in this process (task_runner: threads)."
        ) from None


def room_of(runner: object) -> Room:
    """Return how much a task runner runs at once, as far as it says that."""
    kinds = {each.__name__ for each in type(runner).__mro__}
    if "DaskTaskRunner" in kinds:
        return _room_of_dask(runner)
    if "RayTaskRunner" in kinds:
        return _room_of_ray()
    known = getattr(runner, "_max_workers", None) if isinstance(runner, ProcessPoolTaskRunner) else None
    processes = known or os.cpu_count() or 1
    return Room(processes, processes)


def _room_of_dask(runner: Any) -> Room:  # noqa: ANN401 -- prefect-dask may not be installed
    threads: dict[str, int] = runner.client.nthreads()
    return Room(max(1, len(threads)), max(1, sum(min(2, each) for each in threads.values())))


def _room_of_ray() -> Room:
    ray: Any = import_module("ray")  # which may not be installed
    processes = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return Room(processes, processes)
