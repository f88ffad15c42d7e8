"""Application of changes onto their common base, one after another, each onto the merge of those before it.

Also the patch of the merged tree, and the table of files that several changes touch.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.integrators.merge_branches.three_way import (
    REGULAR,
    MergedTree,
    display_path,
    list_differences,
    merge_trees,
    parent_folders,
    replace_entries,
)
from prefect_dispatch.models.brief import find_needed
from prefect_dispatch.models.ledger import Document, Ref, Table, make_ref
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.workspaces.git import MAIL, NAME, ObjectStore, create_with_alternates
from prefect_dispatch.workspaces.patches import create_commit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_branches.three_way import Conflict, Difference, Differences, Doubt, Entry
    from prefect_dispatch.models.outcome import Change, Outcome
    from prefect_dispatch.workspaces.git import Git


class Branch(NamedTuple):
    """Change of one outcome, as a commit of its own on the base."""

    ref: Ref
    """The outcome that made the change."""
    change: Change
    """The change."""
    commit: str
    """The id of the commit."""
    files: Differences
    """The files that it changes."""
    needs: tuple[Ref, ...] = ()
    """The changes that it starts from directly: its base is their merge, with all that these start from."""


Needs = Mapping[str, Sequence[str]]
"""For each brief the names of those that it needs, for the same item."""
NO_NEEDS: Needs = {}


class OrderedChanges(NamedTuple):
    """Changes of all outcomes, in the order in which they are merged."""

    branches: tuple[Branch, ...]
    """The changes to merge: non-empty ones, without duplicates."""
    duplicates: dict[Ref, Ref]
    """Outcomes whose change equals that of an earlier outcome, with that outcome."""
    unchanged: tuple[Ref, ...]
    """Outcomes with an answer but without a change."""


def common_base(outcomes: Sequence[Outcome], needs: Needs = NO_NEEDS) -> str:
    """Return the commit that all changes are based on, apart from those that start from others.

    Args:
        outcomes: The outcomes.
        needs: The briefs that each brief needs.

    Raises:
        DispatchError: If they have different bases, or there is no change.
    """
    first: dict[str, Ref] = {}
    for outcome in sorted(outcomes, key=lambda each: Ref.of(each).order):
        if outcome.change and not needs.get(outcome.brief):
            first.setdefault(outcome.change.base, Ref.of(outcome))
    if len(first) > 1:
        (one, ref), (other, another), *_ = first.items()
        raise DispatchError(
            f"{str(ref)!r} began from commit {one[:12]}, and {str(another)!r} from {other[:12]}; changes are merged "
            "onto one base: name a commit or a tag as 'base', and run the job again."
        )
    if not first:
        raise DispatchError(
            "No outcome has a change of a repository to merge; use a coding agent or a 'shell' that has a workspace."
        )
    return next(iter(first))


def order_changes(git: Git, outcomes: Iterable[Outcome], needs: Needs = NO_NEEDS) -> OrderedChanges:
    """Return the changes in merge order: by the briefs' priority, the items' priority, then brief and item.

    A change that starts from others comes after them.

    Args:
        git: The repository; each change is written to it as a commit that no branch and no tag references.
        outcomes: The outcomes, in any order.
        needs: The briefs that each brief needs.

    Raises:
        DispatchError: If a change starts from another commit than the merge of what it needs.
    """
    branches, equal, idle = list[Branch](), dict[Ref, Ref](), list[Ref]()
    first: dict[tuple[str, str], Ref] = {}
    outcomes = [*outcomes]
    known = {Ref.of(outcome) for outcome in outcomes}
    for outcome, needed in _order_by_needs(sorted(outcomes, key=_merge_order), find_needed(needs)):
        ref, change = Ref.of(outcome), outcome.change
        if outcome.status != "succeeded":
            continue
        if change and needed:
            _require_start(git, outcome, change, needed, needs)
        if change is None or not change.files:
            idle.append(ref)
        elif (original := first.setdefault((change.base, change.tree), ref)) != ref:
            equal[ref] = original
        else:
            commit = create_commit(git, change, single_line(str(ref)))
            # Of several candidates it starts from the one that is among the outcomes.
            direct = (make_ref(name, outcome.item) for name in sorted(needs.get(outcome.brief, ())))
            on = tuple(dict.fromkeys(equal.get(each, each) for each in direct if each in known and each not in idle))
            branches.append(Branch(ref, change, commit, list_differences(git, change.base, commit), on))
    return OrderedChanges(tuple(branches), equal, tuple(sorted(idle, key=lambda each: each.order)))


def _order_by_needs(
    outcomes: Sequence[Outcome], all_needs: Mapping[str, frozenset[str]]
) -> Iterator[tuple[Outcome, list[Outcome]]]:
    """Yield outcomes, each after those that it needs, and with them; otherwise in the order that they have."""
    by_item: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_item[outcome.item].append(outcome)
    placed: set[Ref] = set()
    for outcome in outcomes:
        names = all_needs.get(outcome.brief, frozenset())
        needed = [each for each in by_item[outcome.item] if each.brief in names] if names else []
        # Fewer needs come first: what something needs has all of its needs, and at least one less.
        for each in (*sorted(needed, key=lambda each: len(all_needs[each.brief])), outcome):
            if (ref := Ref.of(each)) not in placed:
                placed.add(ref)
                own = all_needs.get(each.brief, frozenset())
                yield each, [other for other in by_item[each.item] if other.brief in own] if own else []


def _require_start(git: Git, outcome: Outcome, change: Change, needed: Sequence[Outcome], needs: Needs) -> None:
    """Write the commit that a change starts from, and check that it is the merge of what it needs.

    The changes that it needs, and the commits that these start from, are in the repository already.
    """
    start, _ = merge_needed(git, needed, needs)
    if start != change.base:
        raise DispatchError(
            f"{str(Ref.of(outcome))!r} began from commit {change.base[:12]}, and what it needs results in "
            f"{start[:12]}; run the job again."
        )


def merge_needed(git: Git, outcomes: Sequence[Outcome], needs: Needs) -> tuple[str, tuple[ResolvedConflict, ...]]:
    """Merge the changes that some work starts from; return the commit, and the conflicts, resolved by priority.

    The commit depends on the merged tree and the base alone.

    Args:
        git: The repository.
        outcomes: The outcomes that the work needs, each with those that it needs itself.
        needs: The briefs that each brief needs.
    """
    repo = RepositoryBase.of(git, common_base(outcomes, needs))
    state, conflicts = initial_state(repo), list[ResolvedConflict]()
    for outcome, _ in _order_by_needs(sorted(outcomes, key=_merge_order), find_needed(needs)):
        if (change := outcome.change) and change.files:
            ref = Ref.of(outcome)
            commit = create_commit(git, change, single_line(str(ref)))
            branch = Branch(ref, change, commit, list_differences(git, change.base, commit))
            step = apply_change(repo, state, branch, "priority", lambda _state, _branch, _tree: "no agent is asked")
            state = step.state
            conflicts += step.conflicts
    commit = repo.base if state.tree == repo.tree else repo.commit(state.tree, (repo.base,), "Merge of what is needed")
    return commit, tuple(conflicts)


def single_line(text: str) -> str:
    r"""Return a text as one line, with secrets redacted and control characters removed, for a commit message.

    Example:
        >>> single_line("one\ntwo")
        'one two'
    """
    return redact(" ".join(strip_control_chars(text).split()))


def _merge_order(outcome: Outcome) -> tuple[object, ...]:
    """Return the sort key of an outcome in merge order."""
    return (-outcome.brief_priority, -outcome.item_priority, Ref.of(outcome).order)


ConflictRule = Literal["priority", "skip", "fail", "agent"]
"""Rule that resolves a conflict.

`priority`: the change that comes first counts. `skip`: the later change is left out whole. `fail`: as `skip`, and the
run fails. `agent`: an agent combines both changes.
"""


class MergeState(NamedTuple):
    """State of the merge after some changes."""

    commit: str
    """The commit."""
    tree: str
    """The id of its tree."""
    branches: tuple[Branch, ...] = ()
    """The changes that are merged in it, in order."""
    present: frozenset[Ref] = frozenset()
    """The changes whose content it has: those merged, and those that added nothing to it."""


class ResolvedConflict(NamedTuple):
    """Conflict with its resolution."""

    conflict: Conflict
    """The conflict."""
    rule: ConflictRule
    """The rule that resolved it."""
    against: tuple[Ref, ...]
    """The merged changes that the change conflicts with."""
    result: Entry | None
    """The file after the resolution; None: no file."""


class AppliedChange(NamedTuple):
    """Result of applying one change."""

    branch: Branch
    """The change."""
    status: Literal["merged", "equal", "overridden", "refused"]
    """`merged`; `equal`: its content exists already; `overridden`: left out for an earlier change; `refused`: left out
    because the acceptance command fails with it."""
    state: MergeState
    """The state of the merge after it."""
    conflicts: tuple[ResolvedConflict, ...] = ()
    """Its conflicts, resolved."""
    superseded_by: Ref | None = None
    """The change that counts instead of it."""
    reason: str = ""
    """The explanation, for the ledger."""
    doubts: tuple[tuple[Doubt, tuple[Ref, ...]], ...] = ()
    """The doubts about files that it was merged into, each with the earlier changes of that file."""


Resolution = dict[str, "Entry | None"] | str
"""Result of having an agent combine two changes: the file for each path, or the reason why there is none."""
Resolver = Callable[[MergeState, Branch, MergedTree], Resolution]
"""Function that combines two changes of the same lines: it returns the file for each conflict with markers."""
ChangeApplier = Callable[[MergeState, Branch], AppliedChange]
"""Function that applies one more change to a state."""


def initial_state(repo: RepositoryBase) -> MergeState:
    """Return the state before any change."""
    return MergeState(repo.base, repo.tree)


def apply_change(
    repo: RepositoryBase, state: MergeState, branch: Branch, rule: ConflictRule, resolve: Resolver
) -> AppliedChange:
    """Return the result of applying one more change.

    Args:
        repo: The repository and the base.
        state: The state after the changes before it.
        branch: The change.
        rule: The rule that resolves conflicts.
        resolve: Combines changes where the rule is `agent`.
    """
    # 1. Leave out a change that starts from one that is left out; else merge its tree, and on conflicts what is merged
    #    already has precedence.
    if missing := next((ref for ref in branch.needs if ref not in state.present), None):
        return AppliedChange(branch, "overridden", state, (), missing, f"needs: {missing} is left out")
    merge = merge_trees(repo.git, branch.change.base, state.tree, branch.change.tree)
    resolved = tuple(_resolve_by_rule(merge.conflicts, state, "priority" if rule == "agent" else rule))
    # 2. `skip` and `fail` leave out a change with a conflict.
    if resolved and rule in ("skip", "fail"):
        return _skip_change(state, branch, resolved)
    # 3. `agent` replaces the files that have conflict markers.
    tree = merge.tree
    if rule == "agent" and any(conflict.marked for conflict in merge.conflicts):
        files = resolve(state, branch, merge)
        if isinstance(files, str):
            return _skip_change(state, branch, tuple(_resolve_by_rule(merge.conflicts, state, "skip")), f" ({files})")
        tree = replace_entries(repo.git, tree, files)
        resolved = tuple(
            each._replace(rule="agent", result=files[each.conflict.path]) if each.conflict.marked else each
            for each in resolved
        )
    applied = _commit_merge(repo, state, branch, tree, resolved)
    doubts = tuple((each, tuple(_touching_refs(each.path, state))) for each in merge.doubts)
    return applied._replace(doubts=doubts) if applied.status == "merged" else applied


def _commit_merge(
    repo: RepositoryBase, state: MergeState, branch: Branch, tree: str, resolved: tuple[ResolvedConflict, ...]
) -> AppliedChange:
    """Return the result of a merged change: a merge commit, or that the change adds nothing."""
    if tree != state.tree:
        commit = repo.commit(tree, (state.commit, branch.commit), single_line(f"Merge {branch.ref}"))
        after = MergeState(commit, tree, (*state.branches, branch), state.present | {branch.ref})
        return AppliedChange(branch, "merged", after, resolved, None, _merge_reason(resolved))
    if resolved:
        return _skip_change(state, branch, resolved, ", and nothing of it is left")
    original = next(each for each in state.branches if not each.files.keys().isdisjoint(branch.files))
    state = state._replace(present=state.present | {branch.ref})
    return AppliedChange(branch, "equal", state, (), original.ref, "all that it changes stands there already")


def _skip_change(
    state: MergeState, branch: Branch, resolved: tuple[ResolvedConflict, ...], suffix: str = ""
) -> AppliedChange:
    """Return the result of a change that is left out for its conflicts."""
    winner = resolved[0].against[0]
    return AppliedChange(
        branch, "overridden", state, resolved, winner, f"{resolved[0].rule}: {_describe_conflicts(resolved)}{suffix}"
    )


def _merge_reason(resolved: Sequence[ResolvedConflict]) -> str:
    """Return the rules that resolved conflicts, and the first conflict, as a reason; empty without conflicts."""
    return f"{'; '.join(sorted({each.rule for each in resolved}))}: {_describe_conflicts(resolved)}" if resolved else ""


def _describe_conflicts(resolved: Sequence[ResolvedConflict]) -> str:
    """Return the first conflict in words, and the number of the others."""
    conflict, _, against, _ = resolved[0]
    more = f" and {len(resolved) - 1} more" if len(resolved) > 1 else ""
    return f"contradicts {', '.join(map(str, against))} on {display_path(conflict.path)!r} ({conflict.kind}){more}"


def _resolve_by_rule(
    conflicts: Sequence[Conflict], state: MergeState, rule: ConflictRule
) -> Iterator[ResolvedConflict]:
    """Yield conflicts resolved by a rule: by precedence for each group of lines, or in favour of what is merged."""
    for conflict in conflicts:
        result = conflict.result if rule == "priority" else conflict.ours
        yield ResolvedConflict(conflict, rule, tuple(_touching_refs(conflict.path, state)), result)


def _touching_refs(path: str, state: MergeState) -> Iterator[Ref]:
    """Yield the merged changes that touch a path, or a path above or below it."""
    for branch in state.branches:
        if any(_paths_overlap(each, path) for each in branch.files):
            yield branch.ref


def _paths_overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


PATCH_NAME = "merged.patch"
"""File name of the patch."""
_DIFF = (
    *("diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=histogram", "--no-indent-heuristic"),
)


def merged_patch(repo: RepositoryBase, tree: str) -> Document:
    """Return the merged tree as a patch of the base; files that aren't UTF-8 are binary patches.

    The diff runs in a temporary repository, so that neither the configuration of the user's repository nor attributes
    in its checkout affect it.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-dispatch-") as folder:
        scratch = create_with_alternates(ObjectStore.of(repo.git), Path(folder, "git"), checkout=False)
        diff = scratch.output_bytes(*_DIFF, repo.base, tree)
        try:
            text = diff.decode()
        except UnicodeDecodeError:  # a report is UTF-8: have git encode every file as binary
            Path(folder, "git", "info", "attributes").write_text("* -diff\n", encoding="utf-8")
            text = scratch.output_bytes(*_DIFF, repo.base, tree).decode()
    return Document(name=PATCH_NAME, title="What was merged, as a patch", text=text)


OverlapKind = Literal["same content", "same lines", "near lines", "same file", "whole file", "file and folder"]
"""How close two changes come in a file."""
NEAR: OverlapKind = "near lines"
"""The kind of an overlap of changes that are near each other."""
NEAR_LINES = 3
"""Lines: changes at most this far apart belong together for a reader, like the context lines of a patch."""
_HUNK_RANGE = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+", re.MULTILINE)
_NOTE = (
    "Every pair of changes that touch one file, as they were before anything was merged. `same content`: both leave "
    "the same there. `same lines`: their lines meet, and may be a conflict. `near lines`: they are within "
    f"{NEAR_LINES}. `same file`: further apart. `whole file`: one of them adds, deletes or replaces it, or it has no "
    "lines."
)


def overlaps_table(repo: RepositoryBase, branches: Sequence[Branch]) -> Table:
    """Return the table of files that several changes touch."""
    pairs = sorted(_overlapping_pairs(repo, branches), key=lambda each: (each[0], each[1].ref.order, each[2].ref.order))
    rows: list[dict[str, JsonValue]] = [
        {"path": display_path(path), "one": str(one.ref), "other": str(other.ref), "how": how}
        for path, one, other, how in pairs
    ]
    return Table(name="overlaps", title="What several changes touch", rows=tuple(rows), note=_NOTE)


def _overlapping_pairs(
    repo: RepositoryBase, branches: Sequence[Branch]
) -> Iterator[tuple[str, Branch, Branch, OverlapKind]]:
    """Yield the pairs of changes that touch one path, and how close they come there."""
    # 1. Index the changes by the files that they touch, and by the folders of the files that they leave.
    touching: dict[str, list[Branch]] = defaultdict(list)
    folders: dict[str, list[Branch]] = defaultdict(list)
    for branch in branches:
        for path in branch.files:
            touching[path].append(branch)
        for folder in {*parent_folders(path for path, each in branch.files.items() if each.after)}:
            folders[folder].append(branch)
    # 2. Compare the changes of each path in pairs; one that starts from the other has seen it.
    starts = starting_points(branches)
    for path, group in touching.items():
        ranges = [_replaced_ranges(repo, each.files[path]) if len(group) > 1 else None for each in group]
        for (one, left), (other, right) in combinations(zip(group, ranges, strict=True), 2):
            if one.ref in starts[other.ref] or other.ref in starts[one.ref]:
                continue
            is_same = one.files[path].after == other.files[path].after
            yield path, one, other, "same content" if is_same else _overlap_kind(left, right)
        for branch in group:
            for other in folders[path] if branch.files[path].after else ():
                if other is not branch and branch.ref not in starts[other.ref] and other.ref not in starts[branch.ref]:
                    yield path, branch, other, "file and folder"


def starting_points(branches: Iterable[Branch]) -> dict[Ref, frozenset[Ref]]:
    """Return all changes that each of some changes starts from, directly or through others.

    Args:
        branches: The changes, each after those that it starts from.
    """
    found: dict[Ref, frozenset[Ref]] = {}
    for branch in branches:
        found[branch.ref] = frozenset(branch.needs).union(*(found.get(ref, ()) for ref in branch.needs))
    return found


def _overlap_kind(left: list[tuple[int, int]] | None, right: list[tuple[int, int]] | None) -> OverlapKind:
    """Return how close two changes come in a file, from the ranges of base lines that they replace."""
    if left is None or right is None:
        return "whole file"
    distance = min((max(a, c) - min(b, d) for a, b in left for c, d in right), default=NEAR_LINES + 1)
    return "same lines" if distance <= 0 else NEAR if distance <= NEAR_LINES else "same file"


def _replaced_ranges(repo: RepositoryBase, change: Difference) -> list[tuple[int, int]] | None:
    """Return the ranges of base lines that a change replaces, as (start, end); None if the file has no lines."""
    before, after = change
    if not before or not after or not {before.mode, after.mode} <= {*REGULAR}:
        return None
    diff = repo.git.output_bytes("diff", "--no-ext-diff", "--no-textconv", "-U0", before.blob, after.blob)
    if b"\nBinary files " in diff:
        return None
    ranges = [(int(each[1]), int(each[2] or 1)) for each in _HUNK_RANGE.finditer(diff)]
    # An insertion replaces no line: it is the empty range between its line and the next.
    return [(first, first + count) if count else (first + 1, first + 1) for first, count in ranges]


class RepositoryBase(NamedTuple):
    """Repository and the base commit of a merge."""

    git: Git
    """The repository; only its object store is written to."""
    base: str
    """The base commit."""
    tree: str
    """The id of its tree."""
    date: str
    """Its commit date, as git's environment variables take it."""

    @classmethod
    def of(cls, git: Git, base: str) -> RepositoryBase:
        """Return the repository with a commit as base."""
        tree, date = git.output("show", "-s", "--format=%T %ct", base).split()
        return cls(git, base, tree, f"@{date} +0000")

    def commit(self, tree: str, parents: Sequence[str], message: str) -> str:
        """Write a commit and return its id.

        The id depends on tree, parents and message alone: author, committer and dates are fixed, so that writing the
        commit again has the same result.
        """
        identity = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", NAME), ("EMAIL", MAIL), ("DATE", self.date))
        }
        parent_options = [word for parent in parents for word in ("-p", parent)]
        return self.git.output("commit-tree", tree, *parent_options, stdin=f"{message}\n".encode(), env=identity)
