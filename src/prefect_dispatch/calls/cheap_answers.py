"""Cascade of one item: the cheap model is asked first, and its signals decide whether its answer counts.

The attempt asks the strong model, the next of the fallback chain, where there is no answer here that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.errors import BrokenCheckError, BudgetError, ExecutorError
from prefect_dispatch.models.cascade_decision import CascadeDecision, CascadeRule, CascadeSignals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Reply
    from prefect_dispatch.executors.llm.cascade import Cascade

    ValidAnswer = tuple[JsonValue, Reply]


async def ask_cheap_model(
    cascade: Cascade, rule: CascadeRule, ask: Callable[[int], Awaitable[ValidAnswer]]
) -> tuple[CascadeDecision, ValidAnswer]:
    """Ask the cheap model as often as its rule needs, and decide whether its answer counts.

    Args:
        cascade: The options of the cascade.
        rule: The rule; one that accepts something, or measures.
        ask: Returns a valid answer of the cheap model; its argument is the number of the sample, from 0.

    Returns:
        The decision, and the first answer.

    Raises:
        ExecutorError: If there is no valid first answer.
    """
    value, reply = await ask(0)
    confidence = cascade.stated_confidence(value)
    signals = CascadeSignals(confidence=confidence)
    # 1. An answer that is too unsure needs no second sample.
    least = rule.min_confidence
    if least is not None and (confidence or 0.0) < least:
        stated = "states no confidence" if confidence is None else f"has a confidence of {confidence:g}"
        reason = f"the cheap model {stated}, and at least {least:g} is needed"
        return CascadeDecision(is_cheap=False, why="unsure", reason=reason, signals=signals), (value, reply)
    # 2. The second sample.
    difference = None
    if cascade.samples > 1 and (rule.is_measuring or rule.accept == "agreeing"):
        try:
            difference = cascade.difference(value, (await ask(1))[0])
        except (BudgetError, BrokenCheckError):
            raise
        except ExecutorError as error:
            difference = f"as the second is no valid answer ({error.kind})"
        signals = CascadeSignals(agrees=difference is None, confidence=confidence)
    # 3. Decide. While a rule is learned, the strong model is asked in any case.
    if rule.is_measuring:
        reason = "both models were asked, to learn the rule"
        return CascadeDecision(is_cheap=False, why="measured", reason=reason, signals=signals), (value, reply)
    if difference is not None:
        reason = f"two samples of the cheap model differ {difference}"
        return CascadeDecision(is_cheap=False, why="differ", reason=reason, signals=signals), (value, reply)
    return _accept(rule, signals), (value, reply)


def _accept(rule: CascadeRule, signals: CascadeSignals) -> CascadeDecision:
    """Return the decision for an answer that meets every condition of a rule."""
    stated = "" if rule.min_confidence is None else f"its confidence is {signals.confidence or 0.0:g}"
    if signals.agrees:
        reason = "two samples agree" + (f", and {stated}" if stated else "")
        return CascadeDecision(is_cheap=True, why="agree", reason=reason, signals=signals)
    if stated:
        return CascadeDecision(is_cheap=True, why="confident", reason=stated, signals=signals)
    return CascadeDecision(is_cheap=True, why="valid", reason="its answer is valid", signals=signals)


def without_valid_answer(rule: CascadeRule, error: ExecutorError) -> CascadeDecision:
    """Return the decision for an item to which the cheap model has no valid answer.

    Args:
        rule: The rule.
        error: Why there is none.
    """
    if rule.is_measuring:
        reason = f"both models were asked, to learn the rule, and the cheap model has no valid answer ({error.kind})"
        return CascadeDecision(is_cheap=False, why="measured", reason=reason)
    reason = f"the cheap model has no valid answer ({error.kind})"
    return CascadeDecision(is_cheap=False, why="invalid", reason=reason)
