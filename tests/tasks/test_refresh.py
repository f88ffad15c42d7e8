"""Patterns of names: what they mean, and that those which mean nothing are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch import Brief, Item
from prefect_dispatch.errors import JobError
from prefect_dispatch.tasks.work_item import WorkItem, build_work, fingerprints_to_refresh
from prefect_dispatch.testing import ScriptedExecutor

BRIEFS = [Brief(name=name, instructions=f"Say the {name}.") for name in ("terms", "year")]
KEYS = ["mit.txt", "notes/a.txt", "notes/b.md", "app/[id].ts"]


def works() -> list[WorkItem]:
    """Return two briefs for each key."""
    return build_work(BRIEFS, [Item(key=key, value=key) for key in KEYS], ScriptedExecutor({}))


def meant(refresh: bool | str | list[str]) -> set[str]:  # noqa: FBT001 -- the forms of the parameter
    """Return the names of the work that is asked again."""
    again = fingerprints_to_refresh(works(), refresh)
    return {str(each.ref) for each in works() if each.fingerprint in again}


@pytest.mark.parametrize(
    ("refresh", "names"),
    [
        pytest.param("mit.txt", {"terms/mit.txt", "year/mit.txt"}, id="an-item"),
        pytest.param("terms/mit.txt", {"terms/mit.txt"}, id="a-name"),
        pytest.param(["*/mit.txt"], {"terms/mit.txt", "year/mit.txt"}, id="any-brief"),
        pytest.param(["year/*"], {f"year/{key}" for key in KEYS}, id="a-brief"),
        pytest.param("year", {f"year/{key}" for key in KEYS}, id="the-name-of-a-brief"),
        pytest.param(["notes/a.txt"], {"terms/notes/a.txt", "year/notes/a.txt"}, id="a-key-with-a-slash"),
        pytest.param(["notes/*.t?t", "terms/*.md"], {"terms/notes/a.txt", "year/notes/a.txt", "terms/notes/b.md"}),
        pytest.param(["year/app/[id].ts"], {"year/app/[id].ts"}, id="brackets-for-themselves"),
        pytest.param([], set[str](), id="no-pattern"),
        pytest.param(False, set[str](), id="nothing"),
    ],
)
def test_a_pattern_means_names_and_keys(refresh: bool | str | list[str], names: set[str]) -> None:  # noqa: FBT001 -- see above
    """By its item, by brief and item, or as a glob of either."""
    assert meant(refresh) == names


def test_an_item_is_meant_before_a_brief() -> None:
    """Where an item has the name of a brief, no more is asked than is sure to be meant; nor does a glob mean briefs."""
    work = build_work(BRIEFS, [Item(key=key, value=key) for key in ("year", "a")], ScriptedExecutor({}))
    again = fingerprints_to_refresh(work, "year")
    assert [str(each.ref) for each in work if each.fingerprint in again] == ["terms/year", "year/year"]
    with pytest.raises(JobError, match="no work is called 'term\\?'"):
        fingerprints_to_refresh(work, "term?")


def test_everything_is_everything() -> None:
    """True means each of them, and so does a star."""
    assert meant(refresh=True) == meant("*") == {f"{brief.name}/{key}" for brief in BRIEFS for key in KEYS}


@pytest.mark.parametrize("pattern", ["mit.tx", "MIT.txt", "year/*.pdf", "", "notes"])
def test_a_pattern_that_means_nothing_is_refused(pattern: str) -> None:
    """It is named, with names that come near."""
    with pytest.raises(
        JobError, match=r"refresh: no work is called .*; of 8 names near are '(terms|year)/.*, .*, "
    ) as e:
        fingerprints_to_refresh(works(), ["mit.txt", pattern])
    assert repr(pattern) in str(e.value)


@given(key=st.text(min_size=1, max_size=20))
def test_every_item_is_meant_by_its_own_key(key: str) -> None:
    """Whatever characters a key has, written down as it is it means its item."""
    work = build_work(BRIEFS, [Item(key=key, value="x")], ScriptedExecutor({}))
    assert fingerprints_to_refresh(work, key) == {each.fingerprint for each in work}
    assert fingerprints_to_refresh(work, f"year/{key}") == {work[1].fingerprint}
