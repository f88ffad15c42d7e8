"""The same job again: what is asked, and what its report says of the run before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import Brief, Item, Limits, dispatch, plan
from prefect_dispatch.errors import JobError
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from pydantic import JsonValue

pytestmark = pytest.mark.usefixtures("store")

NAMES = Brief(name="names", instructions="Name it.")
TEXTS = Brief(name="texts", instructions="Say it.")
QUICK = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20)


def said(word: str) -> ScriptedExecutor:
    """Return an executor that answers everything with a word and the item."""
    return ScriptedExecutor(lambda ask: f"{word} {ask.item.value}")


def answers(report: Any) -> dict[str, JsonValue]:  # noqa: ANN401 -- a collated value
    """Return the answers of a report, by name."""
    return {f"{each['brief']}/{each['item']}": each["value"] for each in report.value["answers"]}


@pytest.mark.parametrize(
    ("refresh", "asked"),
    [
        pytest.param(False, set[str](), id="nothing"),
        pytest.param(True, {"names/a", "names/b", "texts/a", "texts/b"}, id="everything"),
        pytest.param("a", {"names/a", "texts/a"}, id="an-item"),
        pytest.param(["texts/*"], {"texts/a", "texts/b"}, id="a-brief"),
        pytest.param(["names/a", "*/b"], {"names/a", "names/b", "texts/b"}, id="several"),
    ],
)
def test_what_a_pattern_names_is_asked_again(refresh: bool | str | list[str], asked: set[str]) -> None:  # noqa: FBT001 -- the forms of the parameter
    """And nothing else is; the plan says so before, and the new answers are stored."""
    briefs, items, new = [NAMES, TEXTS], ["a", "b"], said("new")
    dispatch(briefs, items, executor=said("old"), limits=QUICK)
    assert plan(briefs, items, new, limits=QUICK, refresh=refresh).to_ask == len(asked)
    report = dispatch(briefs, items, executor=new, limits=QUICK, refresh=refresh)
    assert {f"{ask.brief.name}/{ask.item.key}" for ask in new.asks} == asked
    assert (report.usage.asked, report.usage.cached) == (len(asked), 4 - len(asked))
    expected = {name: f"{'new' if name in asked else 'old'} {name[-1]}" for name in answers(report)}
    assert answers(report) == expected
    assert answers(dispatch(briefs, items, executor=said("none"), limits=QUICK)) == expected


def test_equal_work_is_asked_again_for_all_of_it() -> None:
    """One answer belongs to equal items: a pattern that names one of them renews it for each."""
    items = [Item(key=key, value="same") for key in ("x", "y")]
    dispatch([NAMES], items, executor=said("old"), limits=QUICK)
    new = said("new")
    report = dispatch([NAMES], items, executor=new, limits=QUICK, refresh="y")
    assert new.calls == 1
    assert answers(report) == {"names/x": "new same", "names/y": "new same"}
    assert (report.usage.asked, report.usage.shared, report.plan["to_ask"]) == (1, 1, 1)


def test_a_pattern_that_names_nothing_costs_nothing() -> None:
    """It is refused, with names that there are, before anybody is asked."""
    executor = said("a word of")
    with pytest.raises(JobError, match="refresh: no work is called 'c'; of 2 names near are 'names/a', 'names/b'"):
        dispatch([NAMES], ["a", "b"], executor=executor, limits=QUICK, refresh=["a", "c"])
    assert executor.calls == 0
