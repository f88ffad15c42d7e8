"""A task runner whose task runs get and give copies, as from another process, and may die; in threads, quickly."""

from __future__ import annotations

import pickle
from concurrent.futures import Future
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from prefect.futures import PrefectConcurrentFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_dispatch import Reply
from prefect_dispatch.tasks.shards.remote import RemoteTarget, WorkerCapacity

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from prefect_dispatch import Ask


class World:
    """What the other processes and the test know of each other.

    Attributes:
        asks: The keys that were asked, in order of arrival.
        script: Answers an ask, or raises.
        sizes: How many items each shard had.
        limits: What each shard was given.
        now: How many are asked at this moment.
        most: How many were at most.
        entered: How many runners were entered.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.asks: list[str] = []
        self.script: Callable[[Ask], Any] = lambda ask: str(ask.item.value).upper()
        self.sizes: list[int] = []
        self.limits: list[Any] = []
        self.now = self.most = 0
        self.entered = 0
        self.lock = Lock()


WORLDS: dict[str, World] = {}


class Shout:
    """Asks a world of the test's; what is sent to another process is its name."""

    def __init__(self, world: str) -> None:
        """Keep the name."""
        self.world = world
        self.fingerprint = f"shout {world}"

    async def answer(self, ask: Ask) -> Reply:
        """Answer as the world's script says."""
        world = WORLDS[self.world]
        with world.lock:
            world.asks.append(ask.item.key)
            world.now += 1
            world.most = max(world.most, world.now)
        try:
            said = world.script(ask)
            if hasattr(said, "__await__"):
                said = await said
        finally:
            with world.lock:
                world.now -= 1
        return said if isinstance(said, Reply) else Reply(value=said)


class Beside(TaskRunner[Any]):
    """Runs tasks on copies of what they are given, and gives back copies.

    Args:
        world: What happened to it is noted there.
        fate: Says what becomes of a shard, by how many there were before: an error stands for its process dying before
            it can say anything, after its work is done; a `ConnectionError`, for nobody taking it.
    """

    def __init__(self, world: World, fate: Any = None) -> None:  # noqa: ANN401 -- see above
        """Keep both."""
        cast("Any", super()).__init__()
        self._world, self._fate = world, fate
        self._inner: Any = cast("Any", ThreadPoolTaskRunner)(max_workers=16)

    def duplicate(self) -> Beside:
        """Return another like it."""
        return Beside(self._world, self._fate)

    def __enter__(self) -> Self:
        """Start."""
        super().__enter__()
        self._world.entered += 1
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._inner.__exit__(*error)
        super().__exit__(*error)

    def submit(self, task: Any, parameters: dict[str, Any], wait_for: Any = None, dependencies: Any = None) -> Any:  # noqa: ANN401 -- Prefect's signature
        """Run a task on a copy of what it is given."""
        shard = parameters["shard"]
        dies = self._fate(len(self._world.sizes), shard) if self._fate else None
        self._world.sizes.append(len(shard.work))
        self._world.limits.append(parameters["limits"])
        if isinstance(dies, ConnectionError):
            raise dies
        copied = _copied((task, parameters))
        inner = self._inner.submit(task=copied[0], parameters=copied[1], wait_for=wait_for)
        outer: Future[Any] = Future()

        def ended(_: object) -> None:
            if dies:
                outer.set_exception(dies)
            else:
                outer.set_result(_copied(inner.wrapped_future.result()))

        inner.add_done_callback(ended)
        return PrefectConcurrentFuture(task_run_id=uuid4(), wrapped_future=outer)


def _copied(thing: Any) -> Any:  # noqa: ANN401 -- anything
    return pickle.loads(import_module("cloudpickle").dumps(thing))  # noqa: S301 -- our own


def beside(world: World, fate: Any = None, *, processes: int = 2, shards: int | None = None) -> RemoteTarget:  # noqa: ANN401 -- see Beside
    """Return where shards run beside the test."""
    room = WorkerCapacity(processes, shards or processes)
    return RemoteTarget(lambda: cast("Any", Beside(world, fate)), lambda _: room)
