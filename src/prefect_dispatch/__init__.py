"""Run explicit briefs over many inputs as Prefect task runs, and prove that nothing was lost or bent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect_dispatch._version import __version__

if TYPE_CHECKING:
    from prefect_dispatch.blocks import DispatchProfile, LLMCredentials
    from prefect_dispatch.command import Command
    from prefect_dispatch.errors import DispatchFailed
    from prefect_dispatch.executors.base import Ask, Executor, Reply
    from prefect_dispatch.executors.callable import PythonCallable
    from prefect_dispatch.executors.coding.executor import CodingAgent
    from prefect_dispatch.executors.llm import LLM
    from prefect_dispatch.executors.shell import Shell
    from prefect_dispatch.flows.analyze_files import analyze_files
    from prefect_dispatch.flows.build_modules import build_modules
    from prefect_dispatch.flows.content_variants import content_variants
    from prefect_dispatch.flows.dispatch import dispatch
    from prefect_dispatch.flows.prepare import plan
    from prefect_dispatch.flows.research_topics import research_topics
    from prefect_dispatch.flows.test_matrix import test_matrix
    from prefect_dispatch.frames import items_from
    from prefect_dispatch.frames_out import outcomes_frame
    from prefect_dispatch.integrators.base import Integrator
    from prefect_dispatch.integrators.collate import Collate
    from prefect_dispatch.integrators.consensus import Consensus
    from prefect_dispatch.integrators.merge_branches import MergeBranches
    from prefect_dispatch.integrators.merge_records import MergeRecords
    from prefect_dispatch.integrators.synthesize import Synthesize
    from prefect_dispatch.integrators.test_matrix import TestMatrix
    from prefect_dispatch.integrators.tournament import Tournament
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.limits import Limits
    from prefect_dispatch.models import Answer, Brief, Item, Outcome, Usage
    from prefect_dispatch.report import Report
    from prefect_dispatch.tasks.integrate import integrate
    from prefect_dispatch.tasks.outcomes import outcome_of
    from prefect_dispatch.tasks.plan import Plan
    from prefect_dispatch.tasks.run_brief import run_brief
    from prefect_dispatch.tasks.tables import write_parquet, write_table
    from prefect_dispatch.workspaces.workspace import Workspace

_HOMES = {
    "Answer": "models",
    "Ask": "executors.base",
    "Brief": "models",
    "CodingAgent": "executors.coding.executor",
    "Collate": "integrators.collate",
    "Command": "command",
    "Consensus": "integrators.consensus",
    "DispatchFailed": "errors",
    "DispatchProfile": "blocks",
    "Executor": "executors.base",
    "Integrator": "integrators.base",
    "Item": "models",
    "LLM": "executors.llm",
    "LLMCredentials": "blocks",
    "Limits": "limits",
    "Merge": "ledger",
    "MergeBranches": "integrators.merge_branches",
    "MergeRecords": "integrators.merge_records",
    "Outcome": "models",
    "Plan": "tasks.plan",
    "PythonCallable": "executors.callable",
    "Reply": "executors.base",
    "Report": "report",
    "Shell": "executors.shell",
    "Synthesize": "integrators.synthesize",
    "TestMatrix": "integrators.test_matrix",
    "Tournament": "integrators.tournament",
    "Usage": "models",
    "Workspace": "workspaces.workspace",
    "analyze_files": "flows.analyze_files",
    "build_modules": "flows.build_modules",
    "content_variants": "flows.content_variants",
    "dispatch": "flows.dispatch",
    "integrate": "tasks.integrate",
    "items_from": "frames",
    "outcome_of": "tasks.outcomes",
    "outcomes_frame": "frames_out",
    "plan": "flows.prepare",
    "research_topics": "flows.research_topics",
    "run_brief": "tasks.run_brief",
    "test_matrix": "flows.test_matrix",
    "write_parquet": "tasks.tables",
    "write_table": "tasks.tables",
}

__all__ = [
    "LLM",
    "Answer",
    "Ask",
    "Brief",
    "CodingAgent",
    "Collate",
    "Command",
    "Consensus",
    "DispatchFailed",
    "DispatchProfile",
    "Executor",
    "Integrator",
    "Item",
    "LLMCredentials",
    "Limits",
    "Merge",
    "MergeBranches",
    "MergeRecords",
    "Outcome",
    "Plan",
    "PythonCallable",
    "Reply",
    "Report",
    "Shell",
    "Synthesize",
    "TestMatrix",
    "Tournament",
    "Usage",
    "Workspace",
    "__version__",
    "analyze_files",
    "build_modules",
    "content_variants",
    "dispatch",
    "integrate",
    "items_from",
    "outcome_of",
    "outcomes_frame",
    "plan",
    "research_topics",
    "run_brief",
    "test_matrix",
    "write_parquet",
    "write_table",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- the type of whatever public name is asked for
    """Import a public name on first use: this module is loaded wherever Prefect looks up blocks."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
