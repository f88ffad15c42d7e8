"""Whether an answer that was voted on field by field is still an answer that the briefs ask for."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, cast

from prefect_dispatch.integrators.records.decision import Decision
from prefect_dispatch.integrators.values import exact, get
from prefect_dispatch.integrators.votes.ballots import assembled
from prefect_dispatch.integrators.votes.voting import Verdict, opinion
from prefect_dispatch.ledger import Violation
from prefect_dispatch.outputs import problems, show_output
from prefect_dispatch.references import REFERENCE
from prefect_dispatch.scrub import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.records.rules import Claim
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome
    from prefect_dispatch.outputs import Output

NEAREST = "nearest"
"""The rule of an answer that stands whole, because the one that was voted on breaks the schema."""


def coherent(verdicts: Sequence[Verdict], claims: Sequence[Claim], output: Output | None) -> Sequence[Verdict]:
    """Return verdicts whose answer keeps the schema: as they are or, if they break it, the nearest given answer.

    Args:
        verdicts: How the fields of an item's answer were decided.
        claims: The answers, in order of preference.
        output: What all briefs ask for, if they ask for the same.
    """
    if output is None or not _breaks(output, assembled(v.decision for v in verdicts), [c.value for c in claims]):
        return verdicts

    def nearness(claim: Claim) -> int:
        return sum(
            opinion(get(claim.value, verdict.decision.path)) == opinion(verdict.decision.winner) for verdict in verdicts
        )

    nearest = max(claims, key=nearness)
    backers = [claim for claim in claims if claim.text == nearest.text]
    losing = [claim for claim in claims if claim.text != nearest.text]
    return [Verdict(Decision((), NEAREST, nearest.value, backers, losing, backers[:1]))]


def common_output(briefs: Sequence[Brief]) -> Output | None:
    """Return what all briefs ask for; None if that is several things, text, or a model that isn't loaded."""
    outputs = {show_output(brief.output): brief.output for brief in briefs}
    [output, *more] = outputs.values() or [None]
    loaded = output is not None and output != "text" and not (isinstance(output, str) and REFERENCE.fullmatch(output))
    return output if loaded and not more else None


def misfits(merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief]) -> Iterator[Violation]:
    """Yield each answer of a consensus that isn't what the briefs ask for."""
    output = common_output(briefs)
    said: dict[object, list[JsonValue]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "succeeded":
            said[outcome.item].append(outcome.value)
    for name in ("answers", "undecided") if output is not None else ():
        for at, entry in enumerate(cast("list[JsonValue]", get(merge.value, [name]) or [])):
            value, item = get(entry, ["value"]), get(entry, ["item"])
            if found := _breaks(cast("Output", output), value, said[item]):
                yield Violation(law="schema", where=f"/{name}/{at}/value", message=found[0])


def _breaks(output: Output, value: JsonValue, said: Sequence[JsonValue]) -> list[str]:
    """Return what is wrong with a value; nothing if somebody said it, or if what was said is no better.

    Answers of a pydantic model were validated when they came: its validators need not take their own output again.
    """
    if exact(value) in map(exact, said) or any(problems(output, each)[1] for each in said):
        return []
    try:
        return problems(output, value)[1]
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a model may hold validators of the user's
        return [told(error)]
