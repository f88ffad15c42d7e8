"""Requests that go to the provider in one file: what comes of each, what it costs, and who finds a batch again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefect_dispatch import LLM, Brief, Limits, dispatch, plan
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.flows import batch as phase
from prefect_dispatch.tasks import batches
from tests.batch_server import BatchServer, batch_server
from tests.openai_server import Behaviour, document, failure

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store", "key")

SIZES = Brief(
    name="sizes",
    instructions="Say how long it is.",
    output={
        "type": "object",
        "properties": {"size": {"type": "integer"}},
        "required": ["size"],
        "additionalProperties": False,
    },
)
GOOD = Behaviour(content='{"size": 3}')


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment, and little patience."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")
    monkeypatch.setattr(batches, "LEAST_S", 0.02)
    return "sk-of-the-user-0123456789"


def run(server: BatchServer, *items: str, brief: Brief = SIZES, **more: Any) -> Report:  # noqa: ANN401 -- of executor, limits, flow
    """Return the report of a run, however it ended."""
    who = {name: more.pop(name) for name in ("rounds", "usd_per_million", "params", "mode") if name in more}
    flow = {name: more.pop(name) for name in ("refresh",) if name in more}
    limits = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20, **more)
    executor = LLM(**{"model": "openai/test", "api_base": server.url, "mode": "batch", **who})
    try:
        return cast("Any", dispatch)([brief], items, executor=executor, limits=limits, **flow)
    except DispatchFailed as error:
        return error.report


def test_one_batch_answers_everything(store: Path) -> None:
    """Half the price, no live call, nothing left of the batch's records; again, nothing is asked."""
    with batch_server(GOOD, looks=2) as server:
        report = run(server, *"abc", usd_per_million=(2, 4))
        assert (report.status, report.usage.asked, report.usage.requests) == ("complete", 3, 3)
        assert report.usage.cost_usd == pytest.approx(3 * (10 * 1e-6 + 5 * 2e-6))
        assert [len(batch.requests) for batch in server.batches] == [3]
        assert not [file.name for file in store.iterdir() if "batch" in file.name]
        again = run(server, *"abc")
        assert (again.usage.asked, again.usage.cached, again.usage.requests) == (0, 3, 0)
        assert (len(server.batches), server.live.count) == (1, 0)
