"""A merge held against the outcomes once more: made again of what its ledger says is in it, and asking nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.integrators.branches.folding import Resolved, Step, start, stepped
from prefect_dispatch.integrators.branches.ground import Ground
from prefect_dispatch.integrators.branches.history import Describer, write_history
from prefect_dispatch.integrators.branches.lining import base_of, lined_up
from prefect_dispatch.integrators.branches.patches import PATCH, merged_patch
from prefect_dispatch.integrators.branches.proving import unproven
from prefect_dispatch.integrators.branches.tables import ACCEPTANCE, CONFLICTS
from prefect_dispatch.integrators.branches.trees import Entry, differences, shown
from prefect_dispatch.ledger import Ref, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.branches.folding import Rule, Standing
    from prefect_dispatch.integrators.branches.lining import Branch
    from prefect_dispatch.integrators.branches.three_way import Merged
    from prefect_dispatch.ledger import Merge
    from prefect_dispatch.models import Brief, Outcome
    from prefect_dispatch.workspaces.git import Git

_REMOVING = ("skip", "fail")


def refused(merge: Merge) -> list[Ref]:
    """Return the outcomes that were left out, and of which the acceptance command said that they break the whole."""
    red = {str(row.get("after")) for row in _rows(merge, ACCEPTANCE) if row.get("said") == "red"}
    left = [Ref.of(row) for row in merge.ledger if row.disposition == "overridden" and row.by is None]
    return [ref for ref in left if str(ref) in red]


def unlike(
    git: Git, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], rule: Rule
) -> Iterator[Violation]:
    """Yield where a merge isn't what follows from the changes that it says are in it.

    Args:
        git: The repository.
        merge: The merge, which may have been tampered with.
        outcomes: The outcomes.
        briefs: What was asked.
        rule: What decides conflicts.
    """
    value = cast("dict[str, JsonValue]", merge.value)
    base = base_of(outcomes)
    ground, lined = Ground.of(git, base), lined_up(git, outcomes)
    merged = {Ref.of(row) for row in merge.ledger if row.disposition == "merged"}
    branches = [each for each in lined.branches if each.ref in merged]
    evidence, standing, steps = _Evidence(merge), start(ground), list[Step]()
    for branch in branches:
        steps.append(stepped(ground, standing, branch, "agent" if rule == "agent" else "priority", evidence))
        standing = steps[-1].after
    describe = Describer(outcomes, briefs)
    commit = write_history(ground, branches, steps, describe).commit
    told = str(value.get("commit"))
    # An earlier version's commits said nothing of goals; and without the briefs, what they say can't be made again.
    unknown = not all(describe.knows(each.ref) for each in branches) and _tree(git, told) == standing.tree
    commit = told if unknown or told == standing.commit else commit
    for name, known in (("base", base), ("commit", commit), ("tree", standing.tree)):
        if value.get(name) != known:
            yield _violation(f"/{name}", f"of the changes that the ledger says are in it follows {known}.")
    if [each.text for each in merge.documents if each.name == PATCH] != [merged_patch(ground, standing.tree).text]:
        yield _violation("/", f"its document {PATCH!r} isn't what was merged.")
    made = {shown(path): each.after for path, each in differences(git, base, standing.tree).items()}
    files = cast("list[dict[str, JsonValue]]", value["files"])
    listed = {str(each["path"]): _entry(f"{each['mode']} {each['blob']}".strip()) for each in files}
    for path in sorted({path for path in {*made, *listed} if made.get(path) != listed.get(path)}):
        yield _violation("/files", f"{path!r} isn't what was merged.")
    yield from unproven(ground, standing.commit, branches, evidence.contested)


class _Evidence:
    """The table of conflicts, as what decides them."""

    def __init__(self, merge: Merge) -> None:
        self._results: dict[tuple[str, str], Entry | None] = {}
        self.contested: dict[str, frozenset[str]] = {}
        for row in _rows(merge, CONFLICTS):
            path, change = str(row["path"]), str(row["change"])
            if row["rule"] not in _REMOVING:
                self._results[change, path] = _entry(str(row["result"]))
                took_part = {change, *map(str, row["against"])}
                self.contested[path] = self.contested.get(path, frozenset()) | took_part

    def __call__(self, standing: Standing, branch: Branch, merged: Merged) -> Resolved:  # noqa: ARG002 -- the signature of every resolver
        marked = [each.path for each in merged.conflicts if each.marked]
        return Resolved({path: self._results.get((str(branch.ref), path)) for path in marked})


def _tree(git: Git, commit: str) -> str:
    """Return the tree of a commit, or nothing where there is no such commit."""
    code, said = git.tried("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{tree}}")
    return "" if code else said.decode().strip()


def _rows(merge: Merge, name: str) -> list[dict[str, Any]]:
    return [row for table in merge.tables if table.name == name for row in table.rows]


def _entry(text: str) -> Entry | None:
    return Entry(*text.split(" ")) if text else None


def _violation(where: str, message: str) -> Violation:
    return Violation(law="precision", where=where, message=message)
