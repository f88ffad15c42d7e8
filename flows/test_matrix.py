"""The flow that runs a test suite in many environments, each in a checkout of its own, and compares the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

from pydantic import Field

from prefect_dispatch.command import Command
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.item_variables import variable_of
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.flows.axes import Axes, Axis, Cells, CellVariables, Env, cells, set_variables
from prefect_dispatch.flows.carry_out import Parts
from prefect_dispatch.flows.fields import Concurrency, Line, Texts  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.flows.form_flow import form_flow
from prefect_dispatch.integrators.test_matrix import TestMatrix
from prefect_dispatch.limits import Limits
from prefect_dispatch.models import Brief, Name, Text
from prefect_dispatch.sources import Listed
from prefect_dispatch.tasks.refresh import Refresh  # noqa: TC001 -- Prefect reads the signature
from prefect_dispatch.test_run import TestRun
from prefect_dispatch.workspaces.ports import MOST
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

AGAIN = 75
"""The exit code that means `try again later` (EX_TEMPFAIL); that of a set-up that fails."""
_READY_S = 60
"""Seconds that a service has at least to get ready: 5 attempts in each."""
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
    exit {AGAIN}
  fi
  if [ "$tries" -ge {_READY_S * 5} ]; then
    echo "The service was not ready after {_READY_S} s: $told" >&2
    exit {AGAIN}
  fi
  sleep 0.2
done
"""
_COMMAND = """\
exec /bin/sh -c "$2"
"""
_NOTHING = ":"
"""A line for /bin/sh that does nothing: an argument of a command can't be empty."""
Codes = Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], Field()]
Retries = Annotated[int, Field(ge=0, le=20)]
Ports = Annotated[int, Field(ge=0, le=MOST)]
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
    folder: str = ".",  # noqa: ARG001 -- the flow heeds it
    name: Name = "tests",
    out: Line = "",  # noqa: ARG001 -- the flow heeds it
    refresh: Refresh = False,  # noqa: ARG001, FBT002 -- the flow heeds it
) -> Parts:
    """Run a test suite in many environments, and tell which test passes where.

    Fill in `command` and `axes`. Every value of one axis with every value of the others is an environment: a checkout
    of its own of one commit, in which the command runs with the values in variables, such as ITEM_PYTHON for an axis
    `python`. It passes if its JUnit report and its exit code agree that it does. A result is stored: run again on
    the same commit, only what has none is run, unless `refresh` says so.

    Args:
        command: A line for /bin/sh that runs the tests and writes a JUnit report, in the checkout or in $REPORT_DIR.
        axes: What differs between environments: names, each with its values.
        repo: A folder in the git repository, from the folder of the job.
        base: The commit that is tested: a branch, a tag, or whatever else git takes for one.
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
        out: A folder for the report as files, `junit.xml` among them. Empty: only Prefect keeps it.
        refresh: Run again what has a result: everything, or some environments by name.
    """
    if not report:
        raise JobError("report: there is none; name at least one file that the command writes, such as junit.xml.")
    if ready and not service:
        raise JobError("ready: there is no service to wait for; name one under service, or leave this out.")
    given = cast("Sequence[Axis]", axes)
    parts = cast("Sequence[CellVariables]", env)
    environments = cells(given, cast("Sequence[str]", exclude), cast("Sequence[str]", include))
    environments = set_variables(environments, given, parts)
    names = sorted({name for part in parts for name in part.settings})
    brief = Brief(
        name=name,
        scope="One environment.",
        instructions="Run the tests in a checkout of its own, and tell what came of each of them.",
        output=TestRun,
        command=_command(_Lines(command, setup, service, ready), names, tuple(report), tuple(retry)),
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
    return Parts([brief], Listed(items=tuple(environments)), executor, integrator, limits)


test_matrix = form_flow(_test_matrix, "test-matrix")


class _Lines(NamedTuple):
    """What is run in an environment."""

    command: str
    setup: str
    service: str
    ready: str


def _command(lines: _Lines, names: Sequence[str], report: tuple[str, ...], retry: tuple[int, ...]) -> Command:
    """Return what is run in each environment: the lines are arguments, so none can end another.

    Args:
        lines: What is run.
        names: Variables that an environment may set: each is a field of its item, and so in a variable `ITEM_…`.
        report: Globs of the report files.
        retry: Exit codes that mean: try again.
    """
    setup, service = lines.setup.strip(), lines.service.strip()
    if not setup and not service and not names:
        return Command(run=lines.command, report=report, retry=retry)
    exports = "".join(
        f'[ -z "${{{variable_of(name)}+x}}" ] || export {name}="${{{variable_of(name)}:-}}"\n' for name in names
    )
    script = "".join((exports, _SETUP if setup else "", _SERVICE if service else "", _COMMAND))
    more = (lines.service, lines.ready or _NOTHING) if service else ()
    run = ("/bin/sh", "-c", script, "test_matrix", lines.setup if setup else _NOTHING, lines.command, *more)
    return Command(run=run, report=report, retry=tuple(dict.fromkeys((*retry, AGAIN))))
