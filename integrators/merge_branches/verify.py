"""Verification of a merge of branches from its result: the merge is repeated from the ledger and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from prefect_dispatch.integrators.merge_branches.apply import (
    PATCH_NAME,
    AppliedChange,
    RepositoryBase,
    Resolution,
    apply_change,
    common_base,
    initial_state,
    merged_patch,
    order_changes,
)
from prefect_dispatch.integrators.merge_branches.publish_branch import CommitMessages, write_history
from prefect_dispatch.integrators.merge_branches.result import ACCEPTANCE, CONFLICTS
from prefect_dispatch.integrators.merge_branches.three_way import (
    REGULAR,
    Entry,
    display_path,
    list_differences,
    read_blob,
)
from prefect_dispatch.models.ledger import Ref, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_branches.apply import Branch, ConflictRule, MergeState
    from prefect_dispatch.integrators.merge_branches.three_way import MergedTree
    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.ledger import Merge
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git


def tree_violations(
    repo: RepositoryBase, commit: str, branches: Sequence[Branch], contested: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    """Yield where the tree of a merge doesn't follow from the changes that the ledger lists as merged.

    Args:
        repo: The repository and the base.
        commit: The commit that is claimed to be the merge.
        branches: The changes that are claimed to be merged.
        contested: The paths with a conflict, as they are displayed, with the changes that took part in it.
    """
    changes = list_differences(repo.git, repo.base, commit)
    # 1. Precision: everything in the merge comes from a change.
    for path, (_, after) in changes.items():
        touching = [each for each in branches if path in each.files]
        if not touching:
            yield _violation(
                "precision", display_path(path), "it is changed, and no change that was merged touches it."
            )
        elif all(each.files[path].after != after for each in touching) and display_path(path) not in contested:
            yield from _unsourced_lines(repo, path, after, touching)
    # 2. Recall: everything in a change is in the merge, apart from conflicts.
    for branch in branches:
        for path, (before, after) in branch.files.items():
            merged_entry = changes[path].after if path in changes else before
            if merged_entry == after or str(branch.ref) in contested.get(display_path(path), frozenset()):
                continue
            others = [each for each in branches if each is not branch and path in each.files]
            if not others and not _is_near_conflict(path, contested):
                yield _violation("recall", str(branch.ref), f"what it makes of {display_path(path)!r} isn't there.")
            elif others and display_path(path) not in contested:
                yield from _missing_lines(repo, branch, path, merged_entry)


def _unsourced_lines(
    repo: RepositoryBase, path: str, after: Entry | None, touching: Sequence[Branch]
) -> Iterator[Violation]:
    """Yield a violation for lines of a merged file that are neither in the base nor in a change."""
    known_lines = set[bytes]().union(*(_line_set(repo, side) for each in touching for side in each.files[path]))
    if invented := _line_set(repo, after) - known_lines:
        line = min(invented).decode("utf-8", "replace")[:80]
        yield _violation("precision", display_path(path), f"the line {line!r} is in no change that was merged.")


def _missing_lines(repo: RepositoryBase, branch: Branch, path: str, merged_entry: Entry | None) -> Iterator[Violation]:
    """Yield a violation for lines that a change adds to a file and the merge lacks, although nothing conflicts."""
    before, after = branch.files[path]
    if missing := _line_set(repo, after) - _line_set(repo, before) - _line_set(repo, merged_entry):
        line = min(missing).decode("utf-8", "replace")[:80]
        yield _violation("recall", str(branch.ref), f"the line {line!r} of {display_path(path)!r} isn't there.")


def _line_set(repo: RepositoryBase, entry: Entry | None) -> set[bytes]:
    return set(read_blob(repo.git, entry).splitlines()) if entry and entry.mode in REGULAR else set()


def _is_near_conflict(path: str, contested: Mapping[str, frozenset[str]]) -> bool:
    """Return whether a path is above or below a path with a conflict."""
    path = display_path(path)
    return any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in contested)


def _violation(law: str, where: str, message: str) -> Violation:
    return Violation.model_validate({"law": law, "where": where, "message": message})


_REMOVING = ("skip", "fail")


def refused_outcomes(merge: Merge) -> list[Ref]:
    """Return the outcomes that are left out because the acceptance command fails with them, by the merge's evidence."""
    red = {str(row.get("after")) for row in _table_rows(merge, ACCEPTANCE) if row.get("said") == "red"}
    excluded = [Ref.of(row) for row in merge.ledger if row.disposition == "overridden" and row.by is None]
    return [ref for ref in excluded if str(ref) in red]


def merge_violations(
    git: Git, merge: Merge, outcomes: Sequence[Outcome], briefs: Sequence[Brief], rule: ConflictRule
) -> Iterator[Violation]:
    """Yield where a merge differs from the one that the changes in its ledger result in.

    Args:
        git: The repository.
        merge: The merge, which may have been tampered with.
        outcomes: The outcomes.
        briefs: The briefs of the job.
        rule: The rule that resolves conflicts.
    """
    value = cast("dict[str, JsonValue]", merge.value)
    base = common_base(outcomes)
    repo, changes = RepositoryBase.of(git, base), order_changes(git, outcomes)
    merged = {Ref.of(row) for row in merge.ledger if row.disposition == "merged"}
    branches = [each for each in changes.branches if each.ref in merged]
    # 1. Repeat the merge, with the conflicts resolved as the table says.
    evidence, state, steps = _Evidence(merge), initial_state(repo), list[AppliedChange]()
    for branch in branches:
        steps.append(apply_change(repo, state, branch, "agent" if rule == "agent" else "priority", evidence))
        state = steps[-1].state
    # 2. Rebuild the commits, and compare commit, tree, patch and files with those that the merge claims.
    describe = CommitMessages(outcomes, briefs)
    commit = write_history(repo, branches, steps, describe).commit
    claimed_commit = str(value.get("commit"))
    # Commits of earlier versions have no goals in their messages, and without the briefs, messages can't be rebuilt.
    unverifiable = (
        not all(describe.has_goal(each.ref) for each in branches) and _tree_id(git, claimed_commit) == state.tree
    )
    commit = claimed_commit if unverifiable or claimed_commit == state.commit else commit
    for name, expected in (("base", base), ("commit", commit), ("tree", state.tree)):
        if value.get(name) != expected:
            yield _imprecision(f"/{name}", f"the changes that the ledger lists as merged result in {expected}.")
    if [each.text for each in merge.documents if each.name == PATCH_NAME] != [merged_patch(repo, state.tree).text]:
        yield _imprecision("/", f"its document {PATCH_NAME!r} isn't what was merged.")
    actual = {display_path(path): each.after for path, each in list_differences(git, base, state.tree).items()}
    files = cast("list[dict[str, JsonValue]]", value["files"])
    claimed = {str(each["path"]): _parse_entry(f"{each['mode']} {each['blob']}".strip()) for each in files}
    for path in sorted({path for path in {*actual, *claimed} if actual.get(path) != claimed.get(path)}):
        yield _imprecision("/files", f"{path!r} isn't what was merged.")
    # 3. Trace the tree itself to the changes, independently of how it was merged.
    yield from tree_violations(repo, state.commit, branches, evidence.contested)


class _Evidence:
    """Resolver that replays the merge's table of conflicts."""

    def __init__(self, merge: Merge) -> None:
        self._results: dict[tuple[str, str], Entry | None] = {}
        self.contested: dict[str, frozenset[str]] = {}
        for row in _table_rows(merge, CONFLICTS):
            path, change = str(row["path"]), str(row["change"])
            if row["rule"] not in _REMOVING:
                self._results[change, path] = _parse_entry(str(row["result"]))
                participants = {change, *map(str, row["against"])}
                self.contested[path] = self.contested.get(path, frozenset()) | participants

    def __call__(self, state: MergeState, branch: Branch, merged: MergedTree) -> Resolution:  # noqa: ARG002 -- the signature of every resolver
        marked = [each.path for each in merged.conflicts if each.marked]
        return Resolution({path: self._results.get((str(branch.ref), path)) for path in marked})


def _tree_id(git: Git, commit: str) -> str:
    """Return the id of a commit's tree, or nothing if there is no such commit."""
    code, output = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{tree}}")
    return "" if code else output.decode().strip()


def _table_rows(merge: Merge, name: str) -> list[dict[str, Any]]:
    return [row for table in merge.tables if table.name == name for row in table.rows]


def _parse_entry(text: str) -> Entry | None:
    return Entry(*text.split(" ")) if text else None


def _imprecision(where: str, message: str) -> Violation:
    return Violation(law="precision", where=where, message=message)
