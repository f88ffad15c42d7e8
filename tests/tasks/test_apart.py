"""A fan-out leaves nothing in its run that grows with it, and takes nothing that is the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.context import FlowRunContext

from prefect_dispatch import Brief, Collate, Item, Limits, dispatch
from prefect_dispatch.prefect_compat import forget_result
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Merge, Outcome
    from prefect_dispatch.models.output_schema import Output

pytestmark = pytest.mark.usefixtures("store")


class Counting:
    """Counts what Prefect keeps of results in the run that it is called in."""

    kept = -1

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Put the answers side by side."""
        context = FlowRunContext.get()
        assert context
        self.kept = len(context.run_results)
        return Collate().merge(briefs, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize(("output", "answer"), [("text", "a word"), ({"type": "object"}, {"word": ["a"]})])
def test_no_state_of_a_settled_task_run_is_kept(output: Output, answer: JsonValue) -> None:
    """Twenty items leave as much behind as none, answered, failed or stored: nothing."""
    brief = Brief(name="words", instructions="Say a word.", output=output)
    items = [Item(key=f"w{at}", value=at) for at in range(20)]
    scripted = ScriptedExecutor({item.key: answer for item in items[1:]})
    integrator = Counting()
    for _ in range(2):
        report = dispatch([brief], items, executor=scripted, integrator=integrator, limits=Limits(retries=0))
        assert [gap.item for gap in report.gaps] == ["w0"]
        assert integrator.kept == 0


@pytest.mark.slow
def test_outside_of_flows_there_is_nothing_to_forget() -> None:
    """A task alone belongs to no flow run that would keep it."""
    result = object()
    forget_result(result, cast("Any", None))
    assert FlowRunContext.get() is None
