"""Decision of a cascade for one item: which model answered, and why; and the rule that decided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefect_dispatch.models.base import Frozen, Strict

Why = Literal["agree", "confident", "valid", "differ", "unsure", "invalid", "measured", "no_rule"]
"""What decided; see `REASONS`."""
REASONS: dict[Why, str] = {
    "agree": "two samples of the cheap model agree",
    "confident": "the cheap model is confident enough",
    "valid": "the answer of the cheap model is valid",
    "differ": "two samples of the cheap model differ",
    "unsure": "the cheap model is not confident enough",
    "invalid": "the cheap model has no valid answer",
    "measured": "both models were asked, to learn the rule",
    "no_rule": "no rule for answers of the cheap model keeps the target",
}
"""The reasons in words, in the order of a report's table."""


class CascadeRule(Strict):
    """Rule by which answers of the cheap model count."""

    accept: Literal["none", "agreeing", "valid"] = "valid"
    """`valid`: valid answers count; `agreeing`: those with which a second sample agrees; `none`: the strong model is
    asked alone."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """The confidence that an answer must state, too. None: any."""
    is_measuring: bool = False
    """Whether both models are asked and compared: the answer is that of the strong one."""

    def __str__(self) -> str:
        """Return the rule in words.

        Example:
            >>> print(CascadeRule(accept="agreeing", min_confidence=0.8))
            answers of the cheap model count if two samples agree and the confidence is at least 0.8
        """
        if self.accept == "none":
            return "the strong model answers every item"
        conditions = ["two samples agree"] if self.accept == "agreeing" else []
        if self.min_confidence is not None:
            conditions.append(f"the confidence is at least {self.min_confidence:g}")
        return f"answers of the cheap model count if {' and '.join(conditions) or 'they are valid'}"


class CascadeSignals(Frozen):
    """What is known of a valid answer of the cheap model when it is decided whether it counts."""

    agrees: bool | None = None
    """Whether a second sample agrees. None: there was no second sample."""
    confidence: float | None = None
    """The confidence that the answer states, from 0 to 1. None: it states none."""

    def passes(self, rule: CascadeRule) -> bool:
        """Return whether the answer counts by a rule.

        Example:
            >>> CascadeSignals(agrees=True, confidence=0.7).passes(CascadeRule(accept="agreeing", min_confidence=0.8))
            False
        """
        is_accepted = rule.accept == "valid" or (rule.accept == "agreeing" and self.agrees is True)
        return is_accepted and (rule.min_confidence is None or (self.confidence or 0.0) >= rule.min_confidence)


class CascadeDecision(Frozen):
    """Who answered an item, and why."""

    is_cheap: bool
    """Whether the answer is that of the cheap model."""
    why: Why
    """What decided."""
    reason: str
    """The same in a sentence, with the figures or fields that decided."""
    cheap_usd: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """US dollars of the cheap model's part; empty where its price is unknown."""
    signals: CascadeSignals | None = None
    """What was known of the cheap model's answer; empty where it has no valid one, or was not asked."""
    matches: bool | None = None
    """Whether the answers of both models are the same, where both were asked to learn the rule. An item without a valid
    answer of the cheap model does not match. Empty: not compared."""
