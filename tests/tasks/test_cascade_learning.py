"""The learned rule of a cascade: its bound is exact, and the loosest rule that keeps the target is chosen."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cascade as simulation
from prefect_dispatch import LLM, Cascade, Item, Outcome, Reply
from prefect_dispatch.executors.llm.cascade import Learn
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.cascade_decision import CascadeDecision, CascadeRule, CascadeSignals
from prefect_dispatch.models.outcome import Attempt, CascadeAttempt, Usage
from prefect_dispatch.tasks.pilots.cascade_learning import (
    ComparedItem,
    cascade_table,
    choose_sample,
    compared_items,
    learn_rule,
    saving_of,
    upper_bound,
    with_rule,
)
from prefect_dispatch.tasks.work_item import WorkItem
from prefect_dispatch.testing import ScriptedExecutor

LEARN = Learn(items=60, target=0.9, confidence=0.9)
SIGNALS = st.builds(
    CascadeSignals,
    agrees=st.sampled_from([None, True, False]),
    confidence=st.none() | st.floats(0, 1),
)
COMPARED = st.lists(st.builds(ComparedItem, st.none() | SIGNALS, st.booleans()), max_size=120)
CASCADES = st.sampled_from(
    [
        Cascade(cheap="openai/cheap", learn=LEARN),
        Cascade(cheap="openai/cheap", samples=2, learn=LEARN),
        Cascade(cheap="openai/cheap", confidence="sure", learn=LEARN),
        Cascade(cheap="openai/cheap", samples=2, confidence="sure", learn=LEARN),
    ]
)


@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_bound_is_that_of_clopper_and_pearson(trials: int, data: st.DataObject, confidence: float) -> None:
    """At the bound, so few hits or fewer have a probability of 1 - confidence, in exact arithmetic."""
    hits = data.draw(st.integers(0, trials - 1))
    chance = Fraction(upper_bound(hits, trials, confidence))
    terms = (comb(trials, each) * chance**each * (1 - chance) ** (trials - each) for each in range(hits + 1))
    assert float(sum(terms)) == pytest.approx(1 - confidence, abs=1e-9)
    assert chance > Fraction(hits, trials)


@given(CASCADES, SIGNALS)
def test_what_a_rule_accepts_each_looser_one_accepts_too(cascade: Cascade, signals: CascadeSignals) -> None:
    """Which is what the choice of a rule rests on."""
    passed = [signals.passes(rule) for rule in cascade.candidate_rules]
    assert passed == sorted(passed)
    assert not signals.passes(CascadeRule(accept="none"))


@given(CASCADES, COMPARED)
def test_the_loosest_rule_is_chosen_whose_bound_keeps_the_target(
    cascade: Cascade, compared: list[ComparedItem]
) -> None:
    """No stricter one has more misses, no looser one has a bound that keeps it; without one, nothing is accepted."""
    learned = learn_rule(compared, cascade, LEARN)
    rules = cascade.candidate_rules

    def keeps_target(rule: CascadeRule) -> bool:
        misses = sum(each.is_miss(rule) for each in compared)
        return 1 - upper_bound(misses, len(compared), LEARN.confidence) >= LEARN.target

    kept = [rule for rule in rules if keeps_target(rule)]
    assert learned.rule == (kept[-1] if kept else CascadeRule(accept="none"))
    assert rules[: len(kept)] == kept
    assert learned.compared == len(compared)
    if kept:
        assert learned.least_agreement >= LEARN.target
        assert learned.misses <= learned.accepted


@given(COMPARED)
def test_the_order_of_what_was_compared_does_not_matter(compared: list[ComparedItem]) -> None:
    """The rule follows from the set alone."""
    cascade = Cascade(cheap="openai/cheap", samples=2, confidence="sure", learn=LEARN)
    assert learn_rule(compared, cascade, LEARN) == learn_rule(compared[::-1], cascade, LEARN)


@given(st.integers(1, 10_000), st.floats(0.01, 0.995), st.floats(0.5, 0.995))
def test_fewer_items_than_required_prove_no_target(items: int, target: float, confidence: float) -> None:
    """What is refused could never accept an answer, and what is not refused can."""
    least = Learn(items=10_000, target=target, confidence=confidence).least_items
    assert (1 - upper_bound(0, items, confidence) >= target - 1e-9) == (items >= least) or items == least


def work(count: int) -> list[WorkItem]:
    """Return so much work, its fingerprints being hashes."""
    brief = Brief(name="b", instructions="Do.")
    return [WorkItem(brief, Item(key=str(n), value=n), f"{n * 7919 % count:04}") for n in range(count)]


def test_the_sample_is_that_of_the_least_hashes_in_any_order() -> None:
    """What was compared before counts; where no more is left than the sample, there is none."""
    every = work(100)
    sample = choose_sample(every, 10, LEARN)
    assert [each.fingerprint for each in sample] == [f"{n:04}" for n in range(50)]
    assert choose_sample(every[::-1], 10, LEARN) == sample
    assert choose_sample(every, 60, LEARN) == []
    assert choose_sample(sample, 10, LEARN) == []


def attempt(cost: float | None, cheap: float | None, *, is_cheap: bool, part: str = "") -> CascadeAttempt:
    """Return an attempt of a cascade."""
    decision = CascadeDecision(is_cheap=is_cheap, why="differ", reason="", cheap_usd=cheap, matches=False)
    return CascadeAttempt(usage=Usage(cost_usd=cost), cascade=decision, part=part)


def test_the_saving_counts_every_attempt_and_is_unknown_without_a_price() -> None:
    """The strong model alone is priced by the mean of its answers."""
    cheap, strong = attempt(1.0, 1.0, is_cheap=True), attempt(11.0, 1.0, is_cheap=False)
    failed = Attempt(usage=Usage(cost_usd=2.0), error="timeout: it took too long")
    assert saving_of([[cheap], [failed, strong], [Attempt()], []]) == (14.0, 20.0)
    assert saving_of([[cheap]]) is None
    assert saving_of([[strong], [attempt(None, 1.0, is_cheap=True)]]) is None
    assert saving_of([[strong], [attempt(1.0, None, is_cheap=True)]]) is None
    # An answer that was joined from those to parts of an item has a decision for each part, and none as a whole.
    assert compared_items([[strong], [attempt(1.0, 1.0, is_cheap=True, part="1")]]) == [
        ComparedItem(None, matches=False)
    ]


def test_an_executor_without_a_cascade_has_no_rule() -> None:
    """It stays as it is."""
    executor = ScriptedExecutor(lambda _: Reply(value=1))
    assert with_rule(executor, CascadeRule()) is executor
    assert cascade_table([], executor) is None


def test_full_agreement_lets_every_valid_answer_count() -> None:
    """The loosest rule needs no second sample."""
    compared = [ComparedItem(CascadeSignals(agrees=n % 2 == 0), matches=True) for n in range(60)]
    learned = learn_rule(compared, Cascade(cheap="openai/cheap", samples=2, learn=LEARN), LEARN)
    assert (learned.rule, learned.misses, learned.accepted) == (CascadeRule(accept="valid"), 0, 60)


def test_a_table_without_prices_to_compare_names_no_saving() -> None:
    """Models that cost nothing save nothing; an answer that was joined of parts is in no row."""
    executor = LLM(model="openai/strong", cascade=Cascade(cheap="openai/cheap"))
    free = attempt(0.0, 0.0, is_cheap=False)
    parts = attempt(0.0, 0.0, is_cheap=True, part="1")
    outcomes = [
        Outcome(brief="b", item=item, status="succeeded", model="openai/strong", attempts=(each,), fingerprint=item)
        for item, each in (("a", free), ("b", parts))
    ]
    table = cascade_table(outcomes, executor)
    assert table is not None
    assert table.rows == ({"model": "openai/strong", "answers": 1, "why": "two samples of the cheap model differ"},)
    assert "Cost" not in table.note
    assert "saving" not in table.note


def test_the_simulated_cascade_keeps_its_target_at_about_half_the_cost() -> None:
    """At a target of 95 %, with 60 % easy items and a price of 1/20: at most 55 % of the cost, the pilot included."""
    runs = [simulation.simulate(simulation.SETTINGS[0], seed) for seed in range(40)]
    assert sum(each.cost for each in runs) / len(runs) <= 0.55
    assert simulation.missed(runs) == 0
    border = [simulation.simulate(simulation.SETTINGS[-1], seed) for seed in range(40)]
    assert simulation.missed(border) <= 0.1  # two of forty are what the confidence allows
