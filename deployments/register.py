"""Registration of deployments with Prefect, for workers or to be served by this process.

Everything is checked before anything is written. Prefect's own `serve` ends when the API has failed a few times in a
row. Here it is restarted with backoff, up to the maximum length of an outage: a server that restarts, or is too busy
for a while, must not stop the schedules.
"""

from __future__ import annotations

import signal
import socket
import ssl
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import httpx
from prefect import serve as serve_deployments
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.deployments.runner import DeploymentApplyError
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from prefect_dispatch.blocks import DispatchBudget, DispatchProfile
from prefect_dispatch.deployments.code_source import LOCAL
from prefect_dispatch.deployments.specs import ScheduleOverride, describe_schedules, job_file_of, nest_parameters
from prefect_dispatch.errors import DispatchError, JobError
from prefect_dispatch.executors.llm.credentials_block import LLMCredentials
from prefect_dispatch.models.base import did_you_mean
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.security.redaction import redact, safe_message
from prefect_dispatch.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

    from prefect_dispatch.deployments.code_source import CodeSource
    from prefect_dispatch.deployments.specs import PlannedDeployment


POOL_TYPE = "process"


POLL_S = 1.0
"""Seconds between two health checks of a server that does not answer yet."""
_STARTING_CODES = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})


MAX_MESSAGE = 300
"""Maximum characters of an error message of Prefect's that are shown."""


@dataclass(frozen=True)
class RegisteredDeployment:
    """Deployment that is registered with Prefect."""

    name: str
    """Flow and name, as Prefect's commands take them."""
    schedule: str
    """Its schedules, in words."""
    url: str | None
    """Its page in Prefect's UI, where there is one."""
    paused: bool = False
    """Whether it is paused: then its schedules create no runs."""
    is_inner: bool = False
    """Whether its runs are started by other runs, and not by people."""


@dataclass(frozen=True)
class Pool:
    """Work pool of the deployments."""

    name: str
    """Its name."""
    is_new: bool
    """Whether it was created just now."""
    kind: str
    """Its type."""


def register(
    deployments: Sequence[PlannedDeployment],
    timing: ScheduleOverride,
    *,
    work_pool: str | None = None,
    source: CodeSource = LOCAL,
) -> tuple[Pool, list[RegisteredDeployment]]:
    """Register deployments for the workers of a pool.

    Args:
        deployments: The deployments; existing ones are updated.
        timing: The schedule options of the command line.
        work_pool: The pool; by default Prefect's default, else one of our own, which is created if it is missing.
        source: Where runs find the folders of jobs.

    Raises:
        JobError: If the pool or a block doesn't exist, the pool has no such job variable, or a name belongs to another
            job; nothing was registered.
    """
    with prefect_client() as client:
        # 1. Check everything.
        before = [_find_deployment(client, each) for each in deployments]
        _require_block(client, source)
        pool = _resolve_pool(client, work_pool, deployments[0].spec.work_pool["name"], source)
        # 2. Write.
        _register_blocks()
        registered: list[RegisteredDeployment] = []
        for each, existing in zip(deployments, before, strict=True):
            # A served deployment has no pool, and is paused when its process ends: that was no user's decision.
            paused = existing is not None and existing.paused and existing.work_pool_name is not None
            each.deployment.work_pool_name = pool.name
            each.deployment.storage = source.repository
            # Job variables that others have set stay, as long as the deployment stays in its pool.
            kept = existing.job_variables if existing is not None and existing.work_pool_name == pool.name else {}
            each.deployment.job_variables = {**kept, **source.job_variables}
            registered.append(_register(each, existing, timing, paused=paused))
        return pool, registered


def register_served(deployments: Sequence[PlannedDeployment], timing: ScheduleOverride) -> list[RegisteredDeployment]:
    """Register deployments that this process will serve.

    Args:
        deployments: The deployments; afterwards each holds its schedules.
        timing: The schedule options of the command line.

    Raises:
        JobError: If a name belongs to another job; nothing was registered.
    """
    with prefect_client() as client:
        before = [_find_deployment(client, each) for each in deployments]
        _register_blocks()
        registered: list[RegisteredDeployment] = []
        for each, existing in zip(deployments, before, strict=True):
            each.deployment.work_pool_name = None  # set explicitly, so that it leaves its former pool
            registered.append(_register(each, existing, timing, paused=False))
        return registered


def _register(
    each: PlannedDeployment, existing: DeploymentResponse | None, timing: ScheduleOverride, *, paused: bool
) -> RegisteredDeployment:
    """Register one deployment.

    Args:
        each: The deployment.
        existing: The existing deployment of its name, if any.
        timing: The schedule options of the command line.
        paused: Whether it is to be paused.
    """
    # A new deployment gets the example of its flow; an existing one keeps its schedules, changed by the options.
    example = next(iter(each.spec.schedules), None)
    before = [example] if existing is None and example else existing.schedules if existing else []
    schedules = nest_parameters(timing.merge_schedules(example, before), each)
    each.deployment.schedules = [
        DeploymentScheduleCreate.model_validate(one.model_dump(exclude_none=True)) if existing is None else one
        for one in schedules
    ]
    each.deployment.paused = paused
    deployment_id = cast("UUID", each.deployment.apply())  # returns a coroutine only inside a running event loop
    ui = get_current_settings().ui_url
    url = f"{ui}/deployments/deployment/{deployment_id}" if ui else None
    return RegisteredDeployment(each.name, describe_schedules(schedules), url, paused, each.spec.is_inner)


def _find_deployment(client: SyncPrefectClient, each: PlannedDeployment) -> DeploymentResponse | None:
    """Return the existing deployment of the same name, if there is one.

    Raises:
        JobError: If it belongs to another job.
    """
    try:
        existing = client.read_deployment_by_name(each.name)
    except ObjectNotFound:
        return None
    theirs, own = job_file_of(existing.description), job_file_of(each.deployment.description)
    if theirs == own or theirs in each.origins:
        return existing
    owner = f"that of another job, {theirs!r}" if theirs else "not made from a job file"
    fix = (
        "call this one otherwise with --name (one job at a time), or delete the other"
        if own
        else "to have the ready flow's in its place, delete it"
    )
    raise JobError(
        f"The deployment {each.name!r} is there already, and {owner}: {fix}: prefect deployment delete {each.name!r}"
    )


def _resolve_pool(client: SyncPrefectClient, given: str | None, own: str, source: CodeSource) -> Pool:
    """Return the work pool; only our own one is created if it is missing, as another name may be misspelt.

    Args:
        client: A client of Prefect's API.
        given: The pool of the command line, if any.
        own: The name of our own pool.
        source: Where runs find the folders of jobs.

    Raises:
        JobError: If there is no such pool, or its jobs have no such variable.
    """
    name = given or get_current_settings().deployments.default_work_pool_name or own
    try:
        pool = client.read_work_pool(name)
        _require_variables(pool.base_job_template, name, pool.type, source)
        return Pool(name, is_new=False, kind=pool.type)
    except ObjectNotFound:
        if name != own:
            option = "--work-pool" if given else "PREFECT_DEFAULT_WORK_POOL_NAME"
            raise JobError(
                f"{option} {name!r}: there is no such work pool. Make it (prefect work-pool create {name!r} --type "
                f"{POOL_TYPE}), or leave --work-pool out: {own!r} is made where it isn't there."
            ) from None
    _require_variables({}, name, POOL_TYPE, source)
    client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPE))
    return Pool(name, is_new=True, kind=POOL_TYPE)


def _require_variables(template: dict[str, Any], name: str, kind: str, source: CodeSource) -> None:
    """Check that the jobs of a pool have the job variables that are set.

    A pool has no template until its first worker has started; for a process pool the default one is used.

    Raises:
        JobError: If not.
    """
    if not template and kind == POOL_TYPE:
        template = ProcessWorker.get_default_base_job_template()
    variables: dict[str, Any] = template.get("variables", {}).get("properties", {})
    for variable in source.job_variables if variables else ():
        if variable not in variables:
            option = "--image" if variable == "image" else f"--job-variable {variable}"
            raise JobError(
                f"{option}: the jobs of the work pool {name!r}, of type {kind}, have no {variable!r}; "
                f"{did_you_mean(variable, list(variables))}"
            )


def _require_block(client: SyncPrefectClient, source: CodeSource) -> None:
    """Check that the block exists with which workers clone a repository.

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
    """Register the block types that forms offer, as `prefect block register` does; idempotent."""
    for block in (LLMCredentials, DispatchProfile, DispatchBudget):
        with suppress(PrefectHTTPStatusError):  # a user who may deploy may not be allowed to register block types
            block.register_type_and_schema()


@contextmanager
def prefect_client() -> Generator[SyncPrefectClient]:
    """Open a client of Prefect's API, and wait for a server that is still starting.

    Yields:
        The client.

    Raises:
        JobError: If the API can't be reached, or rejects a request.
    """
    url = redact(get_current_settings().api.url or "")
    try:
        with get_client(sync_client=True) as client:
            if url:  # else Prefect has started a server for this process and waited for it
                _wait_for_server(client, url)
            yield client
    except httpx.TransportError as error:
        raise JobError(
            f"Prefect's API at {url} can't be reached ({error}): start it with `prefect server start`, or set "
            "PREFECT_API_URL."
        ) from None
    except PrefectHTTPStatusError as error:
        raise JobError(_http_error_message(url, error.response)) from None
    except DeploymentApplyError as error:
        raise JobError(f"Prefect refuses the deployment: {_truncate(str(error))}") from None


def _wait_for_server(client: SyncPrefectClient, url: str) -> None:
    """Wait for a server that is still starting: `prefect server start --background` returns before it answers.

    A server that does not answer in time is reported by the first request after this.
    """
    wait_s = settings().server_wait_s
    error = client.api_healthcheck()
    if not wait_s or not _is_starting(error):
        return
    why = _truncate(redact(str(error)))
    sys.stderr.write(f"Prefect's API at {url} does not answer yet ({why}): waiting up to {wait_s:g} s for it.\n")
    sys.stderr.flush()
    end = time.monotonic() + wait_s
    while time.monotonic() < end and _is_starting(client.api_healthcheck()):
        time.sleep(POLL_S)


def _is_starting(error: Exception | None) -> bool:
    """Return whether an error may come from a server that is starting, or from a proxy in front of it."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _STARTING_CODES
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _http_error_message(url: str, response: httpx.Response) -> str:
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        return (
            f"Prefect's API at {url} refuses us: set PREFECT_API_AUTH_STRING to what the server has as "
            "PREFECT_SERVER_API_AUTH_STRING; for Prefect Cloud, PREFECT_API_KEY."
        )
    try:
        body: dict[str, object] = response.json()
    except ValueError:
        body = {}
    why = body.get("detail") or body.get("exception_detail") or response.reason_phrase
    return f"Prefect's API at {url} refuses it ({response.status_code}): {_truncate(why)}"


def _truncate(message: object) -> str:
    return shorten(strip_control_chars(str(message)), MAX_MESSAGE)


PROBE_TIMEOUT_S = 3.0
"""Time limit of a request in seconds."""
_UNROUTED_ADDRESSES = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Reserved documentation addresses (RFC 5737, RFC 3849): routing one of them selects this machine's own address."""


def find_open_api() -> str | None:
    """Return a non-loopback address at which Prefect's API answers without credentials; None if there is none.

    Prefect Cloud is left out, and so is the server that Prefect starts for one process. An API that is used at a
    loopback address is probed at this machine's own addresses, too, where a server on all interfaces is found.
    """
    settings = get_current_settings()
    if not settings.api.url:
        return None
    url = httpx.URL(settings.api.url).copy_with(userinfo=b"")  # which httpx would send as credentials
    if str(url).startswith(settings.cloud.api_url):
        return None
    for host in _candidate_hosts(url.host):
        candidate = url.copy_with(host=host)
        if is_open_api(candidate):
            return str(candidate)
    return None


def _candidate_hosts(host: str) -> Iterator[str]:
    """Yield the hosts at which other machines may reach the API."""
    if _is_loopback(host):
        yield from own_addresses()
    else:
        yield host


def own_addresses() -> Iterator[str]:
    """Yield the addresses of this machine on its outgoing interfaces."""
    for remote, family in _UNROUTED_ADDRESSES:
        with socket.socket(family, socket.SOCK_DGRAM) as own, suppress(OSError):  # OSError: no route
            own.connect((remote, 9))  # a datagram socket sends nothing on connect
            yield str(own.getsockname()[0])


def _is_loopback(host: str) -> bool:
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip_address(each.partition("%")[0]).is_loopback for each in found)


def is_open_api(url: httpx.URL) -> bool:
    """Return whether Prefect's API returns its version without credentials (its health check never needs any)."""
    settings = get_current_settings().api
    try:
        trusted = ssl.create_default_context(cafile=settings.ssl_cert_file)
        verify = not settings.tls_insecure_skip_verify and trusted
        with httpx.Client(timeout=PROBE_TIMEOUT_S, verify=verify) as client:
            response = client.get(f"{str(url).rstrip('/')}/admin/version")
            return response.is_success and isinstance(response.json(), str)
    except (httpx.HTTPError, ValueError, OSError):
        return False


FIRST_S, MOST_S = 5.0, 60.0
"""Initial and maximum backoff in seconds."""
OUTAGE_S = 3600.0
"""Maximum length of an outage in seconds."""
HEALTHY_S = 600.0
"""Seconds of serving after which the next error begins a new outage."""


def serve(  # pragma: no cover -- never ends; test_worker runs it as a process
    deployments: Sequence[PlannedDeployment],
    timing: ScheduleOverride,
    on_registered: Callable[[Sequence[RegisteredDeployment]], None],
) -> None:
    """Register deployments and serve them, each with one run at a time, until interrupted.

    Args:
        deployments: The deployments.
        timing: The schedule options of the command line; after an outage, schedules are not changed again.
        on_registered: Called once with the registered deployments.

    Raises:
        JobError: If they can't be registered at first.
        DispatchError: If Prefect's API has been out of order for an hour.
    """
    # Errors of the first registration are the user's; only later ones can be an outage.
    on_registered(register_served(deployments, timing))
    outage = Outage()
    again = False
    while True:
        began = time.monotonic()
        try:
            if again:
                register_served(deployments, ScheduleOverride())
            serve_deployments(*(each.deployment for each in deployments), limit=len(deployments))
            return  # noqa: TRY300 -- interrupted by the user
        except Exception as error:
            if not is_outage(error):
                raise
            wait_s = outage.next_delay_s(error, began, time.monotonic())
            why = _truncate(safe_message(error))
            sys.stderr.write(
                f"Prefect's API is out of order ({why}). Runs that were under way here have ended; "
                f"what had been answered is stored. Serving again in {wait_s:g} s.\n"
            )
            sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Prefect's handler belongs to the runner that has ended
        time.sleep(wait_s)
        again = True


class Outage:
    """Exponential backoff during an outage of Prefect's API."""

    def __init__(self) -> None:
        """Start without an outage."""
        self._since: float | None = None
        self._tries = 0

    def next_delay_s(self, error: BaseException, began: float, now: float) -> float:
        """Return how many seconds to wait before the next try.

        Args:
            error: The error of the last try.
            began: The start of the last try, in seconds of any clock.
            now: The end of the last try.

        Raises:
            DispatchError: If the outage has lasted too long.

        Example:
            >>> outage, error = Outage(), ConnectionError("refused")
            >>> [outage.next_delay_s(error, began, began) for began in (0, 5, 15, 35, 75, 135)]
            [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
            >>> outage.next_delay_s(error, 195, 9000)
            5.0
        """
        if self._since is None or now - began > HEALTHY_S:
            self._since, self._tries = now, 0
        if now - self._since > OUTAGE_S:
            raise DispatchError(
                f"Prefect's API has been out of order for {(now - self._since) / 60:.0f} min "
                f"({_truncate(safe_message(error))}): see to the server, and serve again."
            )
        self._tries += 1
        return min(MOST_S, FIRST_S * 2.0 ** (self._tries - 1))


def is_outage(error: BaseException) -> bool:
    """Return whether an error is a temporary failure of Prefect's API: unreachable, gone, too busy, or broken.

    Example:
        >>> is_outage(RuntimeError("Service exceeded error threshold.")), is_outage(RuntimeError("No such flow."))
        (True, False)
    """
    return any(map(_is_api_failure, _iter_causes(error)))


def _is_api_failure(error: BaseException) -> bool:
    if isinstance(error, ConnectionClosed):  # by the network or the server, unless the server rejected the connection
        return error.rcvd is None or error.rcvd.code not in {CloseCode.PROTOCOL_ERROR, CloseCode.POLICY_VIOLATION}
    status = getattr(getattr(error, "response", None), "status_code", None)  # of httpx, and of websockets
    if isinstance(status, int):
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    is_threshold = isinstance(error, RuntimeError) and str(error) == "Service exceeded error threshold."
    return is_threshold or isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError))


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the members of an exception group, and all causes and contexts."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            members: tuple[BaseException, ...] = getattr(each, "exceptions", ())
            pending += [*members, *filter(None, (each.__cause__, each.__context__))]
