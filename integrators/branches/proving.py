"""Whether a merge is one of the changes that it says: looked at from its result, not from how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.integrators.branches.trees import REGULAR, content, differences, shown
from prefect_dispatch.ledger import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prefect_dispatch.integrators.branches.ground import Ground
    from prefect_dispatch.integrators.branches.lining import Branch
    from prefect_dispatch.integrators.branches.trees import Entry


def unproven(
    ground: Ground, commit: str, branches: Sequence[Branch], contested: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    """Yield where the tree of a merge doesn't follow from the changes that are said to be in it.

    Args:
        ground: The repository and the base.
        commit: What is said to be the merge.
        branches: The changes that are said to be in it.
        contested: The paths on which there was a conflict, as they are told, and the changes that took part in it.
    """
    made = differences(ground.git, ground.base, commit)
    for path, (_, after) in made.items():
        touching = [each for each in branches if path in each.files]
        if not touching:
            yield _violation("precision", shown(path), "it is changed, and no change that was merged touches it.")
        elif all(each.files[path].after != after for each in touching) and shown(path) not in contested:
            yield from _invented(ground, path, after, touching)
    for branch in branches:
        for path, (before, after) in branch.files.items():
            now = made[path].after if path in made else before
            if now == after or str(branch.ref) in contested.get(shown(path), frozenset()):
                continue
            others = [each for each in branches if each is not branch and path in each.files]
            if not others and not _near(path, contested):
                yield _violation("recall", str(branch.ref), f"what it makes of {shown(path)!r} isn't there.")
            elif others and shown(path) not in contested:
                yield from _lost(ground, branch, path, now)


def _invented(ground: Ground, path: str, after: Entry | None, touching: Sequence[Branch]) -> Iterator[Violation]:
    """Yield lines of a file that was put together which none of the changes, and not the base, has."""
    known = set[bytes]().union(*(_lines(ground, side) for each in touching for side in each.files[path]))
    if new := _lines(ground, after) - known:
        line = min(new).decode("utf-8", "replace")[:80]
        yield _violation("precision", shown(path), f"the line {line!r} is in no change that was merged.")


def _lost(ground: Ground, branch: Branch, path: str, now: Entry | None) -> Iterator[Violation]:
    """Yield lines that a change adds to a file and that aren't in the merge, though nothing contradicts them."""
    before, after = branch.files[path]
    if lost := _lines(ground, after) - _lines(ground, before) - _lines(ground, now):
        line = min(lost).decode("utf-8", "replace")[:80]
        yield _violation("recall", str(branch.ref), f"the line {line!r} of {shown(path)!r} isn't there.")


def _lines(ground: Ground, entry: Entry | None) -> set[bytes]:
    return set(content(ground.git, entry).splitlines()) if entry and entry.mode in REGULAR else set()


def _near(path: str, contested: Mapping[str, frozenset[str]]) -> bool:
    path = shown(path)
    return any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in contested)


def _violation(law: str, where: str, message: str) -> Violation:
    return Violation.model_validate({"law": law, "where": where, "message": message})
