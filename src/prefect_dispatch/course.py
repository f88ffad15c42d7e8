"""What did not go smoothly in a run: how often each thing happened, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect_dispatch.report import Report


class Mishap(NamedTuple):
    """Something that a run went through."""

    what: str
    times: int
    why: str = ""

    def __str__(self) -> str:
        """Return it as a few words."""
        return f"{self.what} {self.times}" + (f" ({self.why})" if self.why else "")


def course(report: Report) -> list[Mishap]:
    """Return what a run went through; nothing if all went smoothly.

    Example:
        >>> from prefect_dispatch.report import Report, Spending
        >>> usage = Spending(reasks=2, retried={"timeout": 1, "connection": 3})
        >>> [str(each) for each in course(Report(status="complete", message="All.", usage=usage, run={"waits": 1}))]
        ['waits for a busy provider 1', 'retries 4 (3 connection, 1 timeout)', 're-asks 2']
    """
    usage, run = report.usage, report.run
    waits: Any = run.get("waits", 0)
    waited: Any = run.get("waited_s", 0)
    damaged: Any = run.get("damaged", 0)
    mishaps = (
        Mishap("waits for a busy provider", waits),
        Mishap("seconds waited, all calls together", round(waited)),
        Mishap("retries", sum(usage.retried.values()), _by_class(usage.retried)),
        Mishap("re-asks", usage.reasks),
        Mishap("escalations to the next model", sum(usage.escalated.values()), _by_class(usage.escalated)),
        Mishap("calls whose cost nobody told", usage.unsettled),
        Mishap("damaged answers in the store, asked again", damaged),
    )
    return [each for each in mishaps if each.times]


def _by_class(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{times} {kind}" for kind, times in sorted(counts.items(), key=lambda each: (-each[1], each[0])))
