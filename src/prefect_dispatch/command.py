"""A command: what a program is told to do, and what its exit code means."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from prefect_dispatch.errors import BriefError
from prefect_dispatch.globs import Glob
from prefect_dispatch.strict import SOME, Strict

_Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
_Code = Annotated[int, Field(ge=0, le=255)]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
_Setting = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


class Command(Strict):
    """What is run, the same for every item: an item is only in the environment, or on standard input.

    Example:
        >>> Command(run='wc -w < "$ITEM_VALUE"').ok
        (0,)
        >>> Command(run=["pytest", "-q"], ok=[0, 1], retry=[75]).retry
        (75,)
    """

    run: _Line | Annotated[tuple[_Line, ...], SOME, Field(title="Words")]
    """A line for `/bin/sh`, or a program and its arguments, for which no shell is run. Never a template."""
    stdin: bool = False
    """Whether the item's value is on standard input: text as it is, else as JSON."""
    ok: Annotated[tuple[_Code, ...], SOME] = (0,)
    """The exit codes that mean success."""
    retry: tuple[_Code, ...] = ()
    """The exit codes that mean: try again later."""
    report: tuple[_Line, ...] = ()
    """Globs of the JUnit XML files that it writes, from where it runs; then any exit code is an answer."""
    env: dict[_Variable, _Setting] = Field(default_factory=dict)
    """More variables; what is secret has no place here."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return ("/bin/sh", "-c", self.run) if isinstance(self.run, str) else self.run

    @field_validator("report")
    @classmethod
    def _stays_where_it_runs(cls, report: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in report:
            try:
                leads_to = Glob.parse(pattern).text
            except BriefError as error:
                raise ValueError(str(error)) from None
            if leads_to.startswith(("/", "../")):
                raise ValueError(
                    f"{pattern!r} leads out of where the command runs; write a glob from there, and have the report "
                    "written there, or into $REPORT_DIR"
                )
        return report

    @field_validator("retry")
    @classmethod
    def _never_retries_success(cls, retry: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if 0 in retry:
            msg = "0 means success, and is never tried again"
            raise ValueError(msg)
        if twice := set(retry) & set(info.data.get("ok", ())):
            raise ValueError(f"{min(twice)} stands under 'ok' and under 'retry'; take it out of one of them")
        return retry
