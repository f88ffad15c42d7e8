"""Flow that runs a test suite in many environments, and compares the results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic import BeforeValidator, Field, GetPydanticSchema, StringConstraints

from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.command_checks import variable_name
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.flows.runtime.flow_loader import make_on_use
from prefect_dispatch.flows.runtime.form import Form
from prefect_dispatch.flows.runtime.form_fields import Concurrency, Line, Texts  # noqa: TC001 -- the form reads the signature
from prefect_dispatch.flows.runtime.form_layout import FormGroup, FormLayout
from prefect_dispatch.flows.runtime.prepared_job import JobSpec
from prefect_dispatch.integrators.matrix_integrator import TestMatrix
from prefect_dispatch.models.base import NON_EMPTY, Strict, did_you_mean
from prefect_dispatch.models.brief import Brief, Command, Name, Text
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.models.test_run import TestRun
from prefect_dispatch.processes.state_folder import RESERVED
from prefect_dispatch.security.redaction import SECRET_NAME, redact
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.tasks.work_item import Refresh  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.workspaces.ports import MAX_PORTS
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from prefect_dispatch.flows.runtime.form_flow import form_flow

MAX_CELLS = 1_000
"""Maximum number of cells in a matrix."""
_RESERVED = frozenset({"KEY", "VALUE"})
"""Reserved axis names: the variables `ITEM_KEY` and `ITEM_VALUE` hold the whole cell."""


def _axis_value(value: object) -> object:
    """Return a value of an axis as text.

    Raises:
        ValueError: If YAML may have parsed it as something other than the author meant.
    """
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r} {_describe_misreading(value)}")


def _describe_misreading(value: object) -> str:
    """Explain what is wrong with a value that is neither text nor a whole number."""
    if value is None:
        return "is what YAML reads where nothing is written, or null without quotes; write a value, in quotes"
    if isinstance(value, bool):
        return "may not be what was written, as on, yes and true without quotes are all True; put the value in quotes"
    if isinstance(value, (Mapping, Sequence)):
        return "is no text; write one value after the other, in quotes"
    return "may not be what was written, as 3.10 without quotes is 3.1; put the value in quotes"


AxisName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]


_Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f,]+$")
]


AxisValue = Annotated[_Text, BeforeValidator(_axis_value)]


class Axis(Strict):
    """Axis of a matrix: one thing that differs between its cells.

    Example:
        >>> Axis(name="python", values=["3.10", "3.13"]).variable
        'ITEM_PYTHON'
    """

    name: AxisName
    """The name: a letter, then letters, digits, `-` and `_`."""
    values: Annotated[tuple[AxisValue, ...], NON_EMPTY]
    """The values, as text without commas: versions, names, anything that the commands understand."""

    @property
    def variable(self) -> str:
        """The environment variable that holds a cell's value for the commands."""
        return "ITEM_" + re.sub(r"[^A-Z0-9]", "_", self.name.upper())


def _axes_from_mapping(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    named = cast("Mapping[str, object]", given)
    return [{"name": name, "values": values if _is_list(values) else [values]} for name, values in named.items()]


def _is_list(values: object) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)


def _cell_from_mapping(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    return ",".join(f"{name}={_axis_value(value)}" for name, value in cast("Mapping[str, object]", given).items())


_Setting = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}=[^\x00]*$")]


_Axes = Annotated[tuple[Axis, ...], BeforeValidator(_axes_from_mapping), NON_EMPTY]


Axes = Annotated[
    Mapping[str, Sequence[str | int]] | Sequence[Axis | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(_Axes)),
]
"""Axes; a mapping from name to values is taken, too."""
_Cell = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$"),
    BeforeValidator(_cell_from_mapping),
]


Cells = Annotated[Sequence[str | Mapping[str, str | int]], GetPydanticSchema(lambda _, make: make(tuple[_Cell, ...]))]
"""Cells, or parts of them, as `python=3.10,attrs=22.2`; a mapping is taken, too."""


class CellVariables(Strict):
    """Environment variables of some cells.

    Example:
        >>> CellVariables(cells="config=strict", variables=["STRICT=1"]).settings
        {'STRICT': '1'}
    """

    cells: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    """The cells: a part of a cell, as `python=3.10` or `config=*`; `*` means all."""
    variables: Annotated[tuple[_Setting, ...], NON_EMPTY]
    """The variables to set, as `NAME=value`."""

    @property
    def settings(self) -> dict[str, str]:
        """The variables by name."""
        return {name: text for name, _, text in (setting.partition("=") for setting in self.variables)}


def _env_from_mapping(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    return [
        {"cells": part, "variables": [f"{name}={_axis_value(value)}" for name, value in cast("Any", variables).items()]}
        if isinstance(variables, Mapping)
        else {"cells": part, "variables": variables}
        for part, variables in cast("Mapping[str, object]", given).items()
    ]


Env = Annotated[
    Mapping[str, Mapping[str, str | int]] | Sequence[CellVariables | Mapping[str, Any]],
    GetPydanticSchema(lambda _, make: make(Annotated[tuple[CellVariables, ...], BeforeValidator(_env_from_mapping)])),
]
"""Environment variables of some cells; a mapping from cells to variables with their values is taken, too."""


def build_cells(axes: Sequence[Axis], exclude: Sequence[str], include: Sequence[str]) -> list[Item]:
    """Return the cells of a matrix, each under a key such as `python=3.10,attrs=22.2`.

    Args:
        axes: The axes.
        exclude: Parts of cells: a cell that matches all values of a part is left out; values may be globs.
        include: Whole cells to add.

    Raises:
        JobError: If the axes, exclusions or additions contradict each other, or no cell is left.

    Example:
        >>> axes = [Axis(name="python", values=["3.10", "3.13"]), Axis(name="attrs", values=["22.2"])]
        >>> [cell.key for cell in build_cells(axes, ["python=3.10"], ["python=3.14,attrs=main"])]
        ['python=3.13,attrs=22.2', 'python=3.14,attrs=main']
    """
    _require_distinct_axes(axes)
    names = [axis.name for axis in axes]
    if (count := math.prod(len(axis.values) for axis in axes)) > MAX_CELLS:
        raise JobError(
            f"axes: they make {count:,} cells, and a matrix has {MAX_CELLS:,} at most; leave some values out."
        )
    of = {axis.name: axis.values for axis in axes}
    # 1. All combinations of the axes' values.
    every = [dict(zip(names, values, strict=True)) for values in product(*(axis.values for axis in axes))]
    # 2. Without the excluded ones.
    for text in exclude:
        part = _parse_cell(text, names, "exclude")
        rest = [cell for cell in every if not _matches(part, cell, of)]
        if len(rest) == len(every):
            raise JobError(f"exclude: {text!r} means no cell that is there; correct it, or leave it out.")
        every = rest
    # 3. With the added ones.
    for text in include:
        cell = _parse_cell(text, names, "include")
        if missing := [name for name in names if name not in cell]:
            raise JobError(f"include: {text!r} has no {missing[0]!r}; a cell that is added has a value for each axis.")
        cell = {name: cell[name] for name in names}
        if cell in every:
            raise JobError(f"include: {text!r} is a cell already; leave it out.")
        every.append(cell)
    if not every:
        raise JobError("exclude: no cell is left; leave some of it out.")
    return [Item(key=",".join(f"{name}={value}" for name, value in cell.items()), value={**cell}) for cell in every]


def set_variables(cells: Sequence[Item], axes: Sequence[Axis], parts: Sequence[CellVariables]) -> list[Item]:
    """Return cells with their environment variables, each as a field beside the values of the axes.

    Args:
        cells: The cells.
        axes: The axes of the matrix.
        parts: The variables of parts of the matrix; if several set one variable, the last one counts.

    Raises:
        JobError: If a part matches no cell, or a variable can't be set, belongs to an axis, or looks like a secret.

    Example:
        >>> axes = [Axis(name="config", values=["plain", "strict"])]
        >>> parts = [CellVariables(cells="config=strict", variables=["STRICT=1"])]
        >>> [cell.value for cell in set_variables(build_cells(axes, [], []), axes, parts)]
        [{'config': 'plain'}, {'config': 'strict', 'STRICT': '1'}]
    """
    names = [axis.name for axis in axes]
    of = {axis.name: axis.values for axis in axes}
    values: list[dict[str, str]] = [{**cast("dict[str, str]", cell.value)} for cell in cells]
    taken = {axis.variable: f"the axis {axis.name!r}" for axis in axes}
    for part in parts:
        pattern = {} if part.cells == "*" else _parse_cell(part.cells, names, "env")
        hits = [value for value in values if _matches(pattern, value, of)]
        if not hits:
            raise JobError(f"env: {part.cells!r} means no environment that is there; correct it, or leave it out.")
        for name, text in part.settings.items():
            _require_settable(name, text, taken)
            for value in hits:
                value[name] = text
    return [cell.model_copy(update={"value": value}) for cell, value in zip(cells, values, strict=True)]


def _require_settable(name: str, text: str, taken: dict[str, str]) -> None:
    """Check that a variable can be set for a cell.

    Raises:
        JobError: If it can't.
    """
    if RESERVED.fullmatch(name) or name in {"PORT", "PORTS"}:
        raise JobError(f"env: {name!r} is set for each environment anyway; call it something else.")
    if SECRET_NAME.search(name) or redact(text) != text:
        raise JobError(
            f"env: {name!r} looks like a secret, and a job holds none: set it where the run is, and name it under "
            "`pass_env`."
        )
    own = variable_name(name)
    if taken.setdefault(own, name) != name:
        raise JobError(f"env: {name!r} and {taken[own]} would both be in {own}; call one of them something else.")


def _matches(part: Mapping[str, str], cell: Mapping[str, str], of: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a part matches a cell: literally where it names a value of the axis, else as a glob."""
    return all(cell[name] == text if text in of[name] else fnmatchcase(cell[name], text) for name, text in part.items())


def _require_distinct_axes(axes: Sequence[Axis]) -> None:
    """Check that the axes have distinct variables, and each axis distinct values.

    Raises:
        JobError: If not.
    """
    taken = {f"ITEM_{name}": "" for name in _RESERVED}
    for axis in axes:
        if axis.variable in taken:
            why = f"is that of {taken[axis.variable]!r}, too" if taken[axis.variable] else "holds the whole cell"
            raise JobError(f"axes: {axis.name!r} would be in {axis.variable}, which {why}; call it something else.")
        taken[axis.variable] = axis.name
        if twice := next((value for value in axis.values if axis.values.count(value) > 1), None):
            raise JobError(f"axes: {axis.name!r} has {twice!r} twice; leave one out.")


def _parse_cell(text: str, names: Sequence[str], field: str) -> dict[str, str]:
    """Parse a cell, or a part of one, into values by axis.

    Raises:
        JobError: If it can't be parsed, or names an unknown axis.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not sign or not value:
            raise JobError(f"{field}: {text!r} is no cell; write one as 'python=3.10,attrs=22.2'.")
        if name not in names:
            raise JobError(f"{field}: {text!r} has an axis {name!r} that isn't there; {did_you_mean(name, [*names])}")
        if name in found:
            raise JobError(f"{field}: {text!r} has {name!r} twice; leave one out.")
        found[name] = value
    return found


TRY_AGAIN = 75
"""The exit code for `try again later` (EX_TEMPFAIL), which is also that of a failed set-up."""
_READY_S = 60
"""Minimum seconds that a service has to get ready, with 5 attempts in each."""
# The scripts below, and their variable names, enter the fingerprint of a brief: changing them discards stored results.
_SETUP = """\
/bin/sh -c "$1" || { echo "The set-up failed with exit code $?." >&2; exit 75; }
"""


_SERVICE = f"""\
/bin/sh -c "$3" >&2 &
service=$! tries=0
until told=$(/bin/sh -c "$4" 2>&1); do
  tries=$((tries + 1))
  if ! kill -0 "$service" 2>/dev/null; then
    wait "$service"
    echo "The service ended with exit code $? before it was ready." >&2
    exit {TRY_AGAIN}
  fi
  if [ "$tries" -ge {_READY_S * 5} ]; then
    echo "The service was not ready after {_READY_S} s: $told" >&2
    exit {TRY_AGAIN}
  fi
  sleep 0.2
done
"""


_COMMAND = """\
exec /bin/sh -c "$2"
"""


_NOTHING = ":"
"""A no-op line for /bin/sh: an argument of a command can't be empty."""
Codes = Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field()]


Retries = Annotated[int, Field(ge=0, le=20)]


Ports = Annotated[int, Field(ge=0, le=MAX_PORTS)]


Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _test_matrix(  # noqa: PLR0913, PLR0917 -- the fields of a form
    command: Text,
    axes: Axes,
    repo: Line = ".",
    base: Line = "HEAD",
    setup: Line = "",
    report: Texts = ("junit.xml",),
    exclude: Cells = (),
    include: Cells = (),
    required: Texts = (),
    on_red: Literal["fail", "report"] = "fail",
    retry: Codes = (),
    retries: Retries | None = None,
    env: Env = (),
    service: Line = "",
    ready: Line = "",
    ports: Ports = 0,
    time_limit_s: Seconds = 3600.0,
    concurrency: Concurrency = 4,
    pass_env: Texts = (),
    keep: Literal["never", "failed"] = "never",
    folder: str = ".",  # noqa: ARG001 -- the flow reads it
    name: Name = "tests",
    out: Line = "",  # noqa: ARG001 -- the flow reads it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow reads it
) -> JobSpec:
    """Run a test suite in many environments, and report which test passes where.

    Fill in `command` and `axes`. Every value of one axis with every value of the others is an environment: a checkout
    of its own of one commit, in which the command runs with the values in variables, such as ITEM_PYTHON for an axis
    `python`. It passes if its JUnit report and its exit code agree that it does. A result is stored: run again on
    the same commit, only what has none is run, unless `refresh` says so.

    Args:
        command: A line for /bin/sh that runs the tests and writes a JUnit report, in the checkout or in $REPORT_DIR.
        axes: What differs between environments: names, each with its values.
        repo: A folder in the git repository, from the folder of the job.
        base: The commit that is tested: a branch, a tag, or any other name of a commit that git knows.
        setup: A line for /bin/sh that is run first in each environment, such as one that installs. Empty: none.
        report: Globs of the report's files, in the checkout and in $REPORT_DIR.
        exclude: Environments that are left out, such as python=3.10 or python=3.*,attrs=main.
        include: Environments that are added, each with a value for every axis.
        required: Globs of the environments that have to pass, such as python=3.13,*. Empty: all.
        on_red: What the run does if one of them doesn't pass: it fails, or it completes and reports it.
        retry: Exit codes of the command that mean: try again. A set-up that fails is tried again anyway.
        retries: How often an environment is tried again; with a number, also where its time is over. Empty: twice, but
            a run whose time is over is not tried again, as a test that hangs mostly hangs again.
        env: Variables of some environments, such as MODE=strict for config=strict; nothing secret.
        service: A line for /bin/sh that is run in the background while the command runs, such as a server that it
            tests. It is ended with the environment.
        ready: A line for /bin/sh that succeeds once the service can be used; the command waits for it.
        ports: How many free ports an environment has for itself: $PORT is the first of them, $PORTS are all.
        time_limit_s: Seconds after which an environment is ended, set-up included.
        concurrency: How many environments run at once.
        pass_env: Variables of the worker that commands get to see, such as UV_CACHE_DIR.
        keep: Whether the checkout of an environment without a result stays to be looked at.
        folder: The folder that relative paths are looked up in, where the flow runs.
        name: What the tests are called in the report: small letters, digits and hyphens.
        out: A folder or a URL for the report as files, `junit.xml` among them. Empty: only Prefect keeps it.
        refresh: Run again what has a result: everything, or some environments by name.
    """
    if not report:
        raise JobError("report: there is none; name at least one file that the command writes, such as junit.xml.")
    if ready and not service:
        raise JobError("ready: there is no service to wait for; name one under `service`, or leave this out.")
    # The parameters are validated by Prefect or by the model of a job file, so they have the types of the validators.
    all_axes = cast("Sequence[Axis]", axes)
    parts = cast("Sequence[CellVariables]", env)
    environments = build_cells(all_axes, cast("Sequence[str]", exclude), cast("Sequence[str]", include))
    environments = set_variables(environments, all_axes, parts)
    names = sorted({name for part in parts for name in part.settings})
    brief = Brief(
        name=name,
        scope="One environment.",
        instructions="Run the tests in a checkout of its own, and tell what came of each of them.",
        output=TestRun,
        command=_build_command(_ShellLines(command, setup, service, ready), names, tuple(report), tuple(retry)),
    )
    workspace = Workspace(repo=repo or ".", base=base or "HEAD", keep=keep, ports=ports)
    limits = Limits(
        concurrency=concurrency,
        timeout_s=time_limit_s,
        retries=Limits().retries if retries is None else retries,
        retry_timeouts=retries is not None,
    )
    integrator = TestMatrix(required=tuple(required) or "all", on_red=on_red)
    executor = Shell(workspace=workspace, pass_env=tuple(pass_env))
    return JobSpec([brief], Listed(items=tuple(environments)), executor, integrator, limits)


LAYOUT = FormLayout(
    labels={
        "command": "Test command",
        "axes": "Axes",
        "repo": "Repository",
        "base": "Commit",
        "setup": "Setup command",
        "folder": "Folder",
        "name": "Name",
    },
    groups={
        "environments": FormGroup(
            "Environments",
            "Environments to leave out or to add, their variables, and which of them have to pass.",
            {
                "exclude": "Leave out",
                "include": "Add",
                "env": "Variables",
                "required": "Must pass",
                "on_red": "If one does not pass",
            },
        ),
        "limits": FormGroup(
            "Limits",
            "How many environments run at once, how long, and what is tried again.",
            {
                "concurrency": "Concurrency",
                "time_limit_s": "Time limit in seconds",
                "retries": "Retries",
                "retry": "Exit codes to retry",
            },
        ),
        "results": FormGroup(
            "Results",
            "The JUnit files that the command writes, and a folder for files of the report.",
            {"report": "JUnit files", "out": "Report folder"},
        ),
        "advanced": FormGroup(
            "Advanced",
            "A service beside the tests, variables of the worker, checkouts, and stored results.",
            {
                "service": "Service command",
                "ready": "Ready command",
                "ports": "Free ports",
                "pass_env": "Variables to pass on",
                "keep": "Keep checkouts",
                "refresh": "Run again",
            },
        ),
    },
)


FORM = Form(_test_matrix, LAYOUT)

if TYPE_CHECKING:
    test_matrix = form_flow(FORM)
else:
    __getattr__ = make_on_use(FORM)


class _ShellLines(NamedTuple):
    """The lines for /bin/sh that run in an environment."""

    command: str
    setup: str
    service: str
    ready: str


def _build_command(
    lines: _ShellLines, names: Sequence[str], report: tuple[str, ...], retry: tuple[int, ...]
) -> Command:
    """Return the command of each environment: the lines are arguments, so that none can break out into another.

    Args:
        lines: The lines to run.
        names: Variables that an environment may set: each is a field of its item, and so in a variable `ITEM_…`.
        report: Globs of the report files.
        retry: Exit codes that mean: try again.
    """
    setup, service = lines.setup.strip(), lines.service.strip()
    if not setup and not service and not names:
        return Command(run=lines.command, report=report, retry=retry)
    # A variable is exported only in environments that set it: `${NAME+x}` is empty for an unset one.
    exports = "".join(
        f'[ -z "${{{variable_name(name)}+x}}" ] || export {name}="${{{variable_name(name)}:-}}"\n' for name in names
    )
    script = "".join((exports, _SETUP if setup else "", _SERVICE if service else "", _COMMAND))
    more = (lines.service, lines.ready or _NOTHING) if service else ()
    run = ("/bin/sh", "-c", script, "test_matrix", lines.setup if setup else _NOTHING, lines.command, *more)
    return Command(run=run, report=report, retry=tuple(dict.fromkeys((*retry, TRY_AGAIN))))
