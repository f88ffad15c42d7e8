"""Answers, errors and helpers that do what they shouldn't: the run stays whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from prefect.client.orchestration import get_client
from pydantic import AfterValidator, BaseModel

from prefect_dispatch import Ask, Brief, Collate, Item, Limits, Merge, dispatch
from prefect_dispatch.cli.commands import UNUSABLE, main
from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.models.checks import Function
from prefect_dispatch.tasks.run_brief import run_name
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Outcome
    from prefect_dispatch.models.ledger import Ref

pytestmark = pytest.mark.usefixtures("store")

LIMITS = Limits(retries=0, reasks=0, timeout_s=20)
SAY = Brief(name="say", instructions="Say it.", output={"type": "object"})


class Own(BaseException):
    """Not an `Exception`."""


class Speechless(Exception):  # noqa: N818 -- it can't even say that it is an error
    """An error whose message fails."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(SystemExit(3), "SystemExit: 3", id="exit"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="interrupt"),
        pytest.param(Own("x"), "Own: x", id="base"),
        pytest.param(ValueError("half \ud800"), "ValueError: half ?", id="half-a-character"),
        pytest.param(Speechless(), "Speechless: (its message can't be read)", id="speechless"),
    ],
)
def test_whatever_an_executor_raises_is_that_items_failure(error: BaseException, told: str) -> None:
    """An exit, an interrupt, an error that can't be printed: one failed item, and the rest is answered."""

    def script(ask: Ask) -> JsonValue:
        if ask.item.key == "bad":
            raise error
        return {}

    report = dispatch([SAY], ["a", "bad"], executor=ScriptedExecutor(script), limits=LIMITS)
    assert [(gap.item, gap.error.kind) for gap in report.gaps] == [("bad", "error")]
    assert told in report.gaps[0].error.message


@pytest.mark.slow
@pytest.mark.parametrize("error", [SystemExit(3), ValueError("\ud800")], ids=["exit", "half-a-character"])
def test_a_check_that_breaks_stops_the_run(error: BaseException) -> None:
    """It would break for every item; what it said is in the message."""

    def check(value: JsonValue, item: Item) -> str | None:
        raise error

    brief = SAY.model_copy(update={"checks": (Function(function=check),)})
    with pytest.raises(DispatchFailed, match=f"The check 'function' raised {type(error).__name__}"):
        dispatch([brief], ["a"], executor=ScriptedExecutor({"a": {}}), limits=LIMITS)


@pytest.mark.slow
def test_a_model_that_exits_stops_the_run() -> None:
    """A validator that calls sys.exit() would do so for every item: the run fails, and says so."""

    def leave(size: int) -> int:
        raise SystemExit(size)

    class Size(BaseModel):
        size: Annotated[int, AfterValidator(leave)]

    brief = Brief(name="say", instructions="Say it.", output=Size)
    with pytest.raises(DispatchFailed, match="The output's validation raised SystemExit: 0"):
        dispatch([brief], ["a"], executor=ScriptedExecutor({"a": {"size": 0}}), limits=LIMITS)


class Leaver:
    """Exits where it is asked what it has left out."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge as any."""
        return Collate().merge(briefs, outcomes)

    def excluded_outcomes(self, merge: Merge) -> set[Ref]:
        """Exit."""
        raise SystemExit("sk-0123456789abcdef")


@pytest.mark.slow
def test_an_integrator_that_exits_fails_the_run() -> None:
    """Wherever it exits: the run fails with a report, and no key is in it."""
    with pytest.raises(DispatchFailed, match=r"The integrator Leaver raised SystemExit: \*\*\*") as caught:
        dispatch([SAY], ["a"], executor=ScriptedExecutor({"a": {}}), integrator=Leaver(), limits=LIMITS)
    assert "sk-0123456789" not in caught.value.report.model_dump_json()


@pytest.mark.slow
def test_a_pattern_that_never_ends_costs_a_second() -> None:
    """A schema's pattern that would search for years fails the item, within its time."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?:a|aa)+$"}}}
    brief = Brief(name="say", instructions="Say it.", output=schema)
    answers: dict[str, JsonValue] = {
        "bad": {"a": "a" * 60 + "!"},
        "good": {"a": "aa"},
        "other": {"a": 3},
        "wrong": {"a": "b"},
    }
    report = dispatch([brief], list(answers), executor=ScriptedExecutor(answers), limits=LIMITS)
    assert {gap.item for gap in report.gaps} == {"bad", "other", "wrong"}
    assert "could not be searched" in report.gaps[0].error.message


LEAST = {"size": 1}


def big(value: Any, item: Item) -> str | None:  # noqa: ANN401 -- JSON
    """Check by a number that no fingerprint sees."""
    return None if value["size"] >= LEAST["size"] else "too small"


@pytest.mark.slow
def test_a_stored_answer_is_examined_before_it_is_used_again() -> None:
    """What a check depends on has changed: answers that still pass are reused, the others asked again."""
    brief = SAY.model_copy(update={"checks": (Function(function=big),)})
    answers: dict[str, JsonValue] = {"a": {"size": 1}, "b": {"size": 9}}
    dispatch([brief], ["a", "b"], executor=ScriptedExecutor(answers), limits=LIMITS)
    LEAST["size"] = 5
    try:
        grown = ScriptedExecutor({"a": {"size": 6}})
        report = dispatch([brief], ["a", "b"], executor=grown, limits=LIMITS)
    finally:
        LEAST["size"] = 1
    assert [ask.item.key for ask in grown.asks] == ["a"]
    assert (report.plan["stored"], report.usage.cached, report.usage.asked) == (1, 1, 1)


@pytest.mark.slow
def test_a_stored_answer_meets_the_model_of_today() -> None:
    """What was said is kept beside what a model made of it, so a changed model reads it anew."""

    def halve(size: int) -> int:
        return size // factor[0]

    factor = [2]

    class Size(BaseModel):
        size: Annotated[int, AfterValidator(halve)]

    brief = Brief(name="say", instructions="Say it.", output=Size)
    scripted = ScriptedExecutor({"a": {"size": 8}})
    first = dispatch([brief], ["a"], executor=scripted, limits=LIMITS)
    assert first.value == {"answers": [{"brief": "say", "item": "a", "value": {"size": 4}}], "gaps": []}
    assert dispatch([brief], ["a"], executor=scripted, limits=LIMITS).value == first.value
    factor[0] = 4
    later = dispatch([brief], ["a"], executor=scripted, limits=LIMITS)
    assert later.value == {"answers": [{"brief": "say", "item": "a", "value": {"size": 2}}], "gaps": []}
    assert scripted.calls == 1


@pytest.mark.slow
def test_a_check_that_breaks_on_a_stored_answer_is_told() -> None:
    """Reuse runs checks, too: a broken one fails the run with its name, and costs nothing."""
    broken: list[bool] = []

    def check(value: JsonValue, item: Item) -> str | None:
        if broken:
            raise ValueError("broken since")
        return None

    brief = SAY.model_copy(update={"checks": (Function(function=check),)})
    scripted = ScriptedExecutor({"a": {}})
    dispatch([brief], ["a"], executor=scripted, limits=LIMITS)
    broken.append(True)
    with pytest.raises(DispatchFailed, match="broken since"):
        dispatch([brief], ["a"], executor=scripted, limits=LIMITS)
    assert scripted.calls == 1


@pytest.mark.slow
def test_another_items_record_is_not_an_answer(store: Path) -> None:
    """One item's file copied over another's: noticed, and asked again."""
    answers: dict[str, JsonValue] = {"a": {"name": "A"}, "b": {"name": "B"}}
    scripted = ScriptedExecutor(answers)
    dispatch([SAY], ["a", "b"], executor=scripted, limits=LIMITS)
    one, two = store.glob("prefect-dispatch-*")
    one.write_bytes(two.read_bytes())
    report = dispatch([SAY], ["a", "b"], executor=scripted, limits=LIMITS)
    assert {outcome.item: outcome.value for outcome in report.outcomes} == answers
    assert scripted.calls == 3


@pytest.mark.slow
def test_equal_items_share_no_answer_that_a_function_tells_apart() -> None:
    """A check that sees the key: each of two equal items is asked, and has an answer of its own."""

    def check(value: Any, item: Item) -> str | None:  # noqa: ANN401 -- JSON
        return None if value["id"] == item.key else "another id"

    brief = SAY.model_copy(update={"checks": (Function(function=check),)})
    scripted = ScriptedExecutor(lambda ask: {"id": ask.item.key})
    items = [Item(key=key, value="same") for key in ("a", "b")]
    report = dispatch([brief], items, executor=scripted, limits=LIMITS)
    assert {outcome.item: outcome.value for outcome in report.outcomes} == {"a": {"id": "a"}, "b": {"id": "b"}}


@pytest.mark.slow
def test_nobody_edits_what_an_agent_said() -> None:
    """Neither a check nor an integrator can change an answer unnoticed."""

    def check(value: Any, item: Item) -> str | None:  # noqa: ANN401 -- JSON
        value["name"] = "edited"
        return None

    class Editor:
        def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
            value: Any = outcomes[0].value
            value["name"] = "edited"
            return Collate().merge(briefs, outcomes)

    brief = SAY.model_copy(update={"checks": (Function(function=check),)})
    report = dispatch([brief], ["a"], executor=ScriptedExecutor({"a": {"name": "A"}}), limits=LIMITS)
    assert report.outcomes[0].value == {"name": "A"}
    with pytest.raises(DispatchFailed, match="audit"):
        dispatch([brief], ["a"], executor=ScriptedExecutor({"a": {"name": "A"}}), integrator=Editor(), limits=LIMITS)


@pytest.mark.slow
def test_control_characters_of_a_key_go_no_further(caplog: pytest.LogCaptureFixture) -> None:
    """PostgreSQL, where Prefect's server may keep all that it is told, refuses NUL; a line break would forge a line."""
    hostile = Item(key="a\0\n\x1b[31m\u202eb", value={"v\0": "\0"})

    def script(ask: Ask) -> JsonValue:
        if ask.item.key == hostile.key:
            raise ValueError(f"no\0 {ask.item.key}")
        return {}

    report = dispatch([SAY], [hostile, "c"], executor=ScriptedExecutor(script), limits=LIMITS)
    [gap] = report.gaps
    assert gap.item == hostile.key
    assert "\0" not in gap.error.message
    with get_client(sync_client=True) as client:
        flow: Any = report.run["flow_run"]
        run = client.read_flow_run(flow["id"])
    assert run.parameters["items"][0]["value"] == {"v␀": "␀"}
    assert "\0" not in json.dumps(run.parameters, ensure_ascii=False)
    assert run.state is not None
    assert run.state.message == report.message
    assert report.message.isprintable()
    [told] = [each.getMessage() for each in caplog.records if each.getMessage().startswith("No answer for say/a")]
    assert told.isprintable()
    assert run_name({"brief": SAY, "item": hostile}) == "say: a [31m b"


@pytest.mark.slow
def test_items_may_come_from_a_generator() -> None:
    """It is used up once, for the run, and not to show it."""
    report = dispatch([SAY], (key for key in "ab"), executor=ScriptedExecutor(lambda _: {}), limits=LIMITS)
    assert len(report.ledger) == 2


@pytest.mark.parametrize(
    ("job", "told"),
    [
        pytest.param({"items": json.loads("[" * 400 + "]" * 400)}, "nested", id="a-deep-list"),
        pytest.param({"output": {"$ref": "#"}}, "without end", id="a-schema-without-end"),
        pytest.param({"executor": {"model": "nosuch/model"}}, "unknown to litellm", id="no-such-provider"),
        pytest.param({"executor": {"model": "openai/x", "params": {"api_key": "sk-aaaaaaaa"}}}, "api_key", id="key"),
        pytest.param(
            {"executor": {"model": "openai/x", "api_base": "http://me:sk-aaaaaaaa@host/v1"}}, "api_base", id="url"
        ),
    ],
)
def test_it_is_refused_in_a_sentence(
    job: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, whatever is in the file, and no secret on the screen."""
    brief = {"name": "say", "instructions": "Say it.", "output": job.pop("output", "text")}
    (tmp_path / "job.yaml").write_text(json.dumps({"briefs": [brief], "items": ["a"], **job}))
    assert main(["run", str(tmp_path / "job.yaml")]) == UNUSABLE
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert "sk-aaaa" not in said
