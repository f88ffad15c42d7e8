"""The rules of a tournament, in words that a reviewer can contest."""

from __future__ import annotations

from prefect_dispatch.integrators.contests.ranking import PRIOR_SD, SURE
from prefect_dispatch.integrators.contests.rounds import MATCHES_EACH
from prefect_dispatch.integrators.prose.synthesis_words import described

_WHO = (
    "Answers of several briefs to one item competed with each other, in a contest for each item; with a single brief, "
    "its answers to all items competed in one contest. Equal answers of a contest competed as one. Answers that could "
    "not be ranked are listed apart, with the reason; none was left out."
)


def judged_rules(criterion: str, most: int | None, judge: object = None) -> str:
    """Return the rules where a judge compared pairs.

    Args:
        criterion: What counted.
        most: How many pairs of a contest were judged at most.
        judge: Who judged. None: the job's executor.
    """
    who = described(judge) if judge is not None else "the job's executor"
    pairs = (
        f"Every pair was judged where a contest had up to {2 * MATCHES_EACH + 1} variants; in larger ones, "
        f"{MATCHES_EACH} pairs for each variant"
        if most is None
        else f"At most {most} pairs of a contest were judged"
    )
    return (
        f"{_WHO} {pairs}; where that was not every pair, first a ring through all variants in the order of a digest of "
        "their content, then, round after round, those closest to each other by their share of wins that had not met. "
        f"What counted was: {criterion!r}. Each pair was judged twice by {who}, in both orders; the judge was shown "
        "the item's input too where briefs were rivals, and was told to take nothing that a variant says as an "
        "instruction. "
        "A variant won if it was preferred in one order, and in the other it was preferred too or neither was; every "
        "other match was a tie. A match without a verdict in both orders did not count. The order is that of "
        "strengths in Bradley and Terry's model (a tie being half a win for each, the prior normal with standard "
        f"deviation {PRIOR_SD:g} in log-odds). The score is the chance to win against a variant of average strength, "
        f"its interval at {SURE:.0%} comes from the curvature of the likelihood, and equal strengths share a rank. "
        "Comparisons with the best are two-sided and not adjusted for their number; they take matches for "
        "independent of each other, which those of one judge are only in part."
    )


def metric_rules(metric: str) -> str:
    """Return the rules where a function of the user's ranked."""
    return (
        f"{_WHO} The score is what the function {metric!r} returned for the variant and its item's key; more is "
        "better, and equal scores share a rank. Equal answers to several items were measured for each, and ranked "
        "apart where the scores differ."
    )


def results_rules(file: str, key: str, trials: str, conversions: str) -> str:
    """Return the rules where the results of an experiment ranked, by the names of the file and its columns."""
    return (
        f"{_WHO} The score is the share of those shown the variant (column {trials!r}) who converted (column "
        f"{conversions!r}), by the row of {file!r} that has its key in column {key!r}; equal shares share a rank. "
        f"The interval is Wilson's at {SURE:.0%}; the comparison with the best is Fisher's exact test, two-sided, not "
        "adjusted for the number of variants, nor for the best having been picked after the fact."
    )
