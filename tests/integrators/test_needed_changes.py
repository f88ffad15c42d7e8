"""Changes that start from the merge of others, merged without agents."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch import Brief
from prefect_dispatch.errors import DispatchError
from tests.integrators.repos import Nobody, change_of, done, ends, files_at, merging, repository, rows, value

if TYPE_CHECKING:
    from pathlib import Path

BRIEFS = [
    Brief(name="core", instructions="x", writes=("a",)),
    Brief(name="idle", instructions="x"),
    Brief(name="top", instructions="x", needs=("core", "idle")),
]
NEEDS = {brief.name: brief.needs for brief in BRIEFS}


@pytest.mark.slow
def test_a_change_of_a_merge(tmp_path: Path) -> None:
    """It comes after what it needs, whatever its priority, and its base is that merge; any order gives one merge."""
    git, base = repository(tmp_path, {"a": "1\n"})
    core, idle = done("core", change_of(git, base, {"a": "2\n"})), done("idle", change_of(git, base, {"a": "1\n"}))
    integrator = merging(git)
    start = integrator.merge_start([core, idle], NEEDS)
    top = done("top", change_of(git, start, {"a": "3\n", "b/c": "4\n"}), priority=9)
    merges = [integrator.merge_asking(BRIEFS, [*order], Nobody()) for order in permutations([core, idle, top])]
    assert all(merge == merges[0] for merge in merges)
    assert ends(merges[0]) == dict.fromkeys(NEEDS, ("merged", None))
    assert files_at(git, value(merges[0])["commit"]) == {"a": b"3\n", "b/c": b"4\n"}
    assert rows(merges[0], "overlaps") == rows(merges[0], "conflicts") == []
    assert [*integrator.verify(merges[0], [core, idle, top], BRIEFS)] == []
    assert integrator.merge_start([idle], NEEDS) == base


def test_a_change_of_another_start(tmp_path: Path) -> None:
    """A change that was made from something else than what it needs is refused."""
    git, base = repository(tmp_path, {"a": "1\n"})
    core, idle = done("core", change_of(git, base, {"a": "2\n"})), done("idle", None)
    top = done("top", change_of(git, base, {"b": "3\n"}))
    with pytest.raises(DispatchError, match=r"'top/repo' began from commit .*, and what it needs results in"):
        merging(git).merge_asking(BRIEFS, [core, idle, top], Nobody())
