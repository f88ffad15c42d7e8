"""In somebody's own flow: futures as items, async flows, the parts alone, frames and tables on the way."""

# Prefect's overloads of `submit` and `map` leave types unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs] -- it has no types
import pandas as pd
import pytest
from prefect import allow_failure, flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.runtime import flow_run
from prefect.states import Crashed

from prefect_dispatch import (
    Brief,
    Collate,
    Consensus,
    Item,
    Limits,
    MergeRecords,
    Report,
    dispatch,
    integrate,
    items_from,
    outcome_of,
    outcomes_frame,
    run_brief,
    write_table,
)
from prefect_dispatch.errors import CoverageError, RejectedError
from prefect_dispatch.testing import ScriptedExecutor
from tests.databases import filled, found

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Ask

pytestmark = pytest.mark.usefixtures("store")

BRIEF = Brief(name="shout", instructions="Say it louder.")


def loud(ask: Ask) -> JsonValue:
    """Answer in capitals, and refuse one item."""
    if ask.item.key == "refused":
        raise RejectedError("Not this one.", kind="refused")
    return str(ask.item.value).upper()


def keys(report: Report) -> list[str]:
    """Return the items of a report."""
    return [row.item for row in report.ledger]


@task
def page(name: str) -> str:
    """Return a page, if there is one."""
    if name == "gone":
        raise LookupError("no such page")
    return name


@task
def pages() -> list[str]:
    """Return two pages."""
    return ["a", "b"]


@task
def nothing() -> list[str]:
    """Fail."""
    raise LookupError("no such list")


@pytest.mark.slow
def test_futures_are_items() -> None:
    """A future of a list, a list of futures, what `.map` gives, futures within items; positional or named."""
    executor = ScriptedExecutor(loud)

    @flow
    def pipeline() -> list[list[str]]:
        return [
            keys(dispatch([BRIEF], pages.submit(), executor)),
            keys(dispatch([BRIEF], [page.submit("x"), "y"], executor)),
            keys(dispatch([BRIEF], items=page.map(["m", "n"]), executor=executor)),
            keys(dispatch([BRIEF], [{"key": "k", "value": page.submit("v")}], executor)),
        ]

    assert pipeline() == [["a", "b"], ["x", "y"], ["m", "n"], ["k"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("items", "why"),
    [
        pytest.param(nothing.submit, "the task run that it comes from failed: LookupError: no such list", id="list"),
        pytest.param(
            lambda: page.map(["gone", "gone"]),
            "Failed: 0 of 2 answered; no answer for 2 .2 upstream.: shout/element 1 .upstream., shout/element 2",
            id="each-of-several",
        ),
        pytest.param(lambda: allow_failure(page.map(["gone"])), "0 of 1 answered", id="allowed"),
    ],
)
def test_a_task_run_that_failed_before_is_told(items: Callable[[], Any], why: str) -> None:
    """Nobody is asked; the subflow has failed for that reason, and none is left waiting."""
    executor = ScriptedExecutor(loud)

    @flow
    def pipeline() -> tuple[Any, str]:
        return dispatch([BRIEF], items(), executor=executor, return_state=True), str(flow_run.get_id())

    with pytest.raises(Exception, match=why):  # noqa: PT012 -- the state carries it out of the flow
        state, parent = pipeline()
        with get_client(sync_client=True) as client:
            only = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(parent)]))
            assert [run.state_name for run in client.read_flow_runs(flow_run_filter=only)] == ["Failed"]
        state.result()
    assert executor.calls == 0


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["as-it-is", "with-samples"])
def test_one_upstream_failure_is_a_gap(several: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- a case
    """Nobody is asked about that item, the others are; it stands in ledger, gaps, report and page, for each brief."""
    executor = ScriptedExecutor(lambda ask: "yes" if several else ask.item.value)
    output = "text" if several else {"type": "object"}
    brief = Brief(name="shout", instructions="Say {key}: {word}.", samples=2 if several else 1, output=output)
    integrator = Consensus() if several else MergeRecords(identity=("word",))

    @task
    def row(word: str) -> JsonValue:
        return {"word": page.fn(word)}

    @flow
    def pipeline() -> Report:
        futures: list[Any] = [*row.map(["x", "gone"]), {"key": "last", "value": row.submit("y")}]
        return dispatch([brief], futures, executor, integrator, Limits(min_success=0.6), out=str(tmp_path))

    report = pipeline()
    names = ["shout-1", "shout-2"] if several else ["shout"]
    why = "Not asked: the task run that it comes from failed: LookupError: no such page"
    assert (report.status, executor.calls) == ("gaps", 2 * len(names))
    assert [(gap.brief, gap.item, gap.status, gap.error.kind, gap.error.message) for gap in report.gaps] == [
        (name, "element 2", "skipped", "upstream", why) for name in names
    ]
    assert [row.disposition for row in report.ledger if row.item == "element 2"] == ["skipped"] * len(names)
    assert len(report.ledger) == 3 * len(names)
    assert "element 2" in str(report.value)
    assert why in (tmp_path / "report.md").read_text()
    assert why in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_an_async_flow_dispatches() -> None:
    """Awaited, where several run at once, or called as it is; each within the flow run that calls it."""
    executor = ScriptedExecutor(loud)

    @flow
    async def pipeline() -> list[Report]:
        with pytest.warns(RuntimeWarning, match=r"write `await dispatch\.acall\(…\)`"):
            alone = dispatch([BRIEF], page.map(["p", "q"]), executor=executor)
        calls = (dispatch.acall([BRIEF], [name], executor=executor) for name in "xy")
        return [alone, *await asyncio.gather(*calls)]

    assert [keys(report) for report in asyncio.run(pipeline())] == [["p", "q"], ["x"], ["y"]]


def test_a_flow_that_dispatches_travels_to_another_process() -> None:
    """Prefect pickles somebody's flow with all that it calls: ours goes by its name, with the options that it has."""
    assert cloudpickle.loads(cloudpickle.dumps(dispatch)) is dispatch
    again = cloudpickle.loads(cloudpickle.dumps(dispatch.with_options(retries=3)))
    assert (again.retries, again.fn, type(again)) == (3, dispatch.fn, type(dispatch))
    assert again.validate_parameters({"briefs": [BRIEF], "items": ["x"]})["briefs"] == [BRIEF]


def test_the_parts_alone() -> None:
    """`run_brief` mapped, submitted or called, `integrate` called or submitted: the laws hold all the same."""
    executor = ScriptedExecutor(loud)
    items = [Item(key=key, value=key) for key in ("b", "refused", "a")]

    @flow
    def pipeline() -> dict[str, Any]:
        futures = run_brief.map(unmapped(BRIEF), items, unmapped(executor))
        outcomes = [outcome_of(BRIEF, item, future) for item, future in zip(items, futures, strict=True)]
        again = outcome_of(BRIEF, items[0], run_brief.submit(BRIEF, items[0], executor))
        merge = integrate.submit([BRIEF], items, outcomes[::-1], Collate()).result()
        with pytest.raises(CoverageError, match="missing: shout/b; repeated: shout/a"):
            integrate([BRIEF], items, [*outcomes[1:], outcomes[2]], Collate())
        return {"outcomes": outcomes, "again": again, "merge": merge}

    done = pipeline()
    assert [(each.status, each.value, each.origin) for each in done["outcomes"]] == [
        ("succeeded", "B", "asked"),
        ("failed", None, "asked"),
        ("succeeded", "A", "asked"),
    ]
    assert (done["outcomes"][1].error.kind, len(done["outcomes"][1].attempts)) == ("refused", 1)
    assert (done["again"].value, done["again"].origin) == ("B", "stored")
    assert [(row.item, row.disposition) for row in done["merge"].ledger] == [
        ("a", "merged"),
        ("b", "merged"),
        ("refused", "failed"),
    ]
    assert executor.calls == 3


def test_whatever_came_of_a_task_run_is_an_outcome() -> None:
    """A crash, a state without a result, and what is no answer at all."""
    item = Item(key="a", value="a")
    crashed = outcome_of(BRIEF, item, Crashed(message="The machine is gone."))
    assert (crashed.status, crashed.error and crashed.error.kind) == ("failed", "crashed")
    other: Any = "no answer"
    assert outcome_of(BRIEF, item, other).error == outcome_of(BRIEF, item, other).error
    assert "ask again with refresh_cache=True" in str(outcome_of(BRIEF, item, other).error)


@pytest.mark.slow
def test_a_frame_goes_in_and_a_table_comes_out(tmp_path: Path) -> None:
    """From a DataFrame to a table and back: every row has its outcome, and Prefect hears of what was written."""
    frame = pd.DataFrame({"id": [2, 1], "text": ["x", None]})
    database, folder = tmp_path / "rows.sqlite", tmp_path / "out"
    name = filled(database, "")
    executor = ScriptedExecutor(lambda ask: {"id": ask.item.key, "n": int(ask.item.key)})
    brief = BRIEF.model_copy(update={"name": "rows", "output": {"type": "object"}})

    @flow
    def pipeline() -> Report:
        report = dispatch(
            [brief],
            items_from(frame, key="id"),
            executor=executor,
            integrator=MergeRecords(identity=("id",)),
            out=str(folder),
        )
        write_table.submit(report, "results", name, job="nightly").result()
        return report

    joined = frame.merge(outcomes_frame(pipeline(), frame, key="id"), on="id")
    assert joined["answer.n"].tolist() == [2, 1]
    assert found(database, "SELECT job, brief, item, disposition FROM results ORDER BY item") == [
        ("nightly", "rows", "1", "merged"),
        ("nightly", "rows", "2", "merged"),
    ]
    wanted = {f"file://{folder}/report.json", f"file://{folder}/outcomes.jsonl", f"sqlite://{database}/results"}
    assert wanted <= asyncio.run(materializations(wanted))


async def materializations(wanted: set[str]) -> set[str]:
    """Wait until the server has heard of some assets, and return all that it has heard of."""
    heard: set[str] = set()
    names = EventFilter(event=EventNameFilter(name=["prefect.asset.materialization.succeeded"]))
    async with get_client() as client:
        while not wanted <= heard:
            answer = await client._client.post(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- it has no method for it
                "/events/filter", json={"filter": names.model_dump(mode="json", exclude_unset=True), "limit": 50}
            )
            heard = {event["resource"]["prefect.resource.id"] for event in answer.json()["events"]}
            await asyncio.sleep(0.2)
    return heard
