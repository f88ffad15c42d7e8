"""When a deployment is due: the example of its flow, what somebody has set since, and what the command line says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import DeploymentScheduleUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from pydantic import ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.prefect_compat import has_next_date

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import DeploymentSchedule

    Given = DeploymentSchedule | DeploymentScheduleCreate | DeploymentScheduleUpdate

_SAMPLE = "0 0 * * *"
_FIELDS = 5


@dataclass(frozen=True)
class Timing:
    """What the command line says of the schedule."""

    cron: str | None = None
    """When it is due; None: as it was."""
    timezone: str | None = None
    """In which time zone; None: as it was."""
    active: bool = False
    """Whether it is to make runs; else it goes on as it was."""

    def __post_init__(self) -> None:
        """Check what was said.

        Raises:
            JobError: If it is no schedule.
        """
        if self.cron is not None and not _is_due(self.cron):
            raise JobError(
                f"--cron {self.cron!r} is no cron expression, or is never due: write five fields (minute, hour, day, "
                "month, day of the week), such as '0 6 * * 1-5'."
            )
        if self.timezone is not None and not (self.timezone and _valid(cron=_SAMPLE, timezone=self.timezone)):
            raise JobError(f"--timezone {self.timezone!r} is no time zone: use an IANA name, such as 'Europe/Berlin'.")

    def over(self, example: DeploymentScheduleCreate | None, before: Sequence[Given]) -> list[DeploymentScheduleUpdate]:
        """Return the schedules that a deployment is to have.

        Args:
            example: That of its flow; None where other runs start its runs.
            before: Those that it has; whatever this doesn't change stays.
        """
        if example is None:
            return [_update(each) for each in before]
        own = next((each for each in before if each.slug == example.slug), None)
        kept = [_update(each) for each in before if each is not own]
        if own is None and self == Timing():
            return kept
        return [*kept, self._changed(own or example, example)]

    def _changed(self, own: Given, example: DeploymentScheduleCreate) -> DeploymentScheduleUpdate:
        update = _update(own, active=self.active or bool(own.active))
        if self.cron is None and self.timezone is None:
            return update
        was: Any = own.schedule if isinstance(own.schedule, CronSchedule) else example.schedule
        cron = was.model_copy(
            update={"cron": self.cron or was.cron, "timezone": self.timezone or was.timezone}  # both are valid
        )
        return update.model_copy(update={"schedule": cron})


def due(schedules: Iterable[Given]) -> str:
    """Return in words when something is due.

    Example:
        >>> due([DeploymentScheduleUpdate(schedule=CronSchedule(cron="0 6 * * *", timezone="UTC"), active=False)])
        "'0 6 * * *' (UTC), not active"
    """
    return "; ".join(f"{_when(each.schedule)}{'' if each.active else ', not active'}" for each in schedules) or "none"


def _when(schedule: object) -> str:
    if isinstance(schedule, CronSchedule):
        return f"{schedule.cron!r} ({schedule.timezone or 'UTC'})"
    return f"every {schedule.interval}" if isinstance(schedule, IntervalSchedule) else "by a recurrence rule"


def _update(each: Given, *, active: bool | None = None) -> DeploymentScheduleUpdate:
    return DeploymentScheduleUpdate(
        schedule=each.schedule,
        active=each.active if active is None else active,
        max_scheduled_runs=each.max_scheduled_runs,
        parameters=each.parameters,
        slug=each.slug,
    )


def _is_due(cron: str) -> bool:
    """Return whether a cron expression has five fields, or a name, and a day that comes."""
    words = cron.split()
    if len(words) != _FIELDS and not (len(words) == 1 and cron.startswith("@")):
        return False
    try:
        return has_next_date(cron)
    except ValueError:  # of pydantic's, or of the parser's, for a day that never comes
        return False


def _valid(**parts: str) -> bool:
    try:
        CronSchedule.model_validate(parts)
    except ValidationError:
        return False
    return True
