"""Run the programs of a coding agent in containers, by podman.

Each program has a container of its own that is removed at its end. It has the folders of its lease and nothing else of
this machine, no network, no capabilities, and bounded resources. The agent alone may reach its provider, by
`provider_relay`.

Ending the call of podman doesn't end a container, whose program may ignore SIGTERM and take off the marks of
`process_tree`. So a container is removed by its name: after a time-out or a cancellation by this process, after its
death by the watchdog, and after the death of both at the next start. docker isn't supported, as its containers
belong to a daemon, and their end is established by no test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from prefect_dispatch.errors import JobError, TerminalError, TransientError
from prefect_dispatch.executors.coding import provider_relay
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.processes.process_tree import VARIABLE, get_watchdog
from prefect_dispatch.processes.runner import COOKIE, run
from prefect_dispatch.processes.state_folder import private_folder, remove_tree, state_folder
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.workspaces.workspace import to_thread_shielded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefect_dispatch.processes.runner import CompletedProgram, Program
    from prefect_dispatch.processes.state_folder import Lease
    from prefect_dispatch.workspaces.workspace import OpenWorkspace

PROVIDERS = {
    "anthropic": "api.anthropic.com",
    "deepseek": "api.deepseek.com",
    "gemini": "generativelanguage.googleapis.com",
    "google": "generativelanguage.googleapis.com",
    "groq": "api.groq.com",
    "mistral": "api.mistral.ai",
    "openai": "api.openai.com",
    "openrouter": "openrouter.ai",
    "xai": "api.x.ai",
}
"""The host that each provider's API has, by the name that models begin with."""
MAX_PROCESSES = 2048
"""Most processes and threads of a container."""
MAX_SHARED_MEMORY = "1g"
"""Size of `/tmp` in a container, which counts as memory."""
PODMAN_FAILED = 125
"""Exit code of podman if it couldn't run a container; a program in one may have it, too."""
CALL_S = 60.0
"""Seconds that a call of podman may take, but for running a program of a job."""
_OWN = "/run/prefect-dispatch"
"""Folder of ours in a container."""
_PID_FILE = "pid"
"""File of ours that podman writes once a container exists."""
_LOOPBACK = ("127.0.0.1", "localhost")
_MISSING_PROGRAM, _MISSING_PYTHON = 71, 72
_PROBE = (
    f'command -v "$2" >/dev/null 2>&1 || exit {_MISSING_PROGRAM}; '
    f'[ "$1" = none ] || command -v python3 >/dev/null 2>&1 || exit {_MISSING_PYTHON}; '
    'shift; [ $# -eq 1 ] || exec "$@"'
)
"""Shell script that checks an image for a program and for Python, and has the program print its version."""
_RELAY = f'python3 -I {_OWN}/relay.py {_OWN}/{provider_relay.SOCKET} "$0" && exec "$@"'
"""Shell script that starts the relay at a port, and then runs a program in its place."""
_HOST_ONLY = re.compile(
    r"PATH|USER|LOGNAME|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS"
)
"""Variables that name what this machine has; a container has those of its image."""
_PODMAN = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LANG|LC_\w+|XDG_\w+|DBUS_\w+|SSH_AUTH_SOCK|LD_\w+|LISTEN_\w+|NOTIFY_\w+|"
    r"_?(DOCKER|CONTAINERS?|PODMAN|LIBPOD|STORAGE|BUILDAH|REGISTR(Y|IES))_\w+|GO(DEBUG|TRACEBACK|MAXPROCS|GC|MEMLIMIT)"
)
"""Variables that podman itself reads, and gets as this process has them."""
_UNMOUNTABLE = re.compile(r'[,"\n]')
"""Characters that separate the options of a mount."""

_Image = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.:/@-]*$", max_length=400)]


class Container(Strict):
    """Container that the programs of a coding agent run in: the agent, the set-up and the acceptance command.

    Example:
        >>> Container(image="localhost/agents:1").network
        'providers'
    """

    image: _Image
    """The image with the agent and all other programs; it has to be on this machine, as nothing is pulled."""
    network: Literal["none", "providers"] = "providers"
    """What the agent may reach: its provider alone, which takes `python3` in the image; or nothing."""
    memory_gb: float = Field(default=4.0, ge=0.1, le=4096, allow_inf_nan=False, title="Memory in GB")
    """Most memory of each container, in GiB; a program that needs more is killed."""
    cpus: float = Field(default=2.0, ge=0.1, le=1024, allow_inf_nan=False, title="CPUs")
    """Most CPU time of each container, in CPUs."""


class Address(NamedTuple):
    """Address of a provider."""

    host: str
    port: int


def find_address(model: str, api_base: str) -> Address:
    """Return the address that an agent reaches its provider at.

    Args:
        model: The model, as litellm names it.
        api_base: The address in the job; empty for the provider's own.

    Raises:
        JobError: If it is unknown, or can't be reached from a container.
    """
    provider = model.partition("/")[0]
    way_out = "set executor.api_base to an address with a host name, or executor.container.network to 'none'"
    if not api_base and provider not in PROVIDERS:
        raise JobError(f"executor.container.network: the address of {provider!r} isn't known here; {way_out}.")
    url = urlsplit(api_base or f"https://{PROVIDERS[provider]}")
    try:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
    except (ValueError, KeyError):
        raise JobError(f"executor.api_base: {api_base!r} is no address of a server; {way_out}.") from None
    host = url.hostname or ""
    if host not in _LOOPBACK and not re.fullmatch(r"(?=.*[a-z])[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", host):
        raise JobError(f"executor.api_base: a container can't be given the address {host!r}; {way_out}.")
    return Address(host, port)


class Podman(NamedTuple):
    """The program podman."""

    path: str

    def command(self, *words: str) -> tuple[str, ...]:
        """Return the command with some arguments, for the containers of this machine and no other."""
        return (self.path, "--remote=false", *words)

    def removal(self, name: str) -> tuple[str, ...]:
        """Return the command that ends and removes a container, if there is one of this name."""
        return self.command("rm", "--force", "--ignore", "--volumes", name)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call it with some arguments, and return how that ended; the exit code is -1 if it couldn't be called."""
        try:
            return subprocess.run(  # noqa: S603 -- no shell, and the arguments are ours
                self.command(*words),
                env=_podman_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=CALL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or f"it didn't answer within {CALL_S:g} s"
            return subprocess.CompletedProcess(words, -1, "", why)

    def remove(self, name: str) -> None:
        """End and remove a container, if there is one of this name."""
        self.call(*self.removal(name)[2:])


def find_podman() -> Podman:
    """Return podman.

    Raises:
        JobError: If it isn't installed, or if this system's containers are not of the system itself.
    """
    way_out = "or leave 'container' out"
    if sys.platform != "linux":  # pragma: no cover -- elsewhere podman's containers are in a virtual machine
        raise JobError(f"executor.container: it takes Linux: run the job on such a machine, {way_out}.")
    path = shutil.which("podman")
    if path is None:
        raise JobError(
            "executor.container: there is no podman in PATH (docker isn't supported, as a run that dies can't be "
            f"relied on to end its containers): install podman, such as by `apt install podman`, {way_out}."
        )
    return Podman(os.path.abspath(path))  # noqa: PTH100 -- links are kept: a program may act by the name of its link


def probe_image(container: Container, program: str, version_arguments: Sequence[str]) -> str:
    """Run a container to check that it can be run here and that its image has what it needs.

    Args:
        container: The container.
        program: The program that the image must have.
        version_arguments: The arguments that make it print its version; none if it isn't run.

    Returns:
        What the program printed.

    Raises:
        JobError: If something is missing, or if no container can be run.
    """
    podman, image = find_podman(), container.image
    found = podman.call("image", "exists", image)
    if found.returncode == 1:
        raise JobError(
            f"executor.container.image: {image!r} isn't on this machine, and a run pulls nothing: build it, or pull it "
            f"first: podman pull {image}"
        )
    name = f"prefect-dispatch-probe-{token_hex(6)}"
    probe = ("--env", "HOME=/tmp", "--entrypoint", "sh", image, "-c", _PROBE, "sh", container.network, program)
    tried = found if found.returncode else podman.call("run", *_limits(container, name), *probe, *version_arguments)
    if tried.returncode == -1:
        podman.remove(name)
    if tried.returncode == _MISSING_PROGRAM:
        raise JobError(f"executor.container.image: {image!r} has no program {program!r} in its PATH; install it there.")
    if tried.returncode == _MISSING_PYTHON:
        raise JobError(
            f"executor.container.network: 'providers' takes a program 'python3' in the image {image!r}: install it "
            "there, or set network to 'none'."
        )
    if (tried.returncode and not version_arguments) or tried.returncode in (-1, PODMAN_FAILED, 126, 127):
        raise JobError(
            f"executor.container: podman can't run a container of {image!r} here "
            f"({_last_line(tried.stderr) or f'exit code {tried.returncode}'}): leave 'container' out, or make this "
            f"command succeed: podman run --rm --network none {image} sh -c true"
        )
    return tried.stdout + tried.stderr


@dataclass(frozen=True)
class ContainerRunner:
    """Runner of programs in containers: the counterpart of `run_here`."""

    container: Container
    """The configuration."""
    lease: Lease
    """The lease whose HOME and TMPDIR a program gets."""
    folder: Path
    """The folder that it works in."""
    readable: tuple[Path, ...] = ()
    """Further folders that it can read."""
    is_read_only: bool = False
    """Whether it can only read the folder that it works in."""
    address: Address | None = None
    """The address that it can reach. None: it has no network."""

    @classmethod
    def of_workspace(cls, container: Container, workspace: OpenWorkspace) -> ContainerRunner:
        """Return the runner for programs in a workspace, which can read the objects of its repository."""
        objects = workspace.objects
        shared = (objects.common / "objects", *(Path(each) for each in objects.alternates if each.startswith("/")))
        return cls(container, workspace.lease, workspace.path, shared)

    def for_agent(self, address: Address | None, *, is_read_only: bool) -> ContainerRunner:
        """Return the runner for the agent itself."""
        return replace(self, address=address, is_read_only=is_read_only)

    async def __call__(self, program: Program, log: Path) -> CompletedProgram:
        """Run a program in a new container, and return its result once that is gone.

        Raises:
            ExecutorError: If it can't be run.
        """
        try:
            podman = await to_thread_shielded(find_podman)
        except JobError as error:  # what existed when the job was prepared is gone
            raise TerminalError(str(error), kind="container", usage=Usage()) from None
        name = f"prefect-dispatch-{self.lease.id}-{token_hex(6)}"
        own = self.lease.path / name
        try:
            async with AsyncExitStack() as stack:
                await to_thread_shielded(self._prepare, own)
                if self.address:
                    await stack.enter_async_context(provider_relay.serve_address(str(own), *self.address))
                watchdog = await to_thread_shielded(get_watchdog)
                stack.enter_context(watchdog.run_after_death(podman.removal(name), _podman_environment()))
                stack.push_async_callback(to_thread_shielded, podman.remove, name)
                ran = await run(self._enclose(podman, name, own, program), log=log)
                is_created = (own / _PID_FILE).exists()
        except OSError as error:
            raise TransientError(
                f"A container can't be prepared: {error.strerror or error}.", kind="container"
            ) from None
        finally:
            await to_thread_shielded(remove_tree, own)
        if ran.exit == PODMAN_FAILED and not is_created:
            said = ran.stderr.end_text(2_000).strip()
            raise TransientError(f"podman couldn't run a container: {said}", kind="container", usage=Usage())
        return ran

    def _prepare(self, own: Path) -> None:
        """Write the files of ours that a container gets: the relay, and the names of hosts."""
        private_folder(own)
        alias = f"127.0.0.1 {self.address.host}\n" if self.address and self.address.host not in _LOOPBACK else ""
        (own / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{alias}", encoding="ascii")
        shutil.copyfile(provider_relay.__file__, own / "relay.py")

    def _enclose(self, podman: Podman, name: str, own: Path, program: Program) -> Program:
        """Return the call of podman that runs a program in a container."""
        values = {key: value for key, value in program.env.items() if not _HOST_ONLY.fullmatch(key)}
        # No value is an argument, which all users of a machine can read, except where podman would read it itself.
        by_value = {key for key, value in values.items() if _PODMAN.fullmatch(key) and os.environ.get(key) != value}
        by_name = {key: value for key, value in values.items() if key not in by_value}
        passed = (*(f"{key}={values[key]}" for key in sorted(by_value)), *sorted(by_name), COOKIE, VARIABLE)
        words = [
            *("run", *_limits(self.container, name), "--label", _label(state_folder())),
            *("--workdir", str(program.cwd), "--pidfile", str(own / _PID_FILE)),
            *(word for each in passed for word in ("--env", each)),
            *(word for each in self._mounts(own) for word in ("--mount", each)),
        ]
        command = tuple(program.argv)
        if self.address:
            if self.address.port < 1024:  # noqa: PLR2004 -- the first port that needs no capability
                words += ["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"]
            command = ("sh", "-c", _RELAY, str(self.address.port), *command)
        argv = podman.command(*words, "--entrypoint", command[0], self.container.image, *command[1:])
        return replace(program, argv=argv, env={**_podman_environment(), **by_name}, cwd=self.lease.path)

    def _mounts(self, own: Path) -> Iterator[str]:
        """Yield the mounts of a container: each folder has the same path as on this machine.

        Raises:
            TerminalError: If a path has a character that a mount can't have.
        """
        mounts = [(path, path, False) for path in (self.lease.path / "home", self.lease.path / "tmp")]
        mounts += [(self.folder, self.folder, self.is_read_only)]
        mounts += [(path, path, True) for path in self.readable]
        mounts += [(own, Path(_OWN), True), (own / "hosts", Path("/etc/hosts"), True)]
        for source, target, is_read_only in mounts:
            if _UNMOUNTABLE.search(f"{source}"):
                raise TerminalError(
                    f"A container can't be given the folder {str(source)!r}, as its path has a comma, a quotation mark "
                    "or a line break: use another path, or leave executor.container out.",
                    kind="container",
                    usage=Usage(),
                )
            yield f"type=bind,src={source},dst={target}{',readonly' if is_read_only else ''}"


def remove_left_containers() -> None:
    """Remove the containers of runs that died: those whose lease is over."""
    podman, state = find_podman(), state_folder()
    listed = podman.call("ps", "--all", "--filter", f"label={_label(state)}", "--format", "{{.Names}}")
    for name in listed.stdout.split():
        lease = name.removeprefix("prefect-dispatch-").partition("-")[0]
        if not (state / "leases" / f"{lease}.lock").exists():
            podman.remove(name)


def _limits(container: Container, name: str) -> Iterator[str]:
    """Yield the options that every container gets."""
    # SIGTERM is for `run` to send: who removes a container doesn't wait for its program.
    yield from ("--rm", "--interactive", "--pull", "never", "--name", name, "--stop-timeout", "0")
    # podman keeps no output, which isn't redacted there.
    yield from ("--log-driver", "none", "--network", "none", "--http-proxy=false", "--cap-drop", "ALL")
    yield from ("--user", "0:0")  # which is the account that runs podman
    yield from ("--security-opt", "no-new-privileges", "--security-opt", "label=disable")
    yield from ("--read-only", "--image-volume", "ignore")
    yield from ("--tmpfs", f"/tmp:rw,exec,nosuid,nodev,size={MAX_SHARED_MEMORY}")  # noqa: S108 -- there
    yield from ("--memory", str(int(container.memory_gb * 2**30)), "--pids-limit", str(MAX_PROCESSES))
    yield from ("--cpus", f"{min(container.cpus, os.cpu_count() or 1):g}")


def _label(state: Path) -> str:
    return f"prefect-dispatch.state={state}"


def _podman_environment() -> dict[str, str]:
    return {"PATH": os.defpath, **{key: value for key, value in os.environ.items() if _PODMAN.fullmatch(key)}}


def _last_line(text: str) -> str:
    """Return the last line of a message of podman, redacted and cut."""
    lines = redact(text).strip().splitlines()
    return lines[-1][:400] if lines else ""
