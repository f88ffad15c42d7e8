"""A cascade: who answers, what it costs, what is learned, and what is never paid for twice."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import BaseModel, model_validator

from prefect_dispatch import LLM, Brief, Cascade, Limits, LLMCredentials, Reply, Tournament, dispatch, plan
from prefect_dispatch.calls.attempt import Checkpoint, run_attempt
from prefect_dispatch.calls.cheap_answers import ask_cheap_model
from prefect_dispatch.cli.commands import COMPLETE, UNUSABLE, main
from prefect_dispatch.errors import BudgetError, DispatchFailed, JobError, TerminalError
from prefect_dispatch.executors.llm.cascade import Learn
from prefect_dispatch.flows.analyze_files import FORM, AgentReader
from prefect_dispatch.flows.runtime.form_fields import AnswerField
from prefect_dispatch.models.cascade_decision import CascadeRule
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.outcome import Answer, CascadeAttempt
from prefect_dispatch.tasks.pilots.cascade_learning import decision_of
from prefect_dispatch.tasks.shards.protocol import to_job_file_form
from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prefect_dispatch import Report

    Say = Callable[[str, str, int], object]

pytestmark = pytest.mark.usefixtures("store")

VERDICT = Brief(
    name="verdict",
    instructions="Judge it.",
    output={
        "type": "object",
        "properties": {"verdict": {"type": "string"}, "sure": {"type": "number"}},
        "required": ["verdict"],
    },
)
CHEAP, STRONG = "openai/cheap", "openai/strong"
CHEAP_USD, STRONG_USD = 15e-6, 300e-6
"""The price of a call: ten tokens sent and five received, at one and twenty US dollars per million."""


class Bill:
    """A server of both models, which bills each answer by the model's price.

    Attributes:
        calls: How often each model was asked.
        asked: How often each model was asked about each item.
    """

    def __init__(self, say: Say) -> None:
        """Answer with what `say` returns for a model, an item and the number of the call for both."""
        self._say = say
        self.calls: Counter[str] = Counter()
        self.asked: Counter[tuple[str, str]] = Counter()

    def __call__(self, request: dict[str, Any], _n: int) -> Behaviour:
        """Answer, and count."""
        model = str(request["model"])
        item = document(request).splitlines()[1]
        self.calls[model] += 1
        self.asked[model, item] += 1
        said = self._say(model, item, self.asked[model, item])
        return said if isinstance(said, Behaviour) else Behaviour(content=json.dumps(said))

    @property
    def usd(self) -> float:
        """What the calls have cost."""
        return self.calls["cheap"] * CHEAP_USD + self.calls["strong"] * STRONG_USD


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[Say], Bill]]:
    """Start a server that answers as it is told; its address is that of all models."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    servers: list[Any] = []

    def start(say: Say) -> Bill:
        bill = Bill(say)
        server = openai_server(bill)
        servers.append(server)
        monkeypatch.setenv("OPENAI_API_BASE", server.__enter__().url)
        return bill

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def llm(**cascade: Any) -> LLM:  # noqa: ANN401 -- options of a cascade
    """Return an executor with a cascade, and with prices for both models."""
    options = {"cheap": CHEAP, "usd_per_million": (1, 1), **cascade}
    return LLM.model_validate(
        {"model": STRONG, "usd_per_million": (20, 20), "params": {"max_tokens": 5}, "cascade": options}
    )


def run(executor: LLM, items: list[str], brief: Brief = VERDICT, **limits: Any) -> Report:  # noqa: ANN401 -- limits
    """Run a job without retries, and with one re-ask."""
    given = Limits.model_validate({"retries": 0, "reasks": 0, **limits})
    return dispatch([brief], items, executor=executor, limits=given)


def reasons(report: Report) -> list[str]:
    """Return the reason of each row of the ledger."""
    return [row.reason for row in report.ledger]


def note(report: Report) -> str:
    """Return the note of the table of who answered."""
    return next(table.note for table in report.tables if table.name == "cascade")


def yes(_model: str, _item: str, _n: int) -> object:
    """Answer yes, whoever is asked."""
    return {"verdict": "yes", "sure": 0.9}


def test_an_invalid_answer_of_the_cheap_model_is_asked_of_the_strong_one(serve: Callable[[Say], Bill]) -> None:
    """Ledger and table say who answered and why, the cost is that of the bill, and a rerun asks nothing."""

    def say(model: str, item: str, _n: int) -> object:
        return {"wrong": 1} if model == "cheap" and item == "hard" else {"verdict": model}

    bill = serve(say)
    report = run(llm(), ["easy", "hard"])
    assert (report.status, bill.calls) == ("complete", {"cheap": 2, "strong": 1})
    assert reasons(report) == [
        f"{CHEAP} answered: its answer is valid",
        f"{STRONG} answered: the cheap model has no valid answer (invalid_output)",
    ]
    assert report.usage.cost_usd == pytest.approx(bill.usd)
    assert report.usage.escalated == {"invalid_output": 1}
    assert {each.asked: each.answers for each in report.models} == {CHEAP: 1, STRONG: 1}
    assert "1 of 2 answers are those of 'openai/cheap'. The agreement with the strong model was not measured" in note(
        report
    )
    assert "Cost of the answers: 0.000330 USD, 55.0 % of the 0.000600 USD" in note(report)
    again = run(llm(), ["easy", "hard"])
    assert (bill.calls.total(), again.usage.requests, again.usage.cached) == (3, 0, 2)
    assert (again.ledger, note(again), again.value) == (report.ledger, note(report), report.value)


def test_the_confidence_that_an_answer_states_decides(serve: Callable[[Say], Bill]) -> None:
    """Below the limit the strong model is asked; so it is where the answer states none, or no number from 0 to 1."""
    stated: dict[str, object] = {"a": 0.9, "b": 0.4, "c": None, "d": 90, "e": 0.8}

    def say(model: str, item: str, _n: int) -> object:
        sure = {} if stated[item] is None else {"sure": stated[item]}
        return {"verdict": model, **sure}

    bill = serve(say)
    report = run(llm(confidence="sure", min_confidence=0.8), [*stated])
    assert bill.calls == {"cheap": 5, "strong": 3}
    assert reasons(report) == [
        f"{CHEAP} answered: its confidence is 0.9",
        f"{STRONG} answered: the cheap model has a confidence of 0.4, and at least 0.8 is needed",
        f"{STRONG} answered: the cheap model states no confidence, and at least 0.8 is needed",
        f"{STRONG} answered: the cheap model states no confidence, and at least 0.8 is needed",
        f"{CHEAP} answered: its confidence is 0.8",
    ]


@pytest.mark.slow
def test_two_samples_that_differ_are_asked_of_the_strong_model(serve: Callable[[Say], Bill]) -> None:
    """Fields that aren't compared may differ; a second sample that isn't valid agrees with nothing."""

    def say(model: str, item: str, n: int) -> object:
        if model == "cheap" and n == 2 and item == "broken":
            return {"wrong": 1}
        verdict = f"{n}" if item == "hard" else "yes"
        return {"verdict": verdict if model == "cheap" else "no", "sure": n / 10}

    bill = serve(say)
    compared = llm(samples=2, compare=["verdict"])
    report = run(compared, ["broken", "easy", "hard"])
    assert bill.calls == {"cheap": 6, "strong": 2}
    assert reasons(report) == [
        f"{STRONG} answered: two samples of the cheap model differ as the second is no valid answer (invalid_output)",
        f"{CHEAP} answered: two samples agree",
        f"{STRONG} answered: two samples of the cheap model differ in 'verdict'",
    ]
    assert report.usage.cost_usd == pytest.approx(bill.usd)
    # Without `compare`, the stated confidence differs; with the field named as the confidence, it isn't compared.
    assert "differ in 'sure'" in reasons(run(llm(samples=2), ["easy"]))[0]
    both = llm(samples=2, confidence="sure", min_confidence=0.9)
    assert "at least 0.9 is needed" in reasons(run(both, ["easy"]))[0]  # one sample was enough
    accepted = llm(samples=2, confidence="sure", min_confidence=0.0)
    assert reasons(run(accepted, ["easy"])) == [f"{CHEAP} answered: two samples agree, and its confidence is 0.6"]
    assert bill.calls == {"cheap": 6 + 2 + 1 + 2, "strong": 4}


ITEMS = [f"item {n:03}" for n in range(90)]


def is_hard(item: str) -> bool:
    """Return whether the cheap model knows too little of an item: a third of all."""
    return int(item[-3:]) % 3 == 0


def guess(model: str, item: str, n: int) -> object:
    """Answer as a cheap model does that guesses about what is hard."""
    return {"verdict": f"{item} {n}" if model == "cheap" and is_hard(item) else item}


LEARNED = {"samples": 2, "learn": {"items": 60, "target": 0.95, "confidence": 0.95}}


@pytest.mark.slow
def test_a_rule_is_learned_from_items_that_both_answer(serve: Callable[[Say], Bill]) -> None:
    """The report has the agreement with its interval and the saving; a rerun asks nothing and says the same."""
    bill = serve(guess)
    executor = llm(**LEARNED)
    report = run(executor, ITEMS)
    assert report.status == "complete"
    measured = [each for each in report.outcomes if "both models were asked" in reasons_of(each)]
    assert len(measured) == 60
    hard = sum(is_hard(each.item_text) for each in map(Measured, report.outcomes) if not each.is_measured)
    assert bill.calls == {"cheap": 180, "strong": 60 + hard}
    assert report.usage.cost_usd == pytest.approx(bill.usd)
    assert (
        "Learned from 60 items that both models answered: answers of the cheap model count if two samples agree. In "
        "them the agreement with the strong model is 100.0 %, and in all items at least 95.1 % (confidence 95 %)."
    ) in note(report)
    again = run(executor, ITEMS)
    assert (bill.calls.total(), note(again), again.ledger) == (240 + hard, note(report), report.ledger)
    # What is new is decided by the rule that the stored answers teach; nothing is measured again.
    more = run(executor, [*ITEMS, "item 091", "item 093"])
    assert bill.calls == {"cheap": 184, "strong": 60 + hard + 1}
    assert more.usage.asked == 2


class Measured:
    """Outcome of an item, with what a test asks of it."""

    def __init__(self, outcome: Any) -> None:  # noqa: ANN401 -- an outcome
        """Read it."""
        self.is_measured = "both models were asked" in reasons_of(outcome)
        self.item_text = str(outcome.value["verdict"])


def reasons_of(outcome: Any) -> str:  # noqa: ANN401 -- an outcome
    """Return why who answered an item."""
    last = outcome.attempts[-1]
    return last.cascade.reason if isinstance(last, CascadeAttempt) else ""


@pytest.mark.slow
def test_where_no_rule_keeps_the_target_the_strong_model_answers(serve: Callable[[Say], Bill]) -> None:
    """The cheap model is always wrong: it is asked for the sample alone, and the report says so."""
    bill = serve(lambda model, _item, _n: {"verdict": model})
    report = run(llm(**LEARNED), ITEMS)
    assert bill.calls == {"cheap": 120, "strong": 90}
    assert Counter(reasons(report)) == {
        f"{STRONG} answered: both models were asked, to learn the rule": 60,
        f"{STRONG} answered: the strong model answers every item": 30,
    }
    assert (
        "Learned from 60 items that both models answered: the strong model answers every item, as no other rule keeps "
        "an agreement of 95.0 % there."
    ) in note(report)


@pytest.mark.slow
def test_too_few_items_to_learn_from_are_asked_of_the_strong_model(serve: Callable[[Say], Bill]) -> None:
    """A sample of all would only cost more than the strong model alone."""
    bill = serve(yes)
    report = run(llm(**LEARNED), ITEMS[:60])
    assert bill.calls == {"strong": 60}
    assert "Too few items were left to learn a rule from, so the strong model answered." in note(report)
    assert "0.018000 USD, 100.0 % of the 0.018000 USD" in note(report)


@pytest.mark.slow
def test_a_confidence_is_learned_and_an_item_without_a_valid_answer_counts_as_not_accepted(
    serve: Callable[[Say], Bill],
) -> None:
    """The lowest confidence from which on the answers agree is found; without a price the saving is unknown."""

    def say(model: str, item: str, _n: int) -> object:
        number = int(item[-3:])
        if model == "cheap" and number % 30 == 7:
            return {"wrong": 1}
        return {"verdict": model if is_hard(item) else "same", "sure": 0.5 if is_hard(item) else 0.85}

    bill = serve(say)
    executor = llm(confidence="sure", learn=LEARNED["learn"], usd_per_million=None)
    report = run(executor, ITEMS)
    assert "count if the confidence is at least 0.55" in note(report)
    assert "The saving is unknown" in note(report)
    assert report.usage.cost_usd is None
    assert bill.calls["cheap"] == 90
    decisions = [decision for each in report.outcomes if (decision := decision_of(each.attempts))]
    assert Counter(decision.matches for decision in decisions)[None] == 30


@pytest.mark.slow
def test_a_fallback_that_answers_in_place_of_the_strong_model_teaches_nothing(serve: Callable[[Say], Bill]) -> None:
    """Only answers of both models are compared."""
    bill = serve(lambda model, _item, _n: failure(400, "no") if model == "strong" else {"verdict": "yes"})
    executor = llm(**LEARNED).model_copy(update={"fallbacks": ("openai/third",)})
    report = run(executor, ITEMS[:65], circuit=1000)
    assert report.status == "complete"
    assert bill.calls == {"cheap": 120, "strong": 65, "third": 65}
    assert "Too few items" in note(report)


@pytest.mark.slow
def test_a_run_that_was_ended_while_it_learned_goes_on_with_the_same_sample(serve: Callable[[Say], Bill]) -> None:
    """The key is taken back after a hundred calls: what was answered is not asked again, and the result is the same."""
    calls = Counter[str]()

    def say(model: str, item: str, n: int) -> object:
        calls["all"] += 1
        return failure(401, "the key was revoked") if 100 < calls["all"] <= 110 else guess(model, item, n)

    bill = serve(say)
    with pytest.raises(DispatchFailed):
        run(llm(**LEARNED), ITEMS, concurrency=2)
    before = Counter(bill.asked)
    stored = {item for (model, item), count in before.items() if model == "strong" and count}
    calls["all"] = 1000
    report = run(llm(**LEARNED), ITEMS)
    assert report.status == "complete"
    answered_before = {item for item in stored if bill.asked["strong", item] == before["strong", item]}
    assert len(answered_before) >= 30
    assert sum("both models" in reason for reason in reasons(report)) == 60
    assert report.usage.cached == len(answered_before)


def test_a_pair_of_models_is_the_short_form(serve: Callable[[Say], Bill], tmp_path: Path) -> None:
    """Cheap and strong, in this order."""
    bill = serve(lambda model, item, _n: {"verdict": "yes"} if model == "strong" or item == "easy" else {})
    job = {
        "briefs": [VERDICT.model_dump(mode="json", include={"name", "instructions", "output"})],
        "items": ["easy", "hard"],
        "executor": {"cascade": [CHEAP, STRONG]},
        "limits": {"reasks": 0},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    assert main(["run", str(tmp_path / "job.yaml")]) == COMPLETE
    assert bill.calls == {"cheap": 2, "strong": 1}


@pytest.mark.parametrize("budget", [0.0, 0.0005, 0.002, 0.004])
@pytest.mark.slow
def test_a_budget_is_kept_and_no_sample_is_paid_for_that_the_strong_model_can_not_follow(
    serve: Callable[[Say], Bill], budget: float
) -> None:
    """What no longer fits in the worst case, two samples and the strong model, is skipped with nothing sent."""
    bill = serve(lambda model, item, n: {"verdict": f"{item}{n}" if model == "cheap" else "yes"})
    limits = Limits(retries=0, reasks=0, concurrency=1, budget_usd=budget)
    state: Any = dispatch([VERDICT], ITEMS[:20], executor=llm(samples=2), limits=limits, return_state=True)
    report = state.result(raise_on_failure=False)
    report = report.report if isinstance(report, DispatchFailed) else report
    assert bill.usd <= budget
    assert bill.calls["cheap"] == 2 * bill.calls["strong"]
    assert {(gap.status, gap.error.kind) for gap in report.gaps} == {("skipped", "budget")}


@pytest.mark.parametrize(
    ("cascade", "more", "said"),
    [
        ({"cheap": STRONG}, {}, "cascade.cheap is 'openai/strong', which is also asked as the strong model"),
        ({"cheap": "openai/third"}, {"fallbacks": ["openai/third"]}, "cascade.cheap is 'openai/third'"),
        ({"cheap": CHEAP}, {"mode": "batch"}, "cascade: with mode: batch"),
        ({"cheap": CHEAP}, {"web_search": True}, "cascade: with web_search"),
        ({"cheap": CHEAP, "samples": 3}, {}, "samples"),
        ({"cheap": CHEAP, "samples": True}, {}, "samples"),
        ({"cheap": CHEAP, "samples": 2, "params": {"temperature": 0}}, {}, "cascade.params.temperature"),
        ({"cheap": CHEAP, "samples": 2}, {"params": {"seed": 1}}, "leave 'seed' out of cascade.params"),
        ({"cheap": CHEAP, "min_confidence": -0.1, "confidence": "sure"}, {}, "min_confidence"),
        ({"cheap": CHEAP, "min_confidence": "high", "confidence": "sure"}, {}, "min_confidence"),
        ({"cheap": CHEAP, "min_confidence": 0.5}, {}, "min_confidence needs 'confidence'"),
        ({"cheap": CHEAP, "confidence": "sure"}, {}, "confidence decides nothing by itself"),
        ({"cheap": CHEAP, "compare": ["verdict"]}, {}, "compare is for two samples"),
        (
            {"cheap": CHEAP, "confidence": "sure", "min_confidence": 0.5, "learn": {}},
            {},
            "min_confidence and 'learn' exclude each other",
        ),
        ({"cheap": CHEAP, "learn": {"items": 58}}, {}, "takes at least 59"),
        ({"cheap": CHEAP, "learn": {"target": 1}}, {}, "target"),
        ({"cheap": CHEAP, "usd_per_million": [-1, 1]}, {}, "usd_per_million"),
        ({"cheap": CHEAP, "api_base": "http://key@127.0.0.1/v1"}, {}, "api_base"),
        ({"cheap": CHEAP, "sampels": 2}, {}, "did you mean 'samples'?"),
        ({"cheap": CHEAP, "rule": {"accept": "valid"}}, {}, "executor.cascade.rule is what a run learns"),
        ({"cheap": "nobody/cheap"}, {}, "'nobody/cheap' is unknown to litellm"),
        ({"cheap": CHEAP, "samples": 2, "compare": ["verdct"]}, {}, "executor.cascade.compare: field 'verdct'"),
        ({"cheap": CHEAP, "min_confidence": 0.5, "confidence": "x"}, {}, "executor.cascade.confidence: field 'x'"),
        ([CHEAP], {}, "a list has two models, [cheap, strong]"),
        ([CHEAP, "openai/other"], {}, "and model is 'openai/strong'"),
    ],
)
def test_what_contradicts_a_cascade_is_refused_with_the_key_and_nothing_is_sent(
    serve: Callable[[Say], Bill],
    cascade: object,
    more: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, before anything is spent."""
    bill = serve(yes)
    job = {
        "briefs": [VERDICT.model_dump(mode="json", include={"name", "instructions", "output"})],
        "items": ["a"],
        "executor": {"model": STRONG, "cascade": cascade, **more},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    assert main(["run", str(tmp_path / "job.yaml")]) == UNUSABLE
    assert said in " ".join(capsys.readouterr().err.split())
    assert not bill.calls


def test_a_job_that_a_cascade_does_not_go_with_is_refused(serve: Callable[[Say], Bill]) -> None:
    """A pilot beside a learned rule, a brief with a model of its own, texts that are compared, a judge's cascade."""
    bill = serve(yes)
    text = Brief(name="text", instructions="Say it.")
    with pytest.raises(JobError, match=r"executor\.cascade\.learn and limits\.pilot both ask a sample first"):
        plan([VERDICT], ITEMS, llm(**LEARNED), limits=Limits.model_validate({"pilot": {"items": 5}}))
    with pytest.raises(JobError, match="names a model of its own"):
        plan([VERDICT.model_copy(update={"model": STRONG})], ITEMS, llm())
    with pytest.raises(JobError, match=r"executor\.cascade\.compare names the field 'verdict', and brief 'text'"):
        plan([text], ITEMS, llm(samples=2, compare=["verdict"]))
    with pytest.raises(JobError, match=r"integrator\.judge\.cascade"):
        plan([text], ITEMS, LLM(model=STRONG), integrator=Tournament(criterion="Which?", judge=llm()))
    unpriced = llm(usd_per_million=None)
    with pytest.raises(JobError, match="the price of 'openai/cheap' is unknown"):
        plan([VERDICT], ITEMS, unpriced, limits=Limits(budget_usd=1))
    assert not bill.calls


def test_a_rule_is_not_learned_outside_of_a_run(serve: Callable[[Say], Bill]) -> None:
    """A single task has no sample, and would pay for both models each time."""
    bill = serve(yes)
    with pytest.raises(TerminalError, match=r"executor\.cascade\.learn: a rule is learned by whole runs"):
        asyncio.run(run_attempt(llm(**LEARNED), VERDICT, Item(key="a", value="a"), limits=Limits()))
    assert not bill.calls


def test_the_plan_prices_a_range() -> None:
    """From the cheap model's answers alone to both models for each item; the sample of a learned rule has both."""
    alone = [
        plan([VERDICT], ITEMS, LLM(model=each, usd_per_million=price, params={"max_tokens": 5})).cost_usd or 0.0
        for each, price in ((CHEAP, (1, 1)), (STRONG, (20, 20)))
    ]
    expected = plan([VERDICT], ITEMS, llm(samples=2))
    assert expected.cost_usd == pytest.approx(2 * alone[0] + alone[1], abs=2e-6)
    assert (
        f"cascade: {2 * alone[0]:.6f} USD if the cheap model's answers count, and up to {expected.cost_usd:.6f}"
        in expected.basis
    )
    learned = re.search(r"cascade: ([0-9.]+) USD", plan([VERDICT], ITEMS, llm(**LEARNED)).basis)
    assert learned is not None
    assert float(learned[1]) == pytest.approx(2 * alone[0] + alone[1] * 60 / 90, rel=0.01)
    unknown = plan([VERDICT], ITEMS, llm(usd_per_million=None))
    assert (unknown.cost_usd, "cascade" in unknown.basis) == (None, False)


def test_a_form_asks_a_cheap_model_first() -> None:
    """Twice; a text, a coding agent or the same model as reader doesn't go with it."""
    form: dict[str, Any] = {"files": "*.txt", "instructions": "Judge.", "model": STRONG, "cheap_model": CHEAP}
    same: dict[str, Any] = {**form, "cheap_model": STRONG}
    executor: Any = FORM.build(**form, fields=[AnswerField(name="verdict")]).executor
    assert executor.cascade == Cascade(cheap=CHEAP, samples=2)
    with pytest.raises(JobError, match="cheap_model: its two answers are compared, and texts are never the same"):
        FORM.build(**form)
    with pytest.raises(JobError, match=r"cheap_model: cascade\.cheap is 'openai/strong'"):
        FORM.build(**same, fields=[AnswerField(name="verdict")])
    agent = {"agent": "codex", "model": "gpt-5-codex"}
    with pytest.raises(JobError, match="cheap_model: it is asked before a model"):
        FORM.build(**form, fields=[AnswerField(name="verdict")], reader=AgentReader.model_validate(agent))


def test_a_learned_rule_goes_to_other_processes_and_changes_no_fingerprint() -> None:
    """The rule belongs to a run, and the stored answer says by which rule it was given."""
    executor = llm(**LEARNED)
    assert executor.cascade is not None
    rule = CascadeRule(accept="agreeing", min_confidence=0.5)
    learned = executor.model_copy(update={"cascade": executor.cascade.model_copy(update={"rule": rule})})
    sent = to_job_file_form(learned)
    assert (sent, sent.fingerprint) == (learned, executor.fingerprint)
    assert executor.fingerprint != llm(samples=2).fingerprint != LLM(model=STRONG).fingerprint
    assert executor.without_cascade.fingerprint == LLM(model=STRONG, params={"max_tokens": 5}).fingerprint
    assert executor.with_model(STRONG).cascade is None


def test_an_answer_of_a_cascade_is_read_back_as_it_was_stored() -> None:
    """Attempts with and without a cascade are told apart."""
    decision = {"is_cheap": True, "why": "agree", "reason": "two samples agree", "cheap_usd": 0.1}
    answer = Answer.model_validate({"value": 1, "attempts": [{}, {"cascade": decision}]})
    again = Answer.model_validate_json(answer.model_dump_json())
    assert again == answer
    assert [isinstance(each, CascadeAttempt) for each in again.attempts] == [False, True]


def test_a_local_cheap_model_and_one_of_another_provider_have_their_own_address(tmp_path: Path) -> None:
    """The address is kept for models of one provider alone."""
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    base: dict[str, Any] = {"model": "openai/strong", "api_base": "http://127.0.0.1:1/v1"}
    for cascade, address in [
        ({"cheap": CHEAP}, "http://127.0.0.1:1/v1"),
        ({"cheap": CHEAP, "api_base": "http://127.0.0.1:2/v1"}, "http://127.0.0.1:2/v1"),
        ({"cheap": "local/small.gguf"}, None),
    ]:
        resolved = LLM.model_validate({**base, "cascade": cascade}).resolve_paths(tmp_path)
        cheap, strong = resolved.fallback_chain
        assert (cheap.api_base, strong.api_base) == (address, "http://127.0.0.1:1/v1")
    assert cheap.model == f"local/{tmp_path / 'small.gguf'}"
    assert Learn().least_items == 59


class Recovered(Checkpoint):
    """Checkpoint of a run that died after both samples of the cheap model."""

    def recovered_replies(self, tier: int) -> list[Reply]:
        """Return an answer for the first position, and for that of the second sample."""
        value: Any = {"verdict": "yes"}
        return [Reply(value=value, model=CHEAP)] if tier in {0, 2} else []


def test_samples_of_a_run_that_died_are_not_asked_again() -> None:
    """The replies of both samples are told apart in the checkpoint, and answer even without any budget."""
    attempt = run_attempt(
        llm(samples=2), VERDICT, Item(key="a", value="a"), limits=Limits(budget_requests=0), checkpoint=Recovered()
    )
    answer = asyncio.run(attempt)
    assert (answer.model, reasons_of(answer)) == (CHEAP, "two samples agree")


class Broken(BaseModel):
    """Output whose own validation is broken."""

    verdict: str

    @model_validator(mode="after")
    def _fail(self) -> Broken:
        raise RuntimeError("a mistake of the user's")


def test_a_broken_validator_is_not_asked_of_the_strong_model_as_well(serve: Callable[[Say], Bill]) -> None:
    """It would be broken there, too."""
    bill = serve(yes)
    brief = Brief(name="broken", instructions="Judge.", output=Broken)
    with pytest.raises(TerminalError, match="a mistake of the user's"):
        asyncio.run(run_attempt(llm(), brief, Item(key="a", value="a"), limits=Limits()))
    assert bill.calls == {"cheap": 1}


def test_a_budget_that_ends_before_the_second_sample_ends_the_attempt() -> None:
    """The strong model costs more, so it is not asked in its place."""

    async def ask(sample: int) -> Any:  # noqa: ANN401 -- a valid answer
        if sample:
            raise BudgetError("limits.budget_usd is 1 USD")
        return {"verdict": "yes"}, Reply(value={"verdict": "yes"})

    cascade = Cascade(cheap=CHEAP, samples=2)
    with pytest.raises(BudgetError):
        asyncio.run(ask_cheap_model(cascade, cascade.current_rule, ask))


def test_texts_agree_if_they_are_the_same() -> None:
    """So do answers that are no objects; the name of a field that an answer has chosen is cut off."""
    cascade = Cascade(cheap=CHEAP, samples=2)
    assert cascade.difference("yes", "yes") is None
    assert cascade.difference("yes", "no") == "in what they say"
    assert cascade.difference([1], [1.0]) is None
    assert len(cascade.difference({"x" * 999: 1}, {}) or "") < 80


def test_a_key_that_both_models_share_brings_no_price_for_the_cheap_one() -> None:
    """The price of a block is the strong model's; a block of the cheap model's own brings its price."""
    price = {"usd_per_million_sent": 20, "usd_per_million_received": 20}
    LLMCredentials.model_validate({"api_key": "sk-strong", **price}).save("of-both")
    LLMCredentials.model_validate({"api_key": "sk-cheap", **dict.fromkeys(price, 1)}).save("of-the-cheap")
    base: dict[str, Any] = {"model": STRONG, "credentials": "of-both"}
    for own, expected in [(None, None), ("of-the-cheap", (1, 1))]:
        cascade = {"cheap": CHEAP, "credentials": own}
        cheap, strong = LLM.model_validate({**base, "cascade": cascade}).resolve_paths(Path()).fallback_chain
        assert (cheap.usd_per_million, strong.usd_per_million) == (expected, (20, 20))
        assert cheap.credentials == (own or "of-both")
