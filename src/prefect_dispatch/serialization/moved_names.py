"""Import by the module names of earlier versions, for stored data, job files and code that followed the documentation.

Prefect stores the results of a user's own flow or task as a pickle, or as JSON with the class's module and name. A
class that has moved since can be imported by its old name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = "prefect_dispatch"
MOVED = {
    "attempts": "models.outcome",
    "change": "models.outcome",
    "changes": "models.report",
    "checks": "models.checks",
    "command": "models.brief",
    "decisions": "models.decisions",
    "executors.coding.executor": "executors.coding.coding_agent",
    "executors.callable": "executors.python_callable",
    "flows.parameters": "flows.runtime.flow_class",
    "integrators.gaps": "integrators.base",
    "integrators.records": "integrators.merge_records",
    "integrators.records.rules": "integrators.merge_records.field_rules",
    "integrators.test_matrix": "integrators.matrix_integrator",
    "integrators.values": "serialization.json_values",
    "junit": "executors.junit",
    "ledger": "models.ledger",
    "limits": "models.limits",
    "report": "models.report",
    "test_run": "models.test_run",
    "tasks.storage": "tasks.result_store",
    "tasks.storage.result_store": "tasks.result_store",
    "tasks.store": "tasks.result_store",
}
"""Modules of version 0.1 that stored data, job files or documented examples name, with those that replace them."""


def lazy_names(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package whose names are imported on first use.

    Args:
        package: The package's name.
        homes: For each name the module below the package that defines it.
    """

    def get(name: str) -> Any:  # noqa: ANN401 -- an attribute of any type
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return get


class _MovedModule(ModuleType):
    """Stand-in for a module of an earlier version, with the names of the module that defines them now."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- an attribute of any type
        """Return the current object of a name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(f"{PACKAGE}.{MOVED[self.__name__[len(PACKAGE) + 1 :]]}"), name)


def install() -> None:
    """Add a stand-in for each module of earlier versions to the imported modules."""
    for name in MOVED:
        sys.modules.setdefault(f"{PACKAGE}.{name}", _MovedModule(f"{PACKAGE}.{name}"))
