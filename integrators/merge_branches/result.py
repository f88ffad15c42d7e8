"""Result of a merge of branches, and what is shown of it: merged value, ledger rows, flags, tables and documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.integrators.base import gaps, unanswered
from prefect_dispatch.integrators.merge_branches.apply import (
    NEAR,
    NEAR_LINES,
    PATCH_NAME,
    initial_state,
    starting_points,
)
from prefect_dispatch.integrators.merge_branches.three_way import Entry, display_path, list_differences, read_blob
from prefect_dispatch.models.ledger import Document, FieldRow, Flag, LedgerRow, Loser, Ref, Table
from prefect_dispatch.security.escaping import (
    escape_cell,
    escape_paragraph,
    escape_unprintable,
    fence_text,
    markdown_table,
    shorten,
    strip_control_chars,
)
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.serialization.json_values import pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from prefect_dispatch.integrators.merge_branches.apply import (
        AppliedChange,
        Branch,
        MergeState,
        OrderedChanges,
        RepositoryBase,
        ResolvedConflict,
    )
    from prefect_dispatch.integrators.merge_branches.candidates import Selection
    from prefect_dispatch.integrators.merge_branches.publish_branch import History
    from prefect_dispatch.integrators.merge_branches.queries import Verdict
    from prefect_dispatch.integrators.merge_branches.three_way import Conflict, DoubtKind
    from prefect_dispatch.models.outcome import Outcome
    from prefect_dispatch.workspaces.git import Git


@dataclass(frozen=True)
class MergeResult:
    """Result of a merge of branches."""

    repo: RepositoryBase
    """The repository and the base."""
    outcomes: Sequence[Outcome]
    """All outcomes, those without an answer included, sorted by brief and item."""
    changes: OrderedChanges
    """Their changes, in merge order."""
    steps: Sequence[AppliedChange]
    """The result of applying each change, in merge order."""
    verdicts: Sequence[Verdict]
    """The results of the acceptance command, in the order of the runs."""
    history: History
    """The commits to publish."""
    selection: Selection
    """The candidates that were chosen, where there are any."""

    @property
    def final_state(self) -> MergeState:
        """The final state of the merge."""
        return self.steps[-1].state if self.steps else initial_state(self.repo)

    @property
    def accepted(self) -> bool | None:
        """Whether the final state passes the acceptance command; None if unknown."""
        status = next((each.status for each in self.verdicts if each.tree == self.final_state.tree), "unknown")
        return None if status == "unknown" else status == "green"

    @property
    def conflicts(self) -> list[tuple[AppliedChange, ResolvedConflict]]:
        """Each conflict that affected the result, with the later of the changes."""
        return list_conflicts(self.steps)

    @cached_property
    def files(self) -> list[ChangedFile]:
        """The files that differ from the base, sorted by path."""
        changes = list_differences(self.repo.git, self.repo.base, self.final_state.commit)
        files: list[ChangedFile] = []
        starts = starting_points(self.changes.branches)
        for path, (_, after) in sorted(changes.items()):
            touching = [each for each in self.final_state.branches if path in each.files]
            exact = [each for each in touching if each.files[path].after == after]
            # A change that starts from others has their content in its own.
            started = {ref for each in exact for ref in starts[each.ref]}
            exact += [each for each in touching if each.ref in started and each not in exact]
            files.append(ChangedFile(path, after, tuple(exact or touching), bool(exact)))
        return files


def list_conflicts(steps: Sequence[AppliedChange]) -> list[tuple[AppliedChange, ResolvedConflict]]:
    """Return each conflict of changes that weren't refused, with the later of the changes."""
    return [(step, each) for step in steps if step.status != "refused" for each in step.conflicts]


class ChangedFile(NamedTuple):
    """File that differs from the base."""

    path: str
    """Its path."""
    after: Entry | None
    """The merged file; None: deleted."""
    sources: tuple[Branch, ...]
    """The changes that it comes from: those that leave exactly this file, else all merged ones that touch it."""
    is_verbatim: bool
    """Whether it is exactly what those changes leave, not combined from several."""

    @property
    def entry(self) -> dict[str, JsonValue]:
        """Its entry in the merged value."""
        return {**file_entry(self.path, self.after), "by": [str(each.ref) for each in self.sources]}


def file_entry(path: str, entry: Entry | None) -> dict[str, JsonValue]:
    """Return the entry of a file in a merged value."""
    mode, blob = entry or Entry("", "")
    return {"path": display_path(path), "mode": mode, "blob": blob}


_RULE = "merge_branches"


_MAX_LISTED = 20


"""Maximum number of conflicts that a sentence lists."""


def merged_value(result: MergeResult) -> dict[str, JsonValue]:
    """Return the merged value: the merged commit and its files, each agent's answer, and the gaps."""
    answers: list[JsonValue] = [
        {"brief": each.brief, "item": each.item, "value": each.value}
        for each in result.outcomes
        if each.status == "succeeded"
    ]
    return {
        "base": result.repo.base,
        "commit": result.history.commit,
        "tree": result.final_state.tree,
        "accepted": result.accepted,
        "files": [each.entry for each in result.files],
        "said": answers,
        "gaps": gaps(result.outcomes),
    }


def field_rows(result: MergeResult, value: Mapping[str, JsonValue]) -> Iterator[FieldRow]:
    """Yield the sources of each part of the value."""
    # The commit as a whole comes from all merged changes; without any, from all outcomes with an answer.
    answered = [each for each in result.outcomes if each.status == "succeeded"]
    all_sources = tuple(each.ref for each in result.final_state.branches) or tuple(map(Ref.of, answered))
    for name in ("base", "commit", "tree", "accepted"):
        yield FieldRow(path=pointer(name), winner=value[name], rule=f"{_RULE}:{name}", sources=all_sources)
    losers = _losers(result)
    for at, file in enumerate(result.files):
        yield FieldRow(
            path=pointer("files", at),
            winner=file.entry,
            losers=tuple(losers.get(file.path, {}).values()),
            rule=_field_rule(result, file),
            sources=tuple(each.ref for each in file.sources),
        )
    for at, outcome in enumerate(answered):
        path = pointer("said", at, "value")
        yield FieldRow(path=path, winner=outcome.value, rule="kept", sources=(Ref.of(outcome),))


def ledger_rows(result: MergeResult) -> Iterator[LedgerRow]:
    """Yield the disposition of each outcome."""
    rows = {step.branch.ref: _ledger_row(step) for step in result.steps}
    for ref, original in result.changes.duplicates.items():
        rows[ref] = LedgerRow(**ref.model_dump(), disposition="duplicate_of", by=original, reason="the same change")
    for ref in result.changes.unchanged:
        rows[ref] = LedgerRow(**ref.model_dump(), disposition="merged", reason="changed nothing")
    # A chosen candidate says why it was, whatever became of it; the others were never merged.
    for ref, why in result.selection.reasons.items():
        rows[ref] = rows[ref].model_copy(update={"reason": "; ".join(filter(None, (why, rows[ref].reason)))})
    rows |= result.selection.rows
    for outcome in result.outcomes:
        yield unanswered(outcome) or rows[Ref.of(outcome)]


def flags(result: MergeResult, overlaps: Table) -> Iterator[Flag]:
    """Yield a flag for each conflict, and for each file that two changes touch so closely that it is to be read.

    Args:
        result: The result of the merge.
        overlaps: The table of files that several changes touch.
    """
    places = {file.path: at for at, file in enumerate(result.files)}
    yield from _conflict_flags(result, places)
    yield from _doubt_flags(result, places)
    yield from _near_flags(result, overlaps)


def _file_pointer(places: Mapping[str, int], path: str) -> str:
    """Return the JSON Pointer to the entry of a file, or to all files if it doesn't differ from the base."""
    return pointer("files", places[path]) if path in places else pointer("files")


def _near_flags(result: MergeResult, overlaps: Table) -> Iterator[Flag]:
    """Yield a flag for each file in which two merged changes touch lines that are near each other."""
    places = {display_path(file.path): at for at, file in enumerate(result.files)}
    merged = {str(branch.ref): branch.ref for branch in result.final_state.branches}
    for row in overlaps.rows:
        path, one, other = (str(row[name]) for name in ("path", "one", "other"))
        if row["how"] == NEAR and one in merged and other in merged and path in places:
            yield Flag(
                path=pointer("files", places[path]),
                kind=NEAR.replace(" ", "_"),
                text=path,
                message=f"{one} and {other} change lines that are at most {NEAR_LINES} apart; read them together.",
                sources=(merged[one], merged[other]),
            )


def _doubt_flags(result: MergeResult, places: Mapping[str, int]) -> Iterator[Flag]:
    """Yield a flag for each file that was merged without a conflict, and about which there is a doubt."""
    for step in result.steps:
        for doubt, against in step.doubts if step.status == "merged" else ():
            others = ", ".join(map(str, against))
            yield Flag(
                path=_file_pointer(places, doubt.path),
                kind=doubt.kind.replace(" ", "_"),
                text=display_path(doubt.path),
                message=DOUBTS[doubt.kind].format(change=step.branch.ref, others=others, text=doubt.text),
                sources=(*against, step.branch.ref),
            )


DOUBTS: dict[DoubtKind, str] = {
    "same name": "{change} and {others} both define {text} here, and no lines conflict.",
    "syntax": "By {text}, the syntax of {change} conflicts with {others} here, and no lines do.",
    "merged by syntax": "Lines of {change} and {others} conflict here; {text} merged them by their syntax.",
}
"""What each kind of doubt means, for messages."""


def _conflict_flags(result: MergeResult, places: Mapping[str, int]) -> Iterator[Flag]:
    """Yield a flag for each file in which a change was overridden, or changes were combined by an agent."""
    for step, each in result.conflicts:
        refs = (*each.against, step.branch.ref)
        yield Flag(
            path=_file_pointer(places, each.conflict.path),
            kind="conflict",
            text=display_path(each.conflict.path),
            message=f"{step.branch.ref} contradicts {', '.join(map(str, each.against))} here ({each.conflict.kind}); "
            f"{RULE_EFFECTS[each.rule]}.",
            sources=refs,
        )


RULE_EFFECTS = {
    "priority": "what comes first counts",
    "skip": "the change that comes later is left out",
    "fail": "the change that comes later is left out, and the run has failed",
    "agent": "an agent brought both together",
}


"""What each rule does about a conflict, for messages."""


def shortfalls(result: MergeResult) -> Iterator[str]:
    """Yield what could not be done, one sentence each."""
    yield from result.selection.shortfalls
    for ref in result.changes.unchanged:
        yield f"{ref} changed nothing in the repository."
    for step in result.steps:
        if step.status == "refused":
            yield f"{step.branch.ref} is left out: {step.reason.splitlines()[0][:300]}"
        elif step.status == "overridden" and not (step.conflicts and step.conflicts[0].rule == "priority"):
            yield f"{step.branch.ref} is left out: {step.reason}."
    if any(each.status == "unknown" for each in result.verdicts):
        untested = next(each for each in result.verdicts if each.status == "unknown")
        yield (
            f"The acceptance command could not be run on what is merged up to {untested.after}: "
            f"{untested.details[:300]}"
        )
    if result.accepted is False:
        base = next((each for each in result.verdicts if each.tree == result.repo.tree), None)
        base_fails = base is not None and base.status == "red" and bool(result.final_state.branches)
        as_well = ", and on the base as well: no single change can be blamed" if base_fails else ""
        yield f"The acceptance command fails on what is merged{as_well}; see the table 'acceptance'."


def failure_message(result: MergeResult) -> str:
    """Return why the run fails although agents answered; empty if it doesn't."""
    conflicts = [
        f"{step.branch.ref} contradicts {', '.join(map(str, each.against))} on {display_path(each.conflict.path)!r} "
        f"({each.conflict.kind})"
        for step, each in result.conflicts
        if each.rule == "fail"
    ]
    more = f"; and {len(conflicts) - _MAX_LISTED} more" if len(conflicts) > _MAX_LISTED else ""
    return (
        f"Changes contradict each other ('on_conflict' is 'fail'): {'; '.join(conflicts[:_MAX_LISTED])}{more}."
        if conflicts
        else ""
    )


def _ledger_row(step: AppliedChange) -> LedgerRow:
    """Return the ledger row of a change."""
    # Both `overridden` and `refused` have the ledger's `overridden`; only the former has a `by`.
    end = {"equal": "duplicate_of", "refused": "overridden"}.get(step.status, step.status)
    row = {**step.branch.ref.model_dump(), "disposition": end, "by": step.superseded_by, "reason": step.reason}
    return LedgerRow.model_validate(row)


def _field_rule(result: MergeResult, file: ChangedFile) -> str:
    """Return the rule that produced a file, for its field row."""
    rules = [each.rule for _, each in result.conflicts if each.conflict.path == file.path]
    if file.is_verbatim:
        return f"{_RULE}:equal" if len(file.sources) > 1 else "kept"
    doubts = {each.kind for step in result.steps for each, _ in step.doubts if each.path == file.path}
    if "merged by syntax" in doubts and "agent" not in rules:
        return f"{_RULE}:syntax"
    return f"{_RULE}:{'agent' if 'agent' in rules else 'lines'}"


def _losers(result: MergeResult) -> dict[str, dict[Entry | None, Loser]]:
    """Return the files that a rule removed, by path and content."""
    losers: dict[str, dict[Entry | None, Loser]] = {}
    for step, each in result.conflicts:
        path, theirs = each.conflict.path, each.conflict.theirs
        if each.result != theirs:
            by_entry = losers.setdefault(path, {})
            before = by_entry[theirs].sources if theirs in by_entry else ()
            by_entry[theirs] = Loser(value=dict(file_entry(path, theirs)), sources=(*before, step.branch.ref))
    return losers


CONFLICTS, ACCEPTANCE = "conflicts", "acceptance"


STATUS_LABELS = {"merged": "merged", "equal": "already there", "overridden": "left out", "refused": "left out"}


_ACCEPTANCE_NOTE = (
    "What the acceptance command said of the base, or of all changes up to one. `green`: it passed. `red`: it failed. "
    "`unknown`: it could not be run."
)


_CONFLICTS_NOTE = (
    "Where a change contradicts what was merged before it. `base`, `ours` (what was merged), `theirs` (the change) and "
    "`result` are a file's mode and content, by the names that git has for them; empty where there is none. The texts "
    "are excerpts."
)


def branches_table(result: MergeResult) -> Table:
    """Return the table of changes, in merge order."""
    rows: list[dict[str, JsonValue]] = [
        {
            "place": at,
            "change": str(step.branch.ref),
            "end": STATUS_LABELS[step.status],
            "by": str(step.superseded_by) if step.superseded_by else "",
            "files": len(step.branch.files),
            "conflicts": len(step.conflicts),
            "commit": result.history.changes[step.branch.ref],
            "reason": step.reason,
        }
        for at, step in enumerate(result.steps, 1)
    ]
    note = "In the order in which they were merged: by priority, then in the order of every list. The first one wins."
    return Table(name="branches", title="What became of each change", rows=tuple(rows), note=note)


def conflicts_table(result: MergeResult) -> Table:
    """Return the table of conflicts."""
    rows = conflict_rows(result.repo.git, result.steps)
    return Table(name=CONFLICTS, title="What changes contradict each other on", rows=rows, note=_CONFLICTS_NOTE)


def acceptance_table(result: MergeResult) -> Table:
    """Return the table of acceptance results."""
    rows: list[dict[str, JsonValue]] = [
        {"after": each.after, "said": each.status, "tree": each.tree, "told": each.details} for each in result.verdicts
    ]
    return Table(name=ACCEPTANCE, title="What the acceptance command said", rows=tuple(rows), note=_ACCEPTANCE_NOTE)


def conflict_rows(git: Git, steps: Sequence[AppliedChange]) -> tuple[dict[str, JsonValue], ...]:
    """Return the rows of the table of conflicts.

    Args:
        git: The repository.
        steps: The results of applying the changes.
    """
    return tuple(
        {
            "path": display_path(each.conflict.path),
            "kind": each.conflict.kind,
            "change": str(step.branch.ref),
            "against": [str(ref) for ref in each.against],
            "rule": each.rule,
            "base": entry_text(each.conflict.base),
            "ours": entry_text(each.conflict.ours),
            "theirs": entry_text(each.conflict.theirs),
            "result": entry_text(each.result),
            **_excerpts(git, each.conflict),
        }
        for step, each in list_conflicts(steps)
    )


def entry_text(entry: Entry | None) -> str:
    """Return a file as its mode and object id; empty if there is no file."""
    return " ".join(entry) if entry else ""


MAX_EXCERPT_CHARS = 600
"""Maximum length of an excerpt in characters."""
_HUNK = re.compile(
    rb"^<<<<<<< ours\r?\n(?P<ours>.*?)^\|{7} base\r?\n(?P<base>.*?)^=======\r?\n(?P<theirs>.*?)^>>>>>>> theirs\r?$",
    re.MULTILINE | re.DOTALL,
)


def _excerpts(git: Git, conflict: Conflict) -> dict[str, JsonValue]:
    """Return the conflicting parts of base, ours and theirs as text; of a file without lines its beginning."""
    sides = {"base": conflict.base, "ours": conflict.ours, "theirs": conflict.theirs}
    if not conflict.marked:
        return {f"{side}_text": _truncate(read_blob(git, entry)) for side, entry in sides.items()}
    hunks = [*_HUNK.finditer(read_blob(git, conflict.marked))]
    return {f"{side}_text": _truncate(b"\n".join(each[side] for each in hunks)) for side in sides}


def _truncate(data: bytes) -> str:
    """Return data as text without secrets, truncated; of binary data only the size."""
    if b"\0" in data:
        return f"({len(data):,} bytes, no text)"
    return shorten(redact(data[: 4 * MAX_EXCERPT_CHARS].decode("utf-8", "replace")), MAX_EXCERPT_CHARS)


REVIEW = "review.md"


"""File name of the review."""
_MAX_SHOWN = 50


"""Maximum number of conflicts shown with both sides; the table has all of them."""


def review_document(result: MergeResult, tables: Sequence[Table], rules: str) -> Document:
    """Return the review document; all text in it that comes from agents or files is escaped.

    Args:
        result: The result of the merge.
        tables: The tables of changes, overlaps, conflicts and acceptance results.
        rules: The rules in words.
    """
    branches, overlaps, conflicts, acceptance = (table.rows for table in tables)
    columns = ("place", "change", "end", "by", "files", "reason")
    parts = [
        "# What was merged",
        _summary(result),
        *(f"- {escape_paragraph(each)}" for each in shortfalls(result)),
        "## Changes",
        "In the order in which they were merged; where two contradict each other, the first one counts first.",
        markdown_table(
            ("", "change", "ended", "instead", "files", "why"), [[row[name] for name in columns] for row in branches]
        ),
        *_unmerged_lines(result),
        "## Files",
        markdown_table(("file", "", "by"), [*_file_rows(result)])
        if result.final_state.branches
        else "Nothing is changed.",
        "## What several changes touch",
        markdown_table(
            ("file", "one", "other", "how"),
            [[escape_unprintable(str(cell)) for cell in row.values()] for row in overlaps],
        )
        if overlaps
        else "No two changes touch one file.",
        "## Conflicts",
        *([] if conflicts else ["No change contradicts another."]),
        *(part for row in conflicts[:_MAX_SHOWN] for part in _conflict_section(row)),
        *([f"… and {len(conflicts) - _MAX_SHOWN} more in the table `conflicts`."] if conflicts[_MAX_SHOWN:] else []),
        "## Acceptance",
        markdown_table(("after", "said"), [(row["after"], row["said"]) for row in acceptance])
        if acceptance
        else "No command was run.",
        *(_quote(f"After {row['after']}", str(row["told"])) for row in acceptance if row["told"]),
        "## Rules",
        escape_paragraph(rules),
    ]
    return Document(name=REVIEW, title="What was merged, for a reviewer", text="\n\n".join(parts) + "\n")


def _summary(result: MergeResult) -> str:
    merged, total = len(result.final_state.branches), len(result.steps)
    passes = {True: " The acceptance command passes.", False: " The acceptance command fails.", None: ""}
    return (
        f"{merged} of {total} changes are merged onto `{result.repo.base[:12]}` as `{result.history.commit[:12]}`."
        f"{passes[result.accepted]} To try it: `git apply --index {PATCH_NAME}` where the former is checked out."
    )


def _unmerged_lines(result: MergeResult) -> Iterator[str]:
    """Yield lines about the outcomes whose changes were not merged one by one."""
    for ref, original in result.changes.duplicates.items():
        yield f"- {escape_paragraph(f'{ref} is the same change as {original}.')}"
    for choice in result.selection.choices:
        yield f"- {escape_paragraph(f'{Ref.of(choice.winner)} is chosen: {choice.reason}.')}"
    for each in result.outcomes:
        if each.status != "succeeded":
            why = f": {each.error.kind}: {each.error.message}" if each.error else ""
            yield f"- {escape_paragraph(f'{each.brief}/{each.item} has no change ({each.status}{why}).')}"


def _file_rows(result: MergeResult) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the review's table of files."""
    for file in result.files:
        how = "" if file.is_verbatim else "put together"
        yield (
            escape_unprintable(display_path(file.path)),
            how if file.after else "deleted",
            ", ".join(str(each.ref) for each in file.sources),
        )


def _conflict_section(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the review's paragraphs on one conflict: the rule, and the text of each side."""
    yield f"### {escape_cell(escape_unprintable(row['path']))}"
    change, against = row["change"], ", ".join(row["against"])
    yield escape_paragraph(f"{change} contradicts {against} ({row['kind']}): {RULE_EFFECTS[row['rule']]}.")
    for name, side in (("Base", "base"), (against, "ours"), (change, "theirs")):
        text = "\n".join(strip_control_chars(line) for line in row[f"{side}_text"].splitlines())
        yield _quote(name, text) if row[f"{side}_text"] else f"{escape_paragraph(name)}: nothing."


def _quote(name: str, text: str) -> str:
    return f"{escape_paragraph(name)}:\n\n{fence_text(text, 'text')}"
