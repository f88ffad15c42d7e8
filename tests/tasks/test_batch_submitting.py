"""Two machines that share a storage without locks: whoever is about to submit the same is waited for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
from prefect.logging import disable_run_logger
from prefect.results import get_result_store

from prefect_dispatch import LLM, Brief, Limits
from prefect_dispatch.calls.call_gate import CallGate
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Attempt, Usage
from prefect_dispatch.tasks import provider_batches
from prefect_dispatch.tasks.get_or_compute import ResultLocation
from prefect_dispatch.tasks.provider_batches import BatchJournal, BatchRecord, BatchResults, BatchRun
from prefect_dispatch.tasks.result_store import storage_key
from prefect_dispatch.tasks.run_brief import result_store_for_run, run_brief
from prefect_dispatch.tasks.work_item import build_work
from tests.batch_server import BatchServer, batch_server

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")
    monkeypatch.setattr(provider_batches, "POLL_S", 0.02)
    monkeypatch.setattr(provider_batches, "LEAST_S", 0.02)


def run_of(server: BatchServer, limits: Limits | None = None, before: BatchResults | None = None) -> BatchRun:
    """Return a run with two items."""
    executor = LLM(model="openai/test", api_base=server.url, mode="batch")
    items = [Item(key=key, value=key) for key in "ab"]
    store = cast("Any", get_result_store()).update_for_task(run_brief, _sync=True)
    work = {
        each.fingerprint: (each, executor, ResultLocation(store, storage_key(each.fingerprint), None))
        for each in build_work([Brief(name="words", instructions="Say it.")], items, executor)
    }
    gate = CallGate(limits or Limits())
    return BatchRun(work, BatchJournal(result_store_for_run()), gate, run=str(uuid4()), before=before)


def intent(run: BatchRun, begun: float) -> BatchRecord:
    """Put on the shelf what another machine is about to submit."""
    record = BatchRecord(tag=uuid4().hex, name="x", work=tuple(run.work), begun=begun, by="another")
    run.records.create(record)
    return record


def met(run: BatchRun, then: Callable[[], None] = lambda: None) -> list[BatchRecord]:
    """Return the batches that hold the run's work, something happening elsewhere while it looks."""

    async def both() -> list[BatchRecord]:
        looking = asyncio.ensure_future(provider_batches.ensure_submitted(run, alone=False))
        await asyncio.sleep(0.2)
        then()
        return await looking

    with disable_run_logger():
        return asyncio.run(both())


def test_what_another_machine_submits_is_not_submitted_again() -> None:
    """It is waited for until the other says which batch it is."""
    with batch_server() as server:
        run = run_of(server)
        record = intent(run, time.time())
        known = record.model_copy(update={"batch": "batch_7"})
        assert met(run, lambda: run.records.write(known)) == [known]
        assert server.batches == []


@pytest.mark.slow
def test_what_another_machine_could_not_submit_is_submitted() -> None:
    """Its record goes, as its provider took nothing."""
    with batch_server() as server:
        run = run_of(server)
        record = intent(run, time.time())
        (mine,) = met(run, lambda: run.records.remove_work(record, record.work))
        assert (mine.batch, len(server.batches[0].requests)) == ("batch_1", 2)


@pytest.mark.slow
def test_another_machine_is_not_waited_for_for_ever() -> None:
    """After a while it has died; its provider knows of no batch, so it is submitted now."""
    with batch_server() as server:
        run = run_of(server)
        record = intent(run, time.time() - provider_batches.LEASE_S)
        (mine,) = met(run)
        assert (mine.batch, len(server.batches), mine.tag == record.tag) == ("batch_1", 1, False)
        assert run.records.load(record.tag) is None


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"tag": "../../etc/passwd"}', b'{"tag": 3}', b"\xff\xfe"])
def test_a_foreign_record_leads_nowhere(content: bytes) -> None:
    """What stands in the place of a note or a record, and is none, is no batch."""
    with batch_server() as server:
        run = run_of(server)
        record = intent(run, time.time())
        result_store_for_run().write(f"{storage_key(record.work[0])}.batch", content)
        assert run.records.find_open(record.work[:1]) == []
        result_store_for_run().write(f"prefect-dispatch-batch-{record.tag}", content)
        assert run.records.find_open(record.work) == []


def test_a_record_under_another_name_is_not_believed() -> None:
    """A copy of a record is not that batch."""
    with batch_server() as server:
        run = run_of(server)
        record, other = intent(run, 0.0), uuid4().hex
        result_store_for_run().write(f"prefect-dispatch-batch-{other}", record.model_dump_json().encode())
        assert run.records.load(other) is None


def test_what_is_gathered_in_part_stays_for_others() -> None:
    """A run that has some of the work strikes out that; the rest is still under way."""
    with batch_server() as server:
        run = run_of(server)
        record = intent(run, 0.0)
        run.records.remove_work(record, record.work[:1])
        assert [each.work for each in run.records.find_open(record.work)] == [record.work[1:]]
        run.records.remove_work(record.model_copy(update={"work": record.work[1:]}), record.work[1:])
        assert run.records.find_open(record.work) == []


def test_what_another_batch_has_taken_over_stays_under_way() -> None:
    """Two machines submitted the same in one moment: who strikes out the first batch leaves the note of the second."""
    with batch_server() as server:
        run = run_of(server)
        first, second = intent(run, 0.0), intent(run, 0.0)
        run.records.remove_work(first, first.work)
        assert run.records.load(first.tag) is None
        assert run.records.find_open(second.work) == [second]


@pytest.mark.slow
@pytest.mark.parametrize(("spent", "sent"), [(1, 1), (2, 0)])
def test_what_a_run_has_spent_before_it_gave_its_worker_back_counts(spent: int, sent: int) -> None:
    """Against its budget: two requests in all; where none is left, nothing is submitted."""
    with batch_server() as server:
        earlier = BatchResults(attempts={"f" * 64: (Attempt(usage=Usage(requests=1)),) * spent})
        run = run_of(server, Limits(budget_requests=2), earlier)
        assert len(met(run)) == len(server.batches) == server.uploads == sent
        assert len(run.results_so_far().unaffordable) == 2 - sent
        assert all("limits.budget_requests is 2" in why for why in run.results_so_far().unaffordable.values())


def test_what_another_run_has_gathered_takes_no_room() -> None:
    """A batch of both counts in the budgets of both while it is under way, and then in that of who gathered it."""
    with batch_server() as server:
        run = run_of(server, Limits(budget_requests=2))
        record = intent(run, 0.0)
        run.reserve_submitted(record)
        assert not run.reserve(record.work[0], None)
        run.release_reservations(record)
        assert run.reserve(record.work[0], None)
