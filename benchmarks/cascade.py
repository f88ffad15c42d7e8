"""What a cascade with a learned rule costs, and how often it misses its target: simulated models of known accuracy.

    python -m benchmarks.cascade [--runs 1000]

A run has 5,000 items, 60 % of them easy. A call of the cheap model costs 1/20 of one of the strong model. Both answer
100 items, from which the rule is learned that decides on the others, with a target agreement of 95 % at a confidence of
95 %; the cheap model has two samples. The rule is learned by the code that runs use, `tasks.pilots.cascade_learning`.

Agreement is with the strong model, so an accuracy here is the probability that an answer of the cheap model is that of
the strong one: 99 % of easy items, and 30 % of hard ones. A wrong answer is one of so many others, each as likely; the
fewer there are, the more often two wrong samples agree. In the last setting hard items have a favourite wrong answer,
and the true agreement of the rule "two samples agree" lies just below the target: there the bound is tested.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from prefect_dispatch.executors.llm.cascade import Cascade, Learn
from prefect_dispatch.models.cascade_decision import CascadeRule, CascadeSignals
from prefect_dispatch.tasks.pilots.cascade_learning import ComparedItem, learn_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

ITEMS, PILOT, EASY = 5_000, 100, 0.6
"""Items of a run, how many of them both models answer, and the share of easy ones."""
PRICE = 1 / 20
"""The price of a call of the cheap model, if one of the strong model costs 1."""
EASY_ACCURACY = 0.99
"""Probability that the cheap model answers an easy item as the strong one does."""


@dataclass(frozen=True)
class Setting:
    """Simulated cheap model: what it says of hard items."""

    name: str
    """The setting in words."""
    accuracy: float
    """Probability of the strong model's answer."""
    others: int
    """Number of wrong answers, each as likely."""
    favourite: float = 0.0
    """Probability of one wrong answer that is more likely than all others."""


SETTINGS = (
    Setting("100 wrong answers", 0.3, 100),
    Setting("20 wrong answers", 0.3, 20),
    Setting("5 wrong answers", 0.3, 5),
    Setting("a favourite wrong answer, true agreement 94.9 %", 0.3, 100, 0.3535),
)
"""The settings; the first is the one of the target."""


COMPARED = {
    (agrees, matches): ComparedItem(CascadeSignals(agrees=agrees), matches=matches)
    for agrees in (False, True)
    for matches in (False, True)
}
"""The four kinds of items: whether the samples agree, and whether the first is the strong model's answer."""


@dataclass(frozen=True)
class Result:
    """Cost and agreement of one simulated run."""

    cost: float
    """Its cost, divided by that of the strong model alone."""
    agreement: float
    """The share of its answers that are the strong model's."""
    has_rule: bool
    """Whether a rule was learned that accepts answers of the cheap model."""


def sample(draw: random.Random, setting: Setting, *, is_easy: bool) -> int:
    """Return an answer of the cheap model; 0 is the strong model's."""
    chance = draw.random()
    if is_easy:
        return 0 if chance < EASY_ACCURACY else draw.randint(1, setting.others)
    if chance < setting.accuracy:
        return 0
    return 1 if chance < setting.accuracy + setting.favourite else draw.randint(1, setting.others)


def simulate(setting: Setting, seed: int) -> Result:
    """Return the result of one run.

    Args:
        setting: What the cheap model says.
        seed: The seed of its draws.
    """
    draw = random.Random(seed)
    cascade, learn = Cascade(cheap="simulated/cheap", samples=2, learn=Learn(items=PILOT)), Learn(items=PILOT)
    items: list[ComparedItem] = []
    for _ in range(ITEMS):
        is_easy = draw.random() < EASY
        first, second = (sample(draw, setting, is_easy=is_easy) for _ in range(2))
        items.append(COMPARED[first == second, first == 0])
    rule = learn_rule(items[:PILOT], cascade, learn).rule
    rest = items[PILOT:]
    accepted = sum(each.signals is not None and each.signals.passes(rule) for each in rest)
    cost = PILOT * (1 + 2 * PRICE) + samples_of(rule) * PRICE * len(rest) + (len(rest) - accepted)
    misses = sum(each.is_miss(rule) for each in rest)
    return Result(cost / ITEMS, 1 - misses / ITEMS, rule.accept != "none")


def samples_of(rule: CascadeRule) -> int:
    """Return how often a rule asks the cheap model."""
    return {"none": 0, "valid": 1, "agreeing": 2}[rule.accept]


def missed(results: Sequence[Result], target: float = 0.95) -> float:
    """Return the share of runs whose agreement is below the target."""
    return fmean(result.agreement < target for result in results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and print a table."""
    parser = argparse.ArgumentParser(description="Cost and agreement of a cascade with a learned rule.")
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args(arguments).runs
    print("| hard items have | cost of the strong model's | agreement | runs with a rule | runs below 95 % |")
    print("|---|---|---|---|---|")
    for setting in SETTINGS:
        results = [simulate(setting, seed) for seed in range(runs)]
        cost, agreement = fmean(each.cost for each in results), fmean(each.agreement for each in results)
        with_rule = fmean(each.has_rule for each in results)
        cells = (f"{cost:.1%}", f"{agreement:.2%}", f"{with_rule:.1%}", f"{missed(results):.1%}")
        print(f"| {setting.name} | {' | '.join(cells)} |".replace("%", " %").replace("  %", " %"))


if __name__ == "__main__":
    main()
