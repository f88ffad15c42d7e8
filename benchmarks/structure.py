"""Figures of the structure of the product code, and their check against a baseline.

Run `python -m benchmarks.structure [--check | --update]`. `--check` compares with `benchmarks/structure.json` and exits
with 1 if a ratio or a maximum is worse than there, or if there are more modules or tokens. A change that needs a higher
value raises it with `--update` in its own commit, which names the reason. Tests and benchmarks are not counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

if not __package__:  # run as a file: `python benchmarks/structure.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.item_path import FAN_OUT, entered_modules

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "benchmarks" / "structure.json"
PACKAGE = ROOT / "src" / "prefect_dispatch"
FOLDERS = (PACKAGE, *(ROOT / name for name in ("flows", "tasks", "integrators", "deployments", "agents")))
SMALL = 80
"""Lines below which a module with a single importer belongs into that importer."""
MAY_SHARE_NAME = frozenset({"__init__.py", "__main__.py", "base.py"})
PARTICIPLES = re.compile(
    r"_*(told|said|made|ready|begun|placed|named|given|known|shown|held|kept|sent|come|came|left|lost|found|asked|"
    r"answered|looked|taken|stored|sound|written|drawn|settled|wanted|needed|joined|counted|ended|opened|closed|passed|"
    r"refused|heard|noted|brought|gathered|listed|cut|read)(_(up|of|by|in|on|off|out|from|to|back|again|before))?"
)
"""Names of functions that are a bare participle; a verb and a noun say what a function does."""
PRIVATE_WORDS = re.compile(
    r"\b(told|said|tells?|anew|afresh|whoever|nobody|somebody|whatever|heeds?|mends?|mended|shel(f|ves)|desks?|errands?|"
    r"creeps?|bells?|ropes?)\b|_(told|said)\b|\b(told|said)_",
    re.IGNORECASE,
)
"""Words that stand for a term of the field elsewhere."""

Figures = dict[str, float]


def product_files() -> list[Path]:
    """Return the modules of the product; the four folders that are linked into the package are counted once."""
    return sorted(
        file
        for folder in FOLDERS
        for file in folder.rglob("*.py")
        if not any(each.is_symlink() for each in file.parents)
    )


def module_name(file: Path) -> str:
    """Return the dotted name under which a file is imported."""
    base = PACKAGE.parent if file.is_relative_to(PACKAGE) else ROOT
    parts = [part for part in file.relative_to(base).with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[:1] == ["prefect_dispatch"] else ["prefect_dispatch", *parts])


def imported_names(tree: ast.AST) -> set[str]:
    """Return the dotted names that a module imports, wherever it does, for types included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def import_graph(trees: dict[Path, ast.Module]) -> dict[Path, set[Path]]:
    """Return the modules that each module imports."""
    by_name = {module_name(file): file for file in trees}
    return {
        file: {by_name[name] for name in imported_names(tree) if name in by_name} - {file}
        for file, tree in trees.items()
    }


def modules_in_cycles(graph: dict[Path, set[Path]]) -> int:
    """Return the number of modules from which an import leads back to themselves."""

    def reachable(start: Path) -> set[Path]:
        seen: set[Path] = set()
        queue = [*graph[start]]
        while queue:
            file = queue.pop()
            if file not in seen:
                seen.add(file)
                queue += graph[file]
        return seen

    return sum(file in reachable(file) for file in graph)


def count_tokens(text: str, tree: ast.Module) -> int:
    """Return the number of tokens of code: names, operators, numbers and strings, without comments and docstrings."""
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    kinds = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
    return sum(
        token.type in kinds and not (token.type == tokenize.STRING and token.start[0] in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def widest_folder(files: list[Path]) -> int:
    """Return the largest number of modules and sub-packages in one folder."""
    entries = Counter(file.parent for file in files if file.name != "__init__.py")
    entries.update(file.parent.parent for file in files if file.name == "__init__.py")
    return max(count for folder, count in entries.items() if folder != ROOT)


def is_protocol(node: ast.AST) -> bool:
    """Return whether a node defines a protocol."""
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)


def figures(*, with_item_path: bool = True) -> Figures:
    """Return the figures of this checkout, by their names.

    Args:
        with_item_path: Whether to run a job for the number of modules that one item's run enters.
    """
    texts = {file: file.read_text(encoding="utf-8") for file in product_files()}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    lines = {file: len(text.splitlines()) for file, text in texts.items()}
    graph = import_graph(trees)
    importers: dict[Path, set[Path]] = defaultdict(set)
    for file, imported in graph.items():
        for each in imported:
            importers[each].add(file)
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [
        node.name
        for node in nodes
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("__")
    ]
    shared_names = Counter(file.name for file in texts if file.name not in MAY_SHARE_NAME)
    words = sum(len(PRIVATE_WORDS.findall(text)) for text in texts.values())
    found: Figures = {
        "modules": len(texts),
        "tokens": sum(count_tokens(text, trees[file]) for file, text in texts.items()),
        "modules in import cycles": modules_in_cycles(graph),
        "widest folder": widest_folder([*texts]),
        "longest module": max(lines.values()),
        "protocols": sum(map(is_protocol, nodes)),
        "functions named by a participle, %": round(
            100 * sum(bool(PARTICIPLES.fullmatch(name)) for name in functions) / len(functions), 1
        ),
        "private words per 1,000 lines": round(1000 * words / sum(lines.values()), 1),
        "modules with one basename": sum(count for count in shared_names.values() if count > 1),
        "small modules with one importer": sum(
            len(importers[file]) == 1 and lines[file] < SMALL for file in texts if file.name != "__init__.py"
        ),
    }
    if with_item_path:
        entered, fan_out = entered_modules()
        found["modules on one item's way"] = len(entered)
        found["of these, fan-out to stored answer"] = len(fan_out)
        found["of these in tasks, calls, executors"] = sum(each.startswith(FAN_OUT) for each in fan_out)
    return found


def worse(found: Figures, baseline: Figures) -> list[str]:
    """Return a sentence for each figure that is worse than in the baseline; for each of them, less is better.

    Example:
        >>> worse({"modules": 3, "tokens": 8}, {"modules": 2, "tokens": 8})
        ['modules: 3, where the baseline has 2']
    """
    return [
        f"{name}: {value:g}, where the baseline has {baseline[name]:g}"
        for name, value in found.items()
        if value > baseline.get(name, float("inf"))
    ]


def main() -> int:
    """Print the figures; compare them with the baseline, or write it, if asked to."""
    parser = argparse.ArgumentParser(description="Print the figures of the structure of the product code.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the baseline")
    action.add_argument("--update", action="store_true", help="write the baseline")
    options = parser.parse_args()
    found = figures()
    for name, value in found.items():
        print(f"{name}: {value:g}")
    if options.update:
        BASELINE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    problems = worse(found, json.loads(BASELINE.read_text(encoding="utf-8"))) if options.check else []
    if problems:
        print("\nWorse than benchmarks/structure.json:", *problems, sep="\n- ")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
