"""The last step of a run that has not failed, and has nothing to decide: the value is put where it is to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.flows.review import is_undecided
from prefect_dispatch.flows.settle import fallen_short
from prefect_dispatch.integrators.base import Delivering
from prefect_dispatch.scrub import scrub, told

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch.integrators.base import AnyMerger
    from prefect_dispatch.report import Report


def delivered(report: Report, integrator: AnyMerger, folder: Path) -> Report:
    """Return the report of a run whose merged value was put where it is to be, if that is anywhere.

    Args:
        report: The report; of a run that failed, or whose review isn't over, nothing is delivered.
        integrator: Who merged.
        folder: The folder in which relative paths start.
    """
    if report.status == "failed" or is_undecided(report) or report.value is None:
        return report
    if not isinstance(integrator, Delivering):
        return report
    try:
        done, shortfall = integrator.deliver(report.value, folder)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- an integrator may be anybody's code, and the value is in the report
        return fallen_short(report, f"The merged value was not delivered: {told(error)}")
    if done:
        report = report.model_copy(update={"message": f"{report.message} {scrub(done)}"})
    return fallen_short(report, scrub(shortfall)) if shortfall else report
