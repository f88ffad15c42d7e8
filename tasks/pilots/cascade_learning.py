"""Learned rule of a cascade, and the account of who answered.

Both models answer a sample of the items. A rule is chosen by how often it would have let an answer pass that is not the
strong model's, with an exact bound: the agreement of a run is 1 less the share of such answers.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.executors.llm.cascade import cascade_of
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.cascade_decision import REASONS, CascadeRule, CascadeSignals
from prefect_dispatch.models.ledger import CASCADE, Table
from prefect_dispatch.models.outcome import CascadeAttempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.executors.llm.cascade import Cascade, Learn
    from prefect_dispatch.models.cascade_decision import CascadeDecision, Why
    from prefect_dispatch.models.outcome import Attempt, Outcome
    from prefect_dispatch.tasks.work_item import WorkItem

MEASURE = CascadeRule(accept="none", is_measuring=True)
"""The rule of the items that both models answer."""


class ComparedItem(NamedTuple):
    """Item that both models have answered."""

    signals: CascadeSignals | None
    """What was known of the cheap model's answer; None if it had no valid one."""
    matches: bool
    """Whether the answers are the same."""

    def is_miss(self, rule: CascadeRule) -> bool:
        """Return whether a rule would have let an answer pass that is not the strong model's."""
        return self.signals is not None and self.signals.passes(rule) and not self.matches


class LearnedRule(NamedTuple):
    """Rule of a cascade, and what is known of it."""

    rule: CascadeRule
    compared: int
    """Number of items that both models answered."""
    misses: int
    """In how many of them the rule would have let an answer pass that is not the strong model's."""
    accepted: int
    """In how many of them it would have let the cheap model's answer pass."""
    least_agreement: float
    """Lower bound of the agreement with the strong model, at the confidence that was asked for."""


def upper_bound(hits: int, trials: int, confidence: float) -> float:
    """Return the upper bound of a probability, one-sided and exact.

    It is the probability with which so few hits or fewer come only in a share of 1 - confidence of all cases (Clopper
    and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika 26, 1934),
    found by bisection.

    Args:
        hits: How often it happened.
        trials: Out of how many times.
        confidence: The probability with which the bound is not too low.

    Example:
        >>> [round(upper_bound(hits, 100, 0.95), 4) for hits in (0, 1, 2, 100)]
        [0.0295, 0.0466, 0.0616, 1.0]
    """
    if hits >= trials:
        return 1.0
    log_factorials = math.lgamma(trials + 1)
    ways = [log_factorials - math.lgamma(each + 1) - math.lgamma(trials - each + 1) for each in range(hits + 1)]
    low, high = hits / trials, 1.0
    for _ in range(60):
        chance = (low + high) / 2
        terms = (
            math.exp(way + each * math.log(chance) + (trials - each) * math.log1p(-chance))
            for each, way in enumerate(ways)
        )
        low, high = (chance, high) if math.fsum(terms) > 1 - confidence else (low, chance)
    return high


def learn_rule(compared: Sequence[ComparedItem], cascade: Cascade, learn: Learn) -> LearnedRule:
    """Return the loosest rule that keeps the target.

    What a rule accepts, each looser one accepts, too, so the misses only grow from one to the next, in every sample
    and in all items. That makes the first rule whose bound misses the target the last one to look at, and the choice
    as safe as a single bound, however many rules there are: risk-controlling prediction sets (Bates, Angelopoulos,
    Lei, Malik and Jordan, Distribution-free, risk-controlling prediction sets, Journal of the ACM 68, 2021, theorem
    1). The items that are compared must be a random sample of all, as those by a hash are.

    Args:
        compared: The items that both models answered.
        cascade: The options of the cascade.
        learn: The target, and the confidence.
    """
    total = len(compared)
    best = LearnedRule(CascadeRule(accept="none"), total, 0, 0, 1.0)
    for rule in cascade.candidate_rules:
        misses = sum(each.is_miss(rule) for each in compared)
        least = 1 - upper_bound(misses, total, learn.confidence)
        if least < learn.target:
            break
        accepted = sum(each.signals is not None and each.signals.passes(rule) for each in compared)
        best = LearnedRule(rule, total, misses, accepted, least)
    return best


def decision_of(attempts: Sequence[Attempt]) -> CascadeDecision | None:
    """Return who answered by the last of some attempts, and why; None without a cascade, and for a part of an item."""
    last = attempts[-1] if attempts else None
    return last.cascade if isinstance(last, CascadeAttempt) and not last.part else None


def compared_items(attempts: Iterable[Sequence[Attempt]]) -> list[ComparedItem]:
    """Return what was compared in the attempts of some answers, each of other work."""
    decisions = filter(None, map(decision_of, attempts))
    return [ComparedItem(each.signals, each.matches) for each in decisions if each.matches is not None]


def choose_sample(work: Sequence[WorkItem], compared: int, learn: Learn) -> list[WorkItem]:
    """Return the work that both models are to answer; empty if so little is left that no rule would pay.

    It is the first by fingerprint, a hash: so a run that was interrupted goes on with the same.

    Args:
        work: The work to ask that may come first, without equal ones.
        compared: How many items both models have answered before.
        learn: How the rule is learned.
    """
    lacking = max(0, learn.items - compared)
    ordered = sorted(work, key=lambda each: each.fingerprint)
    return ordered[:lacking] if len(ordered) > lacking else []


def with_rule(executor: Executor, rule: CascadeRule) -> Executor:
    """Return an executor whose cascade has a learned rule; its fingerprint is the same."""
    if not isinstance(executor, LLM) or executor.cascade is None:
        return executor
    return executor.model_copy(update={"cascade": executor.cascade.model_copy(update={"rule": rule})})


def learning_cascade(executor: Executor) -> tuple[Cascade, Learn] | None:
    """Return the options of an executor's cascade if its rule is learned; else None."""
    cascade = cascade_of(executor)
    return (cascade, cascade.learn) if cascade and cascade.learn else None


def describe_learned(learned: LearnedRule, learn: Learn) -> str:
    """Return what was learned as a sentence, with the agreement and its interval.

    Example:
        >>> from prefect_dispatch.executors.llm.cascade import Learn
        >>> learned = LearnedRule(CascadeRule(accept="agreeing"), 100, 1, 63, 0.9534)
        >>> describe_learned(learned, Learn()).partition(". ")[2]
        'In them the agreement with the strong model is 99.0 %, and in all items at least 95.3 % (confidence 95 %).'
    """
    start = f"Learned from {learned.compared} items that both models answered: {learned.rule}"
    if learned.rule.accept == "none":
        return f"{start}, as no other rule keeps an agreement of {learn.target:.1%} there.".replace("%", " %")
    agreement = f"In them the agreement with the strong model is {1 - learned.misses / learned.compared:.1%}"
    least = f"and in all items at least {learned.least_agreement:.1%} (confidence {learn.confidence:.0%})"
    return f"{start}. {agreement}, {least}.".replace("%", " %")


def saving_of(attempts: Iterable[Sequence[Attempt]]) -> tuple[float, float] | None:
    """Return what some answers have cost, and what the strong model alone would have by the mean of its answers here.

    Returns:
        Both in US dollars; None where a price is unknown, or the strong model has not answered.
    """
    costs: list[float] = []
    strong: list[float] = []
    for found in attempts:
        if (decision := decision_of(found)) is None:
            continue
        each = [attempt.usage.cost_usd for attempt in found]
        last, cheap = each[-1], decision.cheap_usd
        if None in each or last is None or cheap is None:
            return None
        costs.append(math.fsum(filter(None, each)))
        if not decision.is_cheap:
            strong.append(last - cheap)
    return (math.fsum(costs), fmean(strong) * len(costs)) if strong else None


def cascade_table(outcomes: Sequence[Outcome], executor: Executor) -> Table | None:
    """Return the table of who answered and why; None without a cascade.

    Args:
        outcomes: The outcomes of a run.
        executor: Its executor.
    """
    cascade = cascade_of(executor)
    if cascade is None:
        return None
    # 1. Count the answers by who gave them, and why.
    answered = [each for each in outcomes if each.status == "succeeded"]
    counts: Counter[tuple[str, Why]] = Counter()
    for each in answered:
        if decision := decision_of(each.attempts):
            counts[each.model, decision.why] += 1
    order = list(REASONS)
    rows: list[dict[str, JsonValue]] = [
        {"model": model, "answers": count, "why": REASONS[why]}
        for (model, why), count in sorted(counts.items(), key=lambda pair: (order.index(pair[0][1]), pair[0][0]))
    ]
    # 2. What is known of the agreement, and of the saving; equal items share one answer.
    attempts = [*attempts_by_work(answered).values()]
    by_cheap = sum(decision.is_cheap for found in attempts if (decision := decision_of(found)))
    note = [f"{by_cheap} of {len(attempts)} answers are those of {cascade.cheap!r}."]
    if cascade.learn is None:
        note.append("The agreement with the strong model was not measured: 'learn' does that.")
    elif compared := compared_items(attempts):
        note.append(describe_learned(learn_rule(compared, cascade, cascade.learn), cascade.learn))
    else:
        note.append("Too few items were left to learn a rule from, so the strong model answered.")
    saved = saving_of(attempts)
    if saved is None:
        note.append("The saving is unknown, as a price is, or no answer is the strong model's.")
    elif saved[1]:
        spent, alone = saved
        note.append(
            f"Cost of the answers: {spent:.6f} USD, {spent / alone:.1%} of the {alone:.6f} USD of the strong model "
            "alone (by the mean of its answers here).".replace("%", " %")
        )
    return Table(
        name=CASCADE, title="Who answered: the cheap or the strong model", rows=tuple(rows), note=" ".join(note)
    )


def attempts_by_work(outcomes: Iterable[Outcome]) -> Mapping[str, Sequence[Attempt]]:
    """Return the attempts of some outcomes by fingerprint: equal items have the same."""
    return {each.fingerprint: each.attempts for each in outcomes}
