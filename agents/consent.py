"""Consent: the parts of a job that the user has not allowed, found before anything of it is read, imported or run.

A job comes from a model that may have read hostile text, so each of its values is an attacker's. What a job consists of
is known: its models are visited one by one, and what is not allowed is named together with the option that allows it.
`tests/agents/test_consent.py` holds a decision for each field of each of these models, so a new one can't be forgotten.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from prefect_dispatch.agents.policy import Refusal
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.coding.custom import Generic
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.python_callable import PythonCallable
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.executors.shell import Shell
from prefect_dispatch.integrators.base import BaseIntegrator
from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
from prefect_dispatch.integrators.registry import AnyIntegrator
from prefect_dispatch.models.brief import Brief, Command
from prefect_dispatch.models.checks import Function
from prefect_dispatch.models.imports import REFERENCE
from prefect_dispatch.models.limits import Limits
from prefect_dispatch.security.escaping import shorten, strip_control_chars
from prefect_dispatch.sources import Csv, Glob, JsonLines, Parquet, Sql
from prefect_dispatch.sources.object_store import is_url
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect_dispatch.agents.policy import Permission, Policy
    from prefect_dispatch.executors.llm.cascade import Cascade
    from prefect_dispatch.flows.job_file import JobFile
    from prefect_dispatch.flows.runtime.prepared_job import JobSpec

SAFE_PARAMS = frozenset(
    [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "reasoning_effort",
        "verbosity",
        "thinking",
        "web_search_options",
    ]
)
"""Parameters of a model's call that neither name an address, a key or a header, nor a price."""
INTEGRATOR_FILES = ("aliases", "results", "expected")
"""The fields of integrators that name a file."""
FORM_FILES = ("folder", "topics_file")
"""The fields of forms that name a file or folder which is read while the job is built."""
FORM_BLOCKS = ("credentials", "profile")
"""The fields of forms that name a Prefect block which is loaded while the job is built."""
MAX_SHOWN = 100
"""Characters of a refused value that a message shows."""
_INTEGRATOR: TypeAdapter[Any] = TypeAdapter(AnyIntegrator)
_NO_BLOCKS = "it names a Prefect block, and jobs of agents use the keys of the server's environment alone"


def find_refusals(job: JobFile, folder: Path, policy: Policy) -> list[Refusal]:
    """Return the parts of a job that are not allowed.

    Nothing is read, imported or run for a part that is refused; the number of pairs is checked later
    (`refuse_size`), as that takes reading the items.

    Args:
        job: The job, as parsed from its document.
        folder: The folder of its file.
        policy: What the user has allowed.

    Raises:
        JobError: If the job can't be built of its parts.
    """
    # 1. What building a job from a form reads.
    early = list(_check_form(job, folder, policy))
    if early:
        return early
    # 2. The parts of the job.
    spec = job.spec(folder)
    return list(dict.fromkeys(_Check(policy, spec.place).check(spec)))


def refuse_size(pairs: int, policy: Policy) -> list[Refusal]:
    """Return the refusal of a job with too many (brief, item) pairs."""
    if pairs <= policy.max_items:
        return []
    reason = f"the job has {pairs} (brief, item) pairs, and {policy.max_items} are allowed"
    return [Refusal(part="items", reason=reason, flag="--max-items", wanted=pairs)]


def is_priced(spec: JobSpec) -> bool:
    """Return whether a budget in US dollars can be held: not for Python functions, which make calls of their own."""
    return not any(isinstance(value, PythonCallable) for _, value in _walk(_executors(spec), ""))


def _executors(spec: JobSpec) -> tuple[object, ...]:
    return (spec.executor, spec.integrator)


def _check_form(job: JobFile, folder: Path, policy: Policy) -> Iterator[Refusal]:
    place = job.place(folder)
    if not policy.allows_path(place):
        yield _outside("folder", str(place), policy)
        return
    for name in FORM_FILES[1:]:
        if (file := getattr(job, name, "")) and (is_url(file) or not policy.allows_path(place / file)):
            yield _outside(name, file, policy)
    for name in FORM_BLOCKS:
        if getattr(job, name, None):
            yield Refusal(part=name, reason=_NO_BLOCKS)


def _outside(part: str, path: str, policy: Policy) -> Refusal:
    return Refusal(
        part=part,
        reason=f"{_show(path)} is not below the root {policy.root!r}",
        flag="--root",
        wanted="(a folder above)",
    )


def _show(value: object) -> str:
    return repr(strip_control_chars(shorten(str(value), MAX_SHOWN)))


def _walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield a value and everything in it, each with its path; a model's fields follow it."""
    yield path, value
    prefix = f"{path}." if path else ""
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _walk(getattr(value, field), f"{prefix}{field}")
    elif isinstance(value, Mapping):
        for name, part in cast("Mapping[object, object]", value).items():
            yield from _walk(part, f"{prefix}{name}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(cast("tuple[object, ...]", value)):
            yield from _walk(part, f"{path}[{number}]")


class _Check:
    """Check of the parts of a job."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        """Prepare the check of a job whose relative paths start from a folder."""
        self._policy, self._folder = policy, folder
        self._checks: tuple[tuple[type | tuple[type, ...], Callable[[str, Any], Iterator[Refusal]]], ...] = (
            (LLM, self._check_model),
            (CodingAgent, self._check_agent),
            (Shell, self._check_shell),
            ((PythonCallable, Function), self._check_function),
            (Generic, self._check_program),
            (Command, self._check_command),
            (Workspace, self._check_workspace),
            (Brief, self._check_brief),
            (BaseIntegrator, self._check_integrator),
            ((Glob, JsonLines, Csv, Parquet, Sql), self._check_source),
            (Limits, self._check_limits),
        )

    def check(self, spec: JobSpec) -> Iterator[Refusal]:
        """Yield what is refused."""
        if spec.review:
            yield Refusal(part="review", reason="a review waits for decisions of people; run such a job yourself")
        for name in ("fan_out", "task_runner"):
            if getattr(spec, name) is not None:
                reason = "the job would run in processes of others, where no limit of this server holds"
                yield Refusal(part=name, reason=reason)
        if not is_priced(spec) and any(
            isinstance(value, LLM | CodingAgent) for _, value in _walk(_executors(spec), "")
        ):
            reason = "calls of a Python function have no bound, so no budget can be held for the models beside it"
            yield Refusal(part="executor", reason=reason)
        parts: dict[str, object] = {
            "items": spec.items,
            "executor": spec.executor or default_executor(),
            "integrator": spec.integrator,
            "limits": spec.limits,
            **{f"briefs[{number}]": brief for number, brief in enumerate(spec.briefs)},
        }
        for part, value in parts.items():
            for path, each in _walk(value, part):
                yield from self._check_part(path, each)

    def _check_part(self, path: str, value: object) -> Iterator[Refusal]:
        """Yield what is refused of one value, without what lies in it."""
        for kind, check in self._checks:
            if isinstance(value, kind):
                yield from check(path, value)

    def _check_shell(self, path: str, shell: Shell) -> Iterator[Refusal]:
        yield from self._require("shell", f"{path}.kind", "it runs commands")
        if shell.operation:
            yield Refusal(part=f"{path}.operation", reason=_NO_BLOCKS)

    def _check_function(self, path: str, _: PythonCallable | Function) -> Iterator[Refusal]:
        yield from self._require("python", f"{path}.function", "it imports and runs code")

    def _check_program(self, path: str, _: Generic) -> Iterator[Refusal]:
        yield from self._require("shell", f"{path}.argv", "it runs a program that the job describes")

    def _check_command(self, path: str, command: Command) -> Iterator[Refusal]:
        yield from self._require("shell", path, f"it runs {_show(command.run)}")

    def _check_workspace(self, path: str, workspace: Workspace) -> Iterator[Refusal]:
        part = f"{path}.repo"
        refused = list(self._require_below(part, workspace.repo))
        yield from refused
        if not refused and not self._has_own_repository(self._folder / workspace.repo):
            yield _outside(part, "its repository", self._policy)

    def _has_own_repository(self, folder: Path) -> bool:
        """Return whether the repository of a folder is that of the root, or lies below the root.

        A file `.git` may name any folder of this machine as the repository.
        """
        common = ("rev-parse", "--path-format=absolute", "--git-common-dir")
        (code, found), (_, own) = (Git(each).run(*common) for each in (folder, Path(self._policy.root)))
        return bool(code) or found == own or self._policy.allows_path(Path(os.fsdecode(found.strip())))

    def _require(self, permission: Permission, path: str, reason: str) -> Iterator[Refusal]:
        if permission not in self._policy.allow:
            yield Refusal(part=path, reason=reason, flag="--allow", wanted=permission)

    def _require_below(self, path: str, file: str) -> Iterator[Refusal]:
        if is_url(file):
            yield Refusal(part=path, reason=f"{_show(file)} is not on this machine")
        elif not self._policy.allows_path(self._folder / Path(file).expanduser()):
            yield _outside(path, file, self._policy)

    def _require_model(self, path: str, model: str) -> Iterator[Refusal]:
        allowed = self._policy.models
        names = ", ".join(map(repr, allowed)) or "none"
        if not self._policy.allows_model(model):
            reason = f"{_show(model)} is not among the models that may be asked ({shorten(names, MAX_SHOWN)})"
            is_plain = len(model) <= MAX_SHOWN and model.isprintable()  # else no form can show it
            yield Refusal(
                part=path, reason=reason, flag="--models" if is_plain else "", wanted=model if is_plain else ""
            )

    def _check_model(self, path: str, llm: LLM) -> Iterator[Refusal]:
        for name, model in [("model", llm.model), *(("fallbacks", each) for each in llm.fallbacks)]:
            yield from self._require_model(f"{path}.{name}", model)
        yield from self._check_call(path, llm)
        if llm.cascade:
            yield from self._require_model(f"{path}.cascade.cheap", llm.cascade.cheap)
            yield from self._check_call(f"{path}.cascade", llm.cascade)

    def _check_call(self, path: str, asking: LLM | Cascade) -> Iterator[Refusal]:
        """Yield what is refused of the address, the key, the price and the parameters of calls of a model."""
        if asking.api_base:
            reason = "it sends the key and the items to another address"
            yield Refusal(part=f"{path}.api_base", reason=reason)
        if asking.credentials:
            yield Refusal(part=f"{path}.credentials", reason=_NO_BLOCKS)
        if asking.usd_per_million is not None:
            yield Refusal(part=f"{path}.usd_per_million", reason="a budget is held by the listed prices")
        for name in (asking.params or {}).keys() - SAFE_PARAMS:
            yield Refusal(
                part=f"{path}.params.{_plain(name)}", reason="it is none of the parameters that a job may set"
            )

    def _check_agent(self, path: str, agent: CodingAgent) -> Iterator[Refusal]:
        yield from self._require("coding", f"{path}.kind", "it runs a coding agent")
        yield from self._require_model(f"{path}.model", agent.model)
        if agent.program is not None:
            yield from self._require("shell", f"{path}.program", f"it runs the program {_show(agent.program)}")
        if agent.params:
            reason = "options of the agent can allow it commands, or writes outside of its checkout"
            yield from self._require("shell", f"{path}.params", reason)
        if isinstance(agent.answers, str):
            yield from self._require_below(f"{path}.answers", agent.answers)
        if agent.api_base:
            yield Refusal(part=f"{path}.api_base", reason="it sends the key and the repository to another address")
        if agent.credentials:
            yield Refusal(part=f"{path}.credentials", reason=_NO_BLOCKS)
        for name in set(agent.pass_env) - set(agent.key_names):
            yield from self._require("shell", f"{path}.pass_env", f"it passes the variable {_show(name)} to the agent")

    def _check_brief(self, path: str, brief: Brief) -> Iterator[Refusal]:
        if brief.model:
            yield from self._require_model(f"{path}.model", brief.model)
        if isinstance(brief.output, str) and REFERENCE.fullmatch(brief.output):
            yield from self._require("python", f"{path}.output", f"it imports {_show(brief.output)}")
        if brief.split and brief.split.join:
            try:
                joined = _INTEGRATOR.validate_python(brief.split.join)
            except ValidationError:
                yield Refusal(part=f"{path}.split.join", reason="it is no integrator")
                return
            for inside, each in _walk(joined, f"{path}.split.join"):
                yield from self._check_part(inside, each)

    def _check_integrator(self, path: str, integrator: BaseIntegrator) -> Iterator[Refusal]:
        for name in INTEGRATOR_FILES:
            if file := getattr(integrator, name, None):
                yield from self._require_below(f"{path}.{name}", str(file))
        for inside, each in _walk(integrator, path):
            if isinstance(each, str) and REFERENCE.fullmatch(each):
                yield from self._require("python", inside, f"it imports {_show(each)}")
        if isinstance(integrator, MergeBranches):
            if integrator.force:
                yield Refusal(part=f"{path}.force", reason="it may discard commits of a branch")
            if integrator.publish:
                yield Refusal(part=f"{path}.publish", reason="it pushes with the user's credentials; push it yourself")
            for variable in integrator.pass_env:
                yield from self._require("shell", f"{path}.pass_env", f"it passes the variable {_show(variable)}")

    def _check_source(self, path: str, source: Glob | JsonLines | Csv | Parquet | Sql) -> Iterator[Refusal]:
        if isinstance(source, Sql):
            yield Refusal(part=path, reason="it reads a database by a connection of the user's")
            return
        if isinstance(source, Glob):
            place, field = source.place[0], "root"
        else:
            field = type(source).__name__.lower().replace("jsonlines", "jsonl")
            place = str(getattr(source, field))
        yield from self._require_below(f"{path}.{field}", place)
        folder = self._folder / place
        if isinstance(source, Parquet) and not is_url(place) and self._policy.allows_path(folder):
            leading_out = (each for each in folder.rglob("*") if not self._policy.allows_path(each))
            if link := next(leading_out, None):
                yield _outside(f"{path}.{field}", str(link), self._policy)

    def _check_limits(self, path: str, limits: Limits) -> Iterator[Refusal]:
        policy = self._policy
        if limits.concurrency > policy.max_concurrency:
            reason = f"{limits.concurrency} calls at once are more than {policy.max_concurrency}"
            yield Refusal(
                part=f"{path}.concurrency", reason=reason, flag="--max-concurrency", wanted=limits.concurrency
            )
        if limits.budget_usd is not None and limits.budget_usd > policy.max_usd:
            reason = f"{limits.budget_usd:g} USD are more than the {policy.max_usd:g} that a job may spend"
            yield Refusal(part=f"{path}.budget_usd", reason=reason, flag="--max-usd", wanted=f"{limits.budget_usd:g}")


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "?", shorten(name, MAX_SHOWN))
