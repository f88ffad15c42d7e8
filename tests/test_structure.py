"""Figures of the structure: what they count, and what counts as worse."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.structure import ROOT, count_tokens, import_graph, modules_in_cycles, product_files, worse


def test_an_import_for_types_closes_a_cycle_too() -> None:
    """Wherever in a module it stands; a module that is only imported by those in the cycle is not in it."""
    graph = {Path("a"): {Path("b")}, Path("b"): {Path("a"), Path("c")}, Path("c"): set[Path]()}
    assert modules_in_cycles(graph) == 2
    errors, outcome = (ROOT / "src" / "prefect_dispatch" / "errors.py", ROOT / "tasks" / "fan_out.py")
    trees = {
        errors: ast.parse("def f() -> None:\n    import prefect_dispatch.tasks.fan_out\n"),
        outcome: ast.parse("if TYPE_CHECKING:\n    from prefect_dispatch.errors import JobError\n"),
    }
    assert modules_in_cycles(import_graph(trees)) == 2


def test_tokens_leave_out_comments_and_docstrings() -> None:
    """So that explaining the code makes no figure worse."""
    text = '"""What it is."""\n\nA = 1  # why\n'
    assert count_tokens(text, ast.parse(text)) == 3


def test_less_is_better_and_a_new_figure_has_no_baseline() -> None:
    """One that is as it was, or less, is no problem."""
    found = {"modules": 3.0, "tokens": 7.0, "new": 1.0}
    assert worse(found, {"modules": 2.0, "tokens": 8.0}) == ["modules: 3, where the baseline has 2"]


def test_a_linked_folder_is_counted_once() -> None:
    """The four folders at the top are linked into the package."""
    files = product_files()
    assert len({file.resolve() for file in files}) == len(files) > 100
