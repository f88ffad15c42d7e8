"""Deployments, registered with Prefect: everything is looked at before anything is written."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.deployments.runner import DeploymentApplyError
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from prefect_dispatch.blocks import DispatchProfile, LLMCredentials
from prefect_dispatch.deployments.building import origin
from prefect_dispatch.deployments.code_source import LOCAL
from prefect_dispatch.deployments.timing import due
from prefect_dispatch.errors import JobError
from prefect_dispatch.inert import plain
from prefect_dispatch.scrub import scrub
from prefect_dispatch.settings import settings
from prefect_dispatch.strict import nearest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_dispatch.deployments.building import Wanted
    from prefect_dispatch.deployments.code_source import CodeSource
    from prefect_dispatch.deployments.timing import Timing

POOL_TYPE = "process"
LOOK_S = 1.0
"""Seconds between two looks at a server that does not answer yet."""
_STARTING = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
MAX_SAID = 300
"""Characters of what Prefect says that are shown."""


@dataclass(frozen=True)
class Registered:
    """A deployment that stands in Prefect."""

    name: str
    """Flow and name, as Prefect's commands take them."""
    due: str
    """When it is due."""
    url: str | None
    """Its page in Prefect's UI, where there is one."""
    paused: bool = False
    """Whether somebody has paused it: then its schedules make no runs."""
    is_inner: bool = False
    """Whether other runs start its runs, and people don't."""


@dataclass(frozen=True)
class Pool:
    """The work pool that deployments are for."""

    name: str
    """Its name."""
    made: bool
    """Whether it was made just now."""
    kind: str
    """Its type."""


def register(
    deployments: Sequence[Wanted], timing: Timing, *, work_pool: str | None = None, source: CodeSource = LOCAL
) -> tuple[Pool, list[Registered]]:
    """Register deployments for the workers of a pool.

    Args:
        deployments: What is to be registered; what is there already is brought up to date.
        timing: What is said of their schedules.
        work_pool: The pool; by default Prefect's default, else one of our own, which is made if it isn't there.
        source: Where runs find the folders of jobs.

    Raises:
        JobError: If the pool or a block isn't there, the pool has no such job variable, or a name belongs to another
            job; nothing was registered.
    """
    with prefect_client() as client:
        before = [_before(client, each) for each in deployments]
        _require_block(client, source)
        pool = _pool(client, work_pool, deployments[0].ready.work_pool.name, source)
        _register_blocks()
        registered: list[Registered] = []
        for each, was in zip(deployments, before, strict=True):
            paused = was is not None and was.paused and was.work_pool_name is not None  # a served one pauses as it ends
            each.made.work_pool_name = pool.name
            each.made.storage = source.repository
            # What other people have set stays, as long as the deployment stays in its pool.
            kept = was.job_variables if was is not None and was.work_pool_name == pool.name else {}
            each.made.job_variables = {**kept, **source.job_variables}
            registered.append(_register(each, was, timing, paused=paused))
        return pool, registered


def register_served(deployments: Sequence[Wanted], timing: Timing) -> list[Registered]:
    """Register deployments that this process will serve.

    Args:
        deployments: What is to be registered; afterwards each holds the schedules that it has.
        timing: What is said of their schedules.

    Raises:
        JobError: If a name belongs to another job; nothing was registered.
    """
    with prefect_client() as client:
        before = [_before(client, each) for each in deployments]
        _register_blocks()
        registered: list[Registered] = []
        for each, was in zip(deployments, before, strict=True):
            each.made.work_pool_name = None  # said, so that it leaves the pool it was in
            registered.append(_register(each, was, timing, paused=False))
        return registered


def _register(each: Wanted, was: DeploymentResponse | None, timing: Timing, *, paused: bool) -> Registered:
    example = next((timed.schedule() for timed in each.ready.schedules), None)
    before = [example] if was is None and example else was.schedules if was else []
    schedules = timing.over(example, before)
    each.made.schedules = [
        DeploymentScheduleCreate.model_validate(one.model_dump(exclude_none=True)) if was is None else one
        for one in schedules
    ]
    each.made.paused = paused
    made = cast("UUID", each.made.apply())  # a coroutine where a loop runs, and none does here
    ui = get_current_settings().ui_url
    url = f"{ui}/deployments/deployment/{made}" if ui else None
    return Registered(each.name, due(schedules), url, paused, each.ready.is_inner)


def _before(client: SyncPrefectClient, each: Wanted) -> DeploymentResponse | None:
    """Return the deployment that has the name already, if one does.

    Raises:
        JobError: If it is that of another job.
    """
    try:
        was = client.read_deployment_by_name(each.name)
    except ObjectNotFound:
        return None
    theirs, own = origin(was.description), origin(each.made.description)
    if theirs == own or theirs in each.origins:
        return was
    whose = f"that of another job, {theirs!r}" if theirs else "not made from a job file"
    way = (
        "call this one otherwise with --name (one job at a time), or delete the other"
        if own
        else "to have the ready flow's in its place, delete it"
    )
    raise JobError(
        f"The deployment {each.name!r} is there already, and {whose}: {way}: prefect deployment delete {each.name!r}"
    )


def _pool(client: SyncPrefectClient, given: str | None, own: str, source: CodeSource) -> Pool:
    """Return the pool that is meant; only our own is made where it isn't there, as another may be misspelt.

    Raises:
        JobError: If there is no such pool, or its jobs have no such variable.
    """
    name = given or get_current_settings().deployments.default_work_pool_name or own
    try:
        pool = client.read_work_pool(name)
        _require_variables(pool.base_job_template, name, pool.type, source)
        return Pool(name, made=False, kind=pool.type)
    except ObjectNotFound:
        if name != own:
            said = "--work-pool" if given else "PREFECT_DEFAULT_WORK_POOL_NAME"
            raise JobError(
                f"{said} {name!r}: there is no such work pool. Make it (prefect work-pool create {name!r} --type "
                f"{POOL_TYPE}), or leave --work-pool out: {own!r} is made where it isn't there."
            ) from None
    _require_variables({}, name, POOL_TYPE, source)
    client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE))
    return Pool(name, made=True, kind=POOL_TYPE)


def _require_variables(template: dict[str, Any], name: str, kind: str, source: CodeSource) -> None:
    """Check that the jobs of a pool have the variables that are set.

    A pool has no template until its first worker has started. That of a process pool is known all the same.

    Raises:
        JobError: If not.
    """
    if not template and kind == POOL_TYPE:
        template = ProcessWorker.get_default_base_job_template()
    known: dict[str, Any] = template.get("variables", {}).get("properties", {})
    for variable in source.job_variables if known else ():
        if variable not in known:
            said = "--image" if variable == "image" else f"--job-variable {variable}"
            raise JobError(
                f"{said}: the jobs of the work pool {name!r}, of type {kind}, have no {variable!r}; "
                f"{nearest(variable, list(known))}"
            )


def _require_block(client: SyncPrefectClient, source: CodeSource) -> None:
    """Check that the block is there with which workers clone a repository.

    Raises:
        JobError: If not.
    """
    block = source.repository.block if source.repository else None
    if block is None:
        return
    kind, _, name = block.partition("/")
    try:
        client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise JobError(
            f"--git-credentials {block!r}: there is no such block: save one in Prefect's UI under Blocks, a Secret "
            "with the token, say, as secret/NAME."
        ) from None


def _register_blocks() -> None:
    """Register the types of the blocks that forms offer, as `prefect block register` does; again it changes nothing."""
    for block in (LLMCredentials, DispatchProfile):
        with suppress(PrefectHTTPStatusError):  # a user who may deploy need not be allowed to do this
            block.register_type_and_schema()


@contextmanager
def prefect_client() -> Generator[SyncPrefectClient]:
    """Give a client of Prefect's API, once that answers.

    Raises:
        JobError: If the API can't be reached, or refuses us.
    """
    url = scrub(get_current_settings().api.url or "")
    try:
        with get_client(sync_client=True) as client:
            if url:  # else Prefect has started a server for this process, and waited for it
                _wait_for_server(client, url)
            yield client
    except httpx.TransportError as error:
        raise JobError(
            f"Prefect's API at {url} can't be reached ({error}): start it with `prefect server start`, or set "
            "PREFECT_API_URL."
        ) from None
    except PrefectHTTPStatusError as error:
        raise JobError(_refusal(url, error.response)) from None
    except DeploymentApplyError as error:
        raise JobError(f"Prefect refuses the deployment: {_short(str(error))}") from None


def _wait_for_server(client: SyncPrefectClient, url: str) -> None:
    """Wait until a server that is still starting answers: `prefect server start --background` returns before.

    What comes after it tells of one that does not answer in time.
    """
    wait_s = settings().server_wait_s
    error = client.api_healthcheck()
    if not wait_s or not _is_starting(error):
        return
    why = _short(scrub(str(error)))
    sys.stderr.write(f"Prefect's API at {url} does not answer yet ({why}): waiting up to {wait_s:g} s for it.\n")
    sys.stderr.flush()
    end = time.monotonic() + wait_s
    while time.monotonic() < end and _is_starting(client.api_healthcheck()):
        time.sleep(LOOK_S)


def _is_starting(error: Exception | None) -> bool:
    """Say whether an error may be that of a server that is starting, or of a proxy before one."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _STARTING
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _refusal(url: str, response: httpx.Response) -> str:
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        return (
            f"Prefect's API at {url} refuses us: set PREFECT_API_AUTH_STRING to what the server has as "
            "PREFECT_SERVER_API_AUTH_STRING; for Prefect Cloud, PREFECT_API_KEY."
        )
    try:
        said: dict[str, object] = response.json()
    except ValueError:
        said = {}
    why = said.get("detail") or said.get("exception_detail") or response.reason_phrase
    return f"Prefect's API at {url} refuses it ({response.status_code}): {_short(why)}"


def _short(said: object) -> str:
    text = plain(str(said))
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}…"
