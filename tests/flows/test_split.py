"""Items that are too long for the model: cut by their brief's rule, asked in parts, joined to one answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow

from prefect_dispatch import LLM, Ask, Brief, Item, Limits, Usage, dispatch, plan
from prefect_dispatch.errors import DispatchFailed, JobError, RejectedError, TransientError
from prefect_dispatch.tasks.fan_out import FanOut
from prefect_dispatch.tasks.item_splitting import is_asked_in_parts, is_recorded_too_long, with_joined_fingerprint
from prefect_dispatch.tasks.preflight import Independence
from prefect_dispatch.tasks.result_store import storage_key
from prefect_dispatch.tasks.run_brief import result_store_for_run
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch import Executor, Outcome, Report

pytestmark = pytest.mark.usefixtures("store")

QUICK = Limits(retry_delay_s=0, retries=1, reasks=0, timeout_s=20, concurrency=1)
TEXT = "one\n\ntwo\n\nthree\n\nfour"
NAMES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ROOM = 12


def brief(split: object = "paragraphs", **more: Any) -> Brief:  # noqa: ANN401 -- fields of any type
    """Return a brief with a rule for items that are too long; a text says what is never cut."""
    rule = {"by": split} if isinstance(split, str) else split
    return Brief.model_validate({"name": "say", "instructions": "Say it.", "split": rule, **more})


def text_of(ask: Ask) -> str:
    """Return the text of an item, whatever its form."""
    value = ask.item.value
    return str(value["text"] if isinstance(value, dict) else value)


def short(ask: Ask) -> JsonValue:
    """Answer in capitals what isn't too long."""
    if len(text_of(ask)) > ROOM:
        raise RejectedError("too long", kind="context_length", usage=Usage(requests=1))
    return text_of(ask).strip().upper()


def numbered(items: list[Any]) -> list[Item]:
    """Return items whose keys are 1, 2 and so on."""
    return [Item(key=str(key), value=value) for key, value in enumerate(items, 1)]


def run(asked: Executor, items: list[Any], split: Brief, limits: Limits = QUICK, *, refresh: bool = False) -> Report:
    """Run a job."""
    return dispatch([split], numbered(items), executor=asked, limits=limits, refresh=refresh)


def answers(report: Report) -> list[Any]:
    """Return the merged values."""
    value: Any = report.value
    return [answer["value"] for answer in value["answers"]]


def test_what_is_too_long_is_asked_in_parts_and_joined() -> None:
    """One outcome with the joined text and the spending of all; the ledger says how; who is not too long is whole."""
    scripted = ScriptedExecutor(short)
    report = run(scripted, [TEXT, "brief"], brief())
    assert report.status == "complete"
    assert answers(report) == ["ONE\n\nTWO\n\nTHREE\n\nFOUR", "BRIEF"]
    assert [row.reason for row in report.ledger] == ["2 parts, one after another", ""]
    assert [outcome.joined for outcome in report.outcomes] == ["2 parts, one after another", ""]
    assert [text_of(ask) for ask in scripted.asks] == [TEXT, "one\n\ntwo\n\n", "three\n\nfour", "brief"]
    assert [ask.brief.part for ask in scripted.asks] == [False, True, True, False]
    assert (report.usage.requests, report.usage.asked) == (4, 2)
    assert [(attempt.part, attempt.error) for attempt in report.outcomes[0].attempts] == [
        ("", "context_length: too long"),
        ("1", None),
        ("2", None),
    ]
    assert report.usage.retried == {}  # to cut is not to try again


@pytest.mark.slow
def test_a_rerun_asks_nobody() -> None:
    """The joined answer is stored: neither the whole is sent again, to be refused, nor any part."""
    first = run(ScriptedExecutor(short), [TEXT], brief())
    scripted = ScriptedExecutor(short)
    again = run(scripted, [TEXT], brief())
    assert scripted.calls == 0
    assert (again.value, again.ledger) == (first.value, first.ledger)
    assert (again.usage.cached, again.usage.requests) == (1, 0)
    assert (again.plan["stored"], again.plan["to_ask"]) == (1, 0)
    assert again.outcomes[0].attempts == first.outcomes[0].attempts


@pytest.mark.slow
def test_the_rule_changes_no_answer_of_what_is_not_too_long() -> None:
    """It is no part of the fingerprint of the work: with another rule, or none, what is stored stands."""
    run(ScriptedExecutor(short), ["brief", TEXT], brief())
    scripted = ScriptedExecutor(short)
    report = run(scripted, ["brief", TEXT], brief(None))
    assert [text_of(ask) for ask in scripted.asks] == [TEXT]
    assert [(gap.item, gap.error.kind) for gap in report.gaps] == [("2", "context_length")]
    report = run(scripted, ["brief", TEXT], brief("lines"))
    assert (answers(report)[1], report.ledger[1].reason) == (
        "ONE\n\nTWO\n\nTHREE\n\nFOUR",
        "2 parts, one after another",
    )


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_asked_again_by_the_next_run() -> None:
    """The item fails with the part's reason; the next run pays for that part alone."""

    def script(ask: Ask) -> JsonValue:
        if text_of(ask).startswith("three"):
            raise TransientError("down", usage=Usage(requests=1))
        return short(ask)

    with pytest.raises(DispatchFailed) as caught:
        run(ScriptedExecutor(script), [TEXT], brief())
    (outcome,) = caught.value.report.outcomes
    assert outcome.error is not None
    assert (outcome.status, outcome.error.kind) == ("failed", "transient")
    assert outcome.error.message == "1 of 2 parts have no answer. Part 2 (transient): down"
    assert outcome.usage.requests == 4  # the whole, a part, and the other one with its retry
    assert [attempt.part for attempt in outcome.attempts] == ["", "1", "2", "2"]
    assert caught.value.report.usage.retried == {"transient": 1}
    scripted = ScriptedExecutor(short)
    report = run(scripted, [TEXT], brief())
    assert [text_of(ask) for ask in scripted.asks] == ["three\n\nfour"]
    assert answers(report) == ["ONE\n\nTWO\n\nTHREE\n\nFOUR"]
    assert report.usage.requests == 1


@pytest.mark.slow
def test_a_part_that_is_still_too_long_is_cut_again() -> None:
    """By the provider's word alone, in two each time; the answers keep the order of the text."""
    scripted = ScriptedExecutor(short)
    report = run(scripted, ["a b\n\nc d e f\n\n" + TEXT], brief("words"))
    assert answers(report)[0].split() == ["A", "B", "C", "D", "E", "F", "ONE", "TWO", "THREE", "FOUR"]
    assert report.ledger[0].reason == "4 parts, one after another"
    assert [attempt.part for attempt in report.outcomes[0].attempts] == ["", "1", "1.1", "1.2", "2", "2.1", "2.2"]
    assert report.usage.retried == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "text", "why"),
    [
        pytest.param(
            "paragraphs",
            "a text without any break",
            "too long It is one paragraph, which isn't cut; a finer split.by of brief 'say' would cut it.",
            id="one-unit",
        ),
        pytest.param(
            {"separator": "---"},
            "a text---and another, longer one",
            "1 of 2 parts have no answer. Part 2 (context_length): too long It is one text between '---', which isn't "
            "cut; a finer split.by of brief 'say' would cut it.",
            id="one-unit-of-two",
        ),
    ],
)
def test_what_cannot_be_cut_fails_and_says_why(split: object, text: str, why: str) -> None:
    """The reason names the way out."""
    with pytest.raises(DispatchFailed) as caught:
        run(ScriptedExecutor(short), [text], brief(split))
    (gap,) = caught.value.report.gaps
    assert (gap.error.kind, gap.error.message) == ("context_length", why)


@pytest.mark.slow
def test_who_refuses_everything_is_asked_a_limited_number_of_times() -> None:
    """A brief that is too long by itself is no reason to send every word."""

    def script(ask: Ask) -> JsonValue:
        raise RejectedError("too long", kind="too_large", usage=Usage(requests=1))

    scripted = ScriptedExecutor(script)
    with pytest.raises(DispatchFailed) as caught:
        run(scripted, [" ".join(map(str, range(1000)))], brief("words"), Limits(concurrency=8))
    assert scripted.calls == 2**7 - 1
    message = caught.value.report.gaps[0].error.message
    assert message.startswith("64 of 64 parts have no answer. Part 1 (too_large): too long It was cut 6 times;")
    assert message.endswith("And 59 more.")


@pytest.mark.slow
def test_an_item_without_text_fails_as_without_a_rule() -> None:
    """Where others have one."""
    report = run(ScriptedExecutor(_refuse_objects), [TEXT, {"a": 1}], brief({"field": "text"}))
    assert [gap.error.message for gap in report.gaps] == [
        "too long It has no text at split.field 'text' that could be cut."
    ]


def _refuse_objects(ask: Ask) -> JsonValue:
    if isinstance(ask.item.value, dict):
        raise RejectedError("too long", kind="context_length")
    return "fine"


@pytest.mark.slow
def test_the_field_that_is_cut_is_named_and_the_others_go_with_each_part() -> None:
    """Placeholders read a part as they read an item."""
    scripted = ScriptedExecutor(short)
    job = brief({"field": "text"}, instructions="Say {text} of {title}.")
    report = run(scripted, [{"title": "T", "text": TEXT}], job)
    assert answers(report) == ["ONE\n\nTWO\n\nTHREE\n\nFOUR"]
    assert [ask.item.value for ask in scripted.asks][1:] == [
        {"title": "T", "text": "one\n\ntwo\n\n"},
        {"title": "T", "text": "three\n\nfour"},
    ]
    assert scripted.asks[2].brief.instructions == "Say three\n\nfour of T."


def test_what_is_equal_is_asked_once() -> None:
    """Equal items, equal parts of one item and of several: each text goes out once, and counts once."""
    scripted = ScriptedExecutor(short)
    items = [
        "same\n\nsame\n\nsame\n\n",
        "same\n\nsame\n\nsame\n\n",
        "same\n\nsame\n\nother 1",
        "same\n\nsame\n\nother 2",
    ]
    report = run(scripted, items, brief())
    assert report.status == "complete"
    asked = [text_of(ask) for ask in scripted.asks]
    assert len(asked) == len(set(asked)) == report.usage.requests
    assert [outcome.origin for outcome in report.outcomes] == ["asked", "shared", "asked", "asked"]


@pytest.mark.slow
def test_the_budget_counts_parts_and_a_later_run_goes_on() -> None:
    """What the budget doesn't hold is not asked; what was answered before is not asked again."""
    scripted = ScriptedExecutor(short)
    with pytest.raises(DispatchFailed) as caught:
        run(scripted, [TEXT], brief(), QUICK.model_copy(update={"budget_requests": 2}))
    (gap,) = caught.value.report.gaps
    assert (scripted.calls, gap.status, gap.error.kind) == (2, "failed", "budget")
    assert gap.error.message.startswith("1 of 2 parts have no answer. Part 2 (budget): Not asked: ")
    assert plan([brief()], numbered([TEXT]), scripted).to_ask == 1
    run(scripted, [TEXT], brief())
    assert [text_of(ask) for ask in scripted.asks[2:]] == ["three\n\nfour"]


def ended(asked: Executor, text: str, limits: Limits) -> Report:
    """Return the report of a run, however it ended."""
    try:
        return run(asked, [text], brief("words"), limits)
    except DispatchFailed as failed:
        return failed.report


@pytest.mark.slow
def test_what_was_learned_of_lengths_outlives_the_run() -> None:
    """One request a run, and each brings the item further: nothing is refused twice, and the plan counts on it."""
    scripted, one = ScriptedExecutor(short), QUICK.model_copy(update={"budget_requests": 1})
    text = "a b\n\nc d e f\n\n" + TEXT
    left: list[int] = []
    while (told := ended(scripted, text, one)).status == "failed":
        left.append(plan([brief("words")], numbered([text]), scripted).to_ask)
        assert (scripted.calls, [gap.error.kind for gap in told.gaps]) == (len(left), ["budget"])
    assert answers(told)[0].split() == ["A", "B", "C", "D", "E", "F", "ONE", "TWO", "THREE", "FOUR"]
    asked = [text_of(ask) for ask in scripted.asks]
    assert len(asked) == len(set(asked)) == 7  # 1 whole, 2 halves, 4 quarters
    assert left == [2, 3, 2, 1, 2, 1]
    scripted.asks.clear()
    run(scripted, [text], brief("words"), refresh=True)
    assert [text_of(ask) for ask in scripted.asks] == asked


@pytest.mark.slow
def test_what_is_learned_and_can_not_be_kept_is_learned_again(store: Path) -> None:
    """The run goes on; the note's place, and a foreign note there, are nothing to rely on."""
    (work,) = build_work([brief()], numbered([TEXT]), ScriptedExecutor(short))
    place = store / f"{storage_key(work.fingerprint)}.long"
    place.mkdir(parents=True)
    assert run(ScriptedExecutor(short), [TEXT], brief()).status == "complete"
    place.rmdir()
    (store / storage_key(with_joined_fingerprint(work).fingerprint)).unlink()
    for foreign in ("{", '{"too_long": "another"}'):
        place.write_text(foreign)
        assert not is_recorded_too_long(result_store_for_run(), work)
    scripted = ScriptedExecutor(short)
    assert run(scripted, [TEXT], brief()).status == "complete"
    assert [text_of(ask) for ask in scripted.asks] == [TEXT]
    assert is_recorded_too_long(result_store_for_run(), work)
    assert is_asked_in_parts(result_store_for_run(), work, scripted)


@pytest.mark.slow
def test_what_another_run_has_joined_meanwhile_is_taken() -> None:
    """It wasn't there when the run looked what is stored, and is when its turn comes."""
    run(ScriptedExecutor(short), [TEXT], brief())
    scripted = ScriptedExecutor(short)
    work = build_work([brief()], numbered([TEXT]), scripted)

    def join(brief: Brief, parts: Sequence[Outcome]) -> tuple[JsonValue, str]:
        raise AssertionError

    seen: list[object] = []

    @flow
    def ours() -> list[Outcome]:
        return FanOut(
            work, scripted, QUICK, independence=Independence(), again=(), on_progress=seen.append, join=join
        ).run()

    (outcome,) = ours()
    assert (outcome.origin, scripted.calls) == ("stored", 0)
    assert str(outcome.value).split() == ["ONE", "TWO", "THREE", "FOUR"]


@pytest.mark.slow
def test_a_rule_that_no_longer_cuts_asks_the_whole() -> None:
    """What was learned holds for the text, not for the rule: where that cuts nothing, the refusal says so again."""
    run(ScriptedExecutor(short), [TEXT], brief())
    coarse = brief({"separator": "---"})
    assert plan([coarse], numbered([TEXT]), ScriptedExecutor(short)).to_ask == 1
    with pytest.raises(DispatchFailed) as caught:
        run(ScriptedExecutor(short), [TEXT], coarse)
    assert "It is one text between '---', which isn't cut" in caught.value.report.gaps[0].error.message


@pytest.mark.slow
def test_refresh_asks_the_whole_and_its_parts_again() -> None:
    """What was answered to the whole before is then no answer any more."""
    run(ScriptedExecutor({"1": "whole"}), [TEXT], brief())
    assert answers(run(ScriptedExecutor(short), [TEXT], brief())) == ["whole"]
    run(ScriptedExecutor(short), [TEXT], brief(), refresh=True)
    scripted = ScriptedExecutor(short)
    assert answers(run(scripted, [TEXT], brief())) == ["ONE\n\nTWO\n\nTHREE\n\nFOUR"]
    assert scripted.calls == 0
    run(scripted, [TEXT], brief(), refresh=True)
    assert scripted.calls == 3
    run(ScriptedExecutor({"1": "whole"}), [TEXT], brief(), refresh=True)
    assert answers(run(scripted, [TEXT], brief())) == ["whole"]


@pytest.mark.slow
def test_a_joined_answer_that_is_not_what_the_brief_asks_for_fails() -> None:
    """Its checks hold for the whole of it, as for any answer."""
    job = brief(checks=[{"kind": "max_words", "words": 3}])
    with pytest.raises(DispatchFailed) as caught:
        run(ScriptedExecutor(short), [TEXT], job)
    (gap,) = caught.value.report.gaps
    assert gap.error.kind == "invalid_output"
    assert "joined of 2 parts is not valid: the answer has 4 words; the most is 3." in gap.error.message


@pytest.mark.slow
def test_a_joined_answer_that_can_not_be_stored_is_an_answer(store: Path) -> None:
    """The answers to the parts are stored; the next run joins them anew."""
    (work,) = build_work([brief()], [Item(key="1", value=TEXT)], ScriptedExecutor(short))
    place = store / storage_key(with_joined_fingerprint(work).fingerprint)

    def script(ask: Ask) -> JsonValue:
        if text_of(ask).startswith("three"):
            place.mkdir()
        return short(ask)

    report = run(ScriptedExecutor(script), [TEXT], brief())
    assert report.status == "complete"
    place.rmdir()
    scripted = ScriptedExecutor(short)
    assert run(scripted, [TEXT], brief()).value == report.value
    assert scripted.calls == 0


class Counting(ScriptedExecutor):
    """Can count, and knows its room: a token a character, two for an answer."""

    room: int | None = ROOM + 2

    def require_available(self) -> None:
        """Whoever it is."""

    def count_tokens(self, brief: Brief, item: Item) -> int:
        """Return the characters."""
        return len(str(item.value))

    def expected_completion_tokens(self, brief: Brief) -> int:
        """Return two."""
        return 2

    def price(self) -> tuple[float, float] | None:
        """Nobody knows."""
        return None

    def context_tokens(self) -> int | None:
        """Return the room."""
        return self.room


@pytest.mark.slow
def test_what_is_known_not_to_fit_is_never_sent() -> None:
    """Cut at once into as many parts as are needed; the plan counts them; it costs what it says."""
    items = numbered([f"{TEXT}\n\nfive", "brief"])
    planned = plan([brief()], items, Counting(short))
    assert (planned.work, planned.to_ask, planned.parts) == (2, 4, 3)
    scripted = Counting(short)
    report = run(scripted, [each.value for each in items], brief())
    assert [text_of(ask) for ask in scripted.asks] == ["one\n\ntwo\n\n", "three\n\n", "four\n\nfive", "brief"]
    assert report.ledger[0].reason == "3 parts, one after another"
    assert (report.usage.requests, report.plan["to_ask"]) == (4, 4)
    assert report.outcomes[0].attempts[0].error == (
        "context_length: Prompt and answer take about 29 tokens, and Counting takes in 14, so it was not sent."
    )
    too_long, fits = build_work([brief()], items, scripted)
    assert [is_asked_in_parts(result_store_for_run(), each, scripted) for each in (too_long, fits)] == [True, False]


@pytest.mark.slow
def test_parts_that_are_stored_are_joined_without_asking_anybody(store: Path) -> None:
    """A run that died before it could join them has lost nothing."""
    first = run(Counting(short), [TEXT], brief())
    (work,) = build_work([brief()], numbered([TEXT]), Counting(short))
    (store / storage_key(with_joined_fingerprint(work).fingerprint)).unlink()
    assert plan([brief()], numbered([TEXT]), Counting(short)).to_ask == 0
    scripted = Counting(short)
    report = run(scripted, [TEXT], brief())
    assert (scripted.calls, report.value) == (0, first.value)
    assert (report.usage.cached, report.usage.requests) == (1, 0)


@pytest.mark.slow
def test_parts_that_nobody_could_pay_for_are_skipped() -> None:
    """Nothing was sent for the item: it is not asked, as any other."""
    limits = QUICK.model_copy(update={"budget_requests": 1})
    scripted = Counting(short)
    report = run(scripted, ["brief", TEXT], brief(), limits)
    assert scripted.calls == 1
    assert [(gap.item, gap.status, gap.error.kind) for gap in report.gaps] == [("2", "skipped", "budget")]


def test_too_many_parts_are_not_asked() -> None:
    """A brief that leaves next to no room is told, and not paid for a thousand times."""
    scripted = Counting(short)
    with pytest.raises(DispatchFailed) as caught:
        run(scripted, ["a " * 8000], brief("words"))
    assert scripted.calls == 0
    assert "It would take more than 1000 parts." in caught.value.report.gaps[0].error.message


@pytest.mark.slow
@pytest.mark.parametrize("room", [None, 2, 1000])
def test_where_the_count_is_no_help_the_refusal_is(room: int | None) -> None:
    """A room that nobody knows, that isn't even enough for the brief, or that the provider doesn't grant."""
    scripted = Counting(short)
    scripted.room = room
    if room == 2:
        with pytest.raises(DispatchFailed) as caught:
            run(scripted, [TEXT], brief())
        assert scripted.calls == 0
        assert "which isn't cut" in caught.value.report.gaps[0].error.message
        return
    assert run(scripted, [TEXT], brief()).status == "complete"
    assert scripted.calls == 3


@pytest.mark.slow
def test_a_provider_that_refuses_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the wire, by OpenAI's error body: three parts, two lists of records joined by identity."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        text = document(request)
        if len(text) > 60:
            return failure(400, "This model's maximum context length is 60 tokens.", code="context_length_exceeded")
        words = [word for word in text.split() if word.isalpha()]
        return Behaviour(content=json.dumps([{"name": word.lower()} for word in words]))

    rule = {"by": "words", "join": {"kind": "merge_records", "identity": ["name"]}}
    job = brief(rule, output=NAMES)
    words = "alpha beta Gamma delta epsilon zeta eta theta Alpha iota kappa lambda gamma"
    with openai_server(behave) as server:
        who = LLM(model="openai/test", api_base=server.url)
        report = run(who, [words], job)
        asked = server.count
        again = run(who, [words], job)
        assert server.count == asked
    system = [request.body["messages"][0]["content"] for request in server.requests]
    assert ["one part of a longer text" in each for each in system] == [False] + [True] * (asked - 1)
    assert sorted(entry["name"] for entry in answers(report)[0]) == sorted({*words.lower().split()})
    assert report.ledger[0].reason.endswith(" parts, joined by merge_records")
    assert report.usage.requests == asked
    assert report.usage.tokens == server.usage.tokens
    assert again.value == report.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "item", "why"),
    [
        pytest.param({"output": {"type": "object"}}, TEXT, "neither text nor a list; give split.join", id="object"),
        pytest.param({"split": {"join": {"kind": "merge"}}}, TEXT, "split.join: there is no kind 'merge'", id="kind"),
        pytest.param({"split": {"join": {"kind": "collate"}}}, TEXT, "split.join can't be 'collate'", id="collate"),
        pytest.param(
            {"split": {"join": {"kind": "synthesize", "instructions": "Sum up."}}},
            TEXT,
            "can't be 'synthesize'",
            id="asks",
        ),
        pytest.param({"split": {"join": {"kind": "merge_records"}}}, TEXT, "split.join.identity: Field", id="lacks"),
        pytest.param(
            {"split": {"join": {"kind": "merge_records", "identity": ["nam"]}}, "output": NAMES},
            TEXT,
            "Identity field 'nam' is not in the schema",
            id="identity",
        ),
        pytest.param(
            {"split": {"join": {"kind": "merge_records", "identity": ["name"], "aliases": "a.yaml"}}, "output": NAMES},
            TEXT,
            "split.join can't use 'aliases'",
            id="aliases",
        ),
        pytest.param(
            {"split": {"join": {"kind": "merge_records", "identity": ["name"], "rules": {"a": "my:rule"}}}},
            TEXT,
            "split.join can't use a function",
            id="function",
        ),
        pytest.param(
            {}, {"text": TEXT, "n": 1}, "has fields; name the one to cut in split.field. Texts are: 'text'", id="field"
        ),
        pytest.param({"split": {"field": "txt"}}, {"a": 1}, "has no text at 'txt'; .* Texts are: none", id="no-text"),
        pytest.param({}, 3, "split cuts text, and item '1' is none", id="number"),
    ],
)
def test_a_rule_that_can_not_be_followed_is_refused(fields: dict[str, Any], item: Any, why: str) -> None:  # noqa: ANN401 -- JSON
    """Before anything is spent, with the way out."""
    scripted = ScriptedExecutor(short)
    with pytest.raises(JobError, match=why):
        run(scripted, [item], Brief.model_validate({**dict(brief()), **fields}))
    assert scripted.calls == 0
