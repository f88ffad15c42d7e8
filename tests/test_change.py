"""A change in a repository, as it is stored: text where it can be, exact always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch.models.outcome import Change, encode_patch

BASE, TREE = "0" * 40, "1" * 64


@given(st.binary(max_size=200))
def test_a_patch_is_exact_whatever_its_bytes(patch: bytes) -> None:
    """What git is given again is what git wrote, after a way through JSON."""
    change = Change(base=BASE, tree=TREE, patch=encode_patch(patch))
    assert Change.model_validate_json(change.model_dump_json()).bytes == patch


def test_a_patch_that_begins_like_base64_is_kept_exact() -> None:
    """A text cannot be taken for bytes."""
    assert Change(base=BASE, tree=TREE, patch=encode_patch(b"base64:!")).bytes == b"base64:!"


def test_a_damaged_patch_is_told() -> None:
    """What is no base64 after the mark is refused as it is read."""
    with pytest.raises(ValidationError, match="it is no base64"):
        Change(base=BASE, tree=TREE, patch="base64:?")


@pytest.mark.parametrize("base", ["HEAD", "0" * 39, "G" * 40, "--upload-pack=x", ""])
def test_a_base_is_the_name_of_an_object(base: str) -> None:
    """Nothing that git would read as anything else passes."""
    with pytest.raises(ValidationError):
        Change(base=base, tree=TREE)
