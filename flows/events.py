"""What a run tells Prefect's automations: gaps, a budget reached, another model, changes, a failed audit.

An event is small: counts, and the first names, from a report in which secrets are hidden already. Its resource
is the flow run; Prefect adds what belongs to that (flow, deployment, work pool, tags).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from prefect.events import emit_event
from prefect.runtime import flow_run

from prefect_dispatch.inert import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models import Brief
    from prefect_dispatch.report import Report

PREFIX = "prefect-dispatch.run."
NAMED = 10
"""Names that an event has of a kind, at most."""
MOST = 200
"""Characters of a text in an event, at most."""


class Told(NamedTuple):
    """An event."""

    event: str
    """What happened."""
    payload: dict[str, JsonValue]
    """What there is to say of it."""


def tell(report: Report, briefs: Sequence[Brief]) -> None:
    """Send the events of a run that has ended."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
        "prefect.resource.name": str(flow_run.get_name()),
    }
    for each in events(report, briefs):
        emit_event(each.event, resource=resource, payload=each.payload)


def events(report: Report, briefs: Sequence[Brief]) -> Iterator[Told]:
    """Yield what there is to tell of a run.

    Example:
        >>> from prefect_dispatch.ledger import Ref
        >>> from prefect_dispatch.changes import Changes
        >>> from prefect_dispatch.report import Report
        >>> changes = Changes(earlier="found", new=(Ref(brief="terms", item="mit.txt"),))
        >>> report = Report(status="complete", message="1 of 1 answered.", changes=changes)
        >>> [(told.event, told.payload["new"], told.payload["first"]) for told in events(report, [])]
        [('prefect-dispatch.run.changed', 1, ['new: terms/mit.txt'])]
    """
    common: dict[str, JsonValue] = {
        "briefs": [brief.name for brief in briefs[:NAMED]],
        "status": report.status,
        "message": report.message,
        "items": len(report.ledger),
    }
    if report.gaps:
        kinds = Counter(gap.error.kind for gap in report.gaps)
        yield _told(
            "gaps",
            common,
            {"gaps": len(report.gaps), "kinds": dict(sorted(kinds.items()))},
            (f"{gap.brief}/{gap.item} ({gap.error.kind})" for gap in report.gaps),
        )
    stopped = [each for each in (*report.outcomes, *report.asked) if each.error and each.error.kind == "budget"]
    if stopped:
        spent = report.usage
        figures: dict[str, JsonValue] = {
            "skipped": len(stopped),
            "cost_usd": spent.cost_usd,
            "tokens": spent.tokens,
            "requests": spent.requests,
        }
        yield _told("budget-reached", common, figures, (f"{each.brief}/{each.item}" for each in stopped))
    lists = report.changes.lists
    if lists or report.changes.merged:
        counts = {name.replace(" ", "_"): len(refs) for name, refs in lists.items()}
        every = dict.fromkeys(("new", "gone", "changed", "gaps_closed", "gaps_opened"), 0) | counts
        yield _told(
            "changed",
            common,
            {**every, "changes": str(report.changes)},
            (f"{name}: {ref}" for name, refs in lists.items() for ref in refs),
        )
    if other := [each for each in report.models if not each.expected]:
        names = [f"{each.asked} answered as {each.served}" for each in other]
        answers = sum(each.answers for each in other)
        yield _told("other-model", common, {"answers": answers, "models": len(other)}, names)
    if report.violations:
        yield _told("failed-audit", common, {"violations": len(report.violations)}, map(str, report.violations))


def _told(name: str, common: Mapping[str, JsonValue], own: Mapping[str, JsonValue], first: Iterable[str]) -> Told:
    names: list[JsonValue] = [text for text, _ in zip(first, range(NAMED), strict=False)]
    return Told(PREFIX + name, {key: _cut(value) for key, value in {**common, **own, "first": names}.items()})


def _cut(value: JsonValue) -> JsonValue:
    """Return a value whose texts are lines, and not too long."""
    if isinstance(value, dict):
        return {name: _cut(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_cut(part) for part in value]
    if not isinstance(value, str):
        return value
    return plain(value if len(value) <= MOST else f"{value[: MOST - 1]}…")
