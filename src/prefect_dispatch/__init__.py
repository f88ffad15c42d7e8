"""Run explicit briefs over many inputs as Prefect task runs, and prove that nothing was lost or bent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.models import __version__
from prefect_dispatch.serialization import moved_names

if TYPE_CHECKING:
    from prefect_dispatch.blocks import DispatchBudget, DispatchProfile
    from prefect_dispatch.errors import DispatchFailed
    from prefect_dispatch.executors.base import Ask, BaseExecutor, Executor, Reply
    from prefect_dispatch.executors.coding.coding_agent import CodingAgent
    from prefect_dispatch.executors.llm.cascade import Cascade
    from prefect_dispatch.executors.llm.credentials_block import LLMCredentials
    from prefect_dispatch.executors.llm.llm import LLM
    from prefect_dispatch.executors.python_callable import PythonCallable
    from prefect_dispatch.executors.shell import Shell
    from prefect_dispatch.flows.analyze_files import analyze_files
    from prefect_dispatch.flows.build_modules import build_modules
    from prefect_dispatch.flows.content_variants import content_variants
    from prefect_dispatch.flows.dispatch import dispatch
    from prefect_dispatch.flows.prepare import plan
    from prefect_dispatch.flows.research_topics import research_topics
    from prefect_dispatch.flows.test_matrix import test_matrix
    from prefect_dispatch.integrators.base import BaseIntegrator, Integrator
    from prefect_dispatch.integrators.collate import Collate
    from prefect_dispatch.integrators.consensus.consensus import Consensus
    from prefect_dispatch.integrators.matrix_integrator import TestMatrix
    from prefect_dispatch.integrators.merge_branches.merge_branches import MergeBranches
    from prefect_dispatch.integrators.merge_records.merge_records import MergeRecords
    from prefect_dispatch.integrators.synthesize.check_text import check_text
    from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
    from prefect_dispatch.integrators.tournament.tournament import Tournament
    from prefect_dispatch.models.brief import Brief, Command
    from prefect_dispatch.models.item import Item
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.limits import Limits, Pilot
    from prefect_dispatch.models.outcome import Answer, Outcome, Usage
    from prefect_dispatch.models.report import Report
    from prefect_dispatch.reporting.tables import outcomes_frame
    from prefect_dispatch.sources.dataframe import items_from
    from prefect_dispatch.tasks.integrate import integrate
    from prefect_dispatch.tasks.plan import Plan
    from prefect_dispatch.tasks.run_brief import outcome_of, run_brief
    from prefect_dispatch.tasks.table_tasks import write_parquet, write_table
    from prefect_dispatch.workspaces.workspace import Workspace

_HOMES = {
    "Answer": "models.outcome",
    "Ask": "executors.base",
    "BaseExecutor": "executors.base",
    "BaseIntegrator": "integrators.base",
    "Brief": "models.brief",
    "Cascade": "executors.llm.cascade",
    "CodingAgent": "executors.coding.coding_agent",
    "Collate": "integrators.collate",
    "Command": "models.brief",
    "Consensus": "integrators.consensus.consensus",
    "DispatchFailed": "errors",
    "DispatchBudget": "blocks",
    "DispatchProfile": "blocks",
    "Executor": "executors.base",
    "Integrator": "integrators.base",
    "Item": "models.item",
    "LLM": "executors.llm.llm",
    "LLMCredentials": "blocks",
    "Limits": "models.limits",
    "Pilot": "models.limits",
    "Merge": "models.ledger",
    "MergeBranches": "integrators.merge_branches.merge_branches",
    "MergeRecords": "integrators.merge_records.merge_records",
    "Outcome": "models.outcome",
    "Plan": "tasks.plan",
    "PythonCallable": "executors.python_callable",
    "Reply": "executors.base",
    "Report": "models.report",
    "Shell": "executors.shell",
    "Synthesize": "integrators.synthesize.synthesize",
    "TestMatrix": "integrators.matrix_integrator",
    "Tournament": "integrators.tournament.tournament",
    "Usage": "models.outcome",
    "Workspace": "workspaces.workspace",
    "analyze_files": "flows.analyze_files",
    "build_modules": "flows.build_modules",
    "check_text": "integrators.synthesize.check_text",
    "content_variants": "flows.content_variants",
    "dispatch": "flows.dispatch",
    "integrate": "tasks.integrate",
    "items_from": "sources.dataframe",
    "outcome_of": "tasks.run_brief",
    "outcomes_frame": "reporting.tables",
    "plan": "flows.prepare",
    "research_topics": "flows.research_topics",
    "run_brief": "tasks.run_brief",
    "test_matrix": "flows.test_matrix",
    "write_parquet": "tasks.table_tasks",
    "write_table": "tasks.table_tasks",
}

__all__ = [
    "LLM",
    "Answer",
    "Ask",
    "BaseExecutor",
    "BaseIntegrator",
    "Brief",
    "Cascade",
    "CodingAgent",
    "Collate",
    "Command",
    "Consensus",
    "DispatchBudget",
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
    "Pilot",
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
    "check_text",
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


__getattr__ = moved_names.lazy_names(__name__, _HOMES)
"""Public names are imported on first use, as Prefect imports this module wherever it looks up blocks."""
moved_names.install()


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
