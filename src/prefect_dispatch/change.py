"""What work changed in a repository: whole in itself, so that it can be applied to any clone that has its base."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import StringConstraints, field_validator

from prefect_dispatch.strict import Strict

ObjectId = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
"""The name of an object in git: 40 or 64 hexadecimal characters."""
_BASE64 = "base64:"


class ChangedFile(Strict):
    """One file that was changed."""

    path: str
    """Its path from the top of the repository, `/` between names; bytes that are no UTF-8 as `\\xNN`."""
    change: Literal["added", "modified", "deleted", "typechange"]
    """What happened to it; what was renamed is deleted there and added here."""
    mode: str = ""
    """Its mode afterwards, as git has it: `100644`, `100755`, `120000`; empty if it was deleted."""


class Change(Strict):
    """The difference between the commit that work began from and what it left.

    Example:
        >>> Change(base="0" * 40, tree="1" * 40).files
        ()
    """

    base: ObjectId
    """The commit that it began from."""
    tree: ObjectId
    """The tree that it left."""
    patch: str = ""
    """`git diff --binary --full-index --no-renames` between them; see `written` for one that is no UTF-8."""
    files: tuple[ChangedFile, ...] = ()
    """What the patch touches, in the order of the paths."""

    @field_validator("patch")
    @classmethod
    def _can_be_read(cls, patch: str) -> str:
        if patch.startswith(_BASE64):
            try:
                base64.b64decode(patch[len(_BASE64) :], validate=True)
            except binascii.Error:
                msg = "the patch is damaged: it is no base64"
                raise ValueError(msg) from None
        return patch

    @property
    def bytes(self) -> bytes:
        """The patch as git takes it."""
        if self.patch.startswith(_BASE64):
            return base64.b64decode(self.patch[len(_BASE64) :])
        return self.patch.encode()


def written(patch: bytes) -> str:
    r"""Return a patch as text: as it is, or, where it is no UTF-8, in base64 after `base64:`.

    Example:
        >>> written("é".encode()), written(b"\xff")
        ('é', 'base64:/w==')
    """
    try:
        text = patch.decode()
    except UnicodeDecodeError:
        return _BASE64 + base64.b64encode(patch).decode()
    return _BASE64 + base64.b64encode(patch).decode() if text.startswith(_BASE64) else text
