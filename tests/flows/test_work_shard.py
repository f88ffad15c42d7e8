"""The flow that works on a shard: what it does where it is interrupted, or can't read what it is told."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from prefect_dispatch import LLM, Brief, Item, Limits
from prefect_dispatch.flows.work_shard import work_shard
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.shards.protocol import GO, RESULT_SUFFIX, ShardHeader, ShardStore, note_key, to_document
from prefect_dispatch.tasks.work_item import build_work
from tests.openai_server import Behaviour, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tests.openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Generator[OpenAIServer]:
    """A model that takes its time."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    with openai_server(lambda _request, _n: Behaviour(delay_s=30)) as server:
        yield server


def shard(model: OpenAIServer, note: str = "b" * 32) -> str:
    """Write a shard of one item, as a run would; return its key."""
    executor = LLM(model="openai/test", api_base=model.url)
    work = build_work([Brief(name="b", instructions="Shout.")], [Item(key="a", value="a")], executor)
    sent = ShardHeader(name=uuid4().hex, note=note)
    limits = Limits(retries=0, grace_s=0)
    document = to_document(work, executor, limits, sent=sent, folder="/nowhere", beat_s=0.1, again=())
    return ShardStore(result_store_for_run()).write_shard(uuid4(), document)


@contextmanager
def beside(step: Callable[[], object]) -> Generator[None]:
    """Do something in another thread."""
    thread = threading.Thread(target=step)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def running() -> list[Any]:
    """Return the runs of the flow that are at work."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["work-shard"])), flow_run_filter=FlowRunFilter(state=state)
        )


def changes() -> bool:
    """Return whether the run says that it is alive."""
    (before,) = running()
    wait_until(lambda: running()[0].updated != before.updated, "it is alive")
    return True


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_that_is_interrupted(
    model: OpenAIServer,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,  # noqa: FBT001 -- a column
) -> None:
    """Cancelled by somebody it stays so; ended by its worker, it has crashed, and others do its work."""
    result_store_for_run().write(note_key("b" * 32), GO)
    monkeypatch.setattr("prefect_dispatch.flows.work_shard.LOOK_S", 0.05)
    key = shard(model)

    def interrupt() -> None:
        wait_until(lambda: model.count == 1, "it is asked")
        assert changes()
        if not wanted:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(running()[0].id, Cancelling(), force=True)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # to a thread that isn't the one which waits

    with beside(interrupt):
        state = work_shard(shard=key, return_state=True)
    assert (state.name, model.hung_up) == ("Crashed" if wanted else "Cancelled", 1)
    assert not (store / f"{key}{RESULT_SUFFIX}").exists()


@pytest.mark.slow
def test_a_storage_that_fails_is_told_of(model: OpenAIServer, store: Path) -> None:
    """Others may fare better: it is no refusal."""
    key = shard(model)
    (store / key).unlink()
    (store / key).mkdir()
    state = work_shard(shard=key, return_state=True)
    assert state.name == "Failed"
    assert "The result storage can't be read" in str(state.message)


def test_a_note_that_can_not_be_read_is_told_of(model: OpenAIServer, store: Path) -> None:
    """Nobody knows whether it is wanted, so nobody is asked."""
    (store / note_key("b" * 32)).mkdir(parents=True)
    state = work_shard(shard=shard(model), return_state=True)
    assert (state.name, state.message, model.count) == ("Crashed", "Its task run was interrupted.", 0)
