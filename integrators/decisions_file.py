"""File in which people's decisions are stored, and which every later run applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from filelock import FileLock
from pydantic import AfterValidator, ValidationError

from prefect_dispatch.errors import JobError
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.validation_messages import explain_errors
from prefect_dispatch.security.escaping import strip_control_chars
from prefect_dispatch.serialization.durable_files import write_atomically
from prefect_dispatch.serialization.json_text import canonical_json
from prefect_dispatch.serialization.strict_yaml import MAX_BYTES, YamlError, decode, load_with_positions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.models.decisions import IdentityNormalizer

LOCK_S = 60
"""Seconds to wait for another run's lock on the file; a write takes only a moment."""
MAX_PROBLEMS = 5
"""Maximum number of problems of a file in one message."""


def _validate_file_name(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character, which a file name can't have")
    return text


FileName = Annotated[str, AfterValidator(_validate_file_name)]
"""Path of a file, validated."""


@dataclass(frozen=True)
class DecisionsFile:
    """File of decisions, in YAML or JSON.

    Each of its documents (separated by `---`) has the decisions of one time; where two documents decide on the same
    thing, the later one counts. Additions are appended as a document of their own, so everything that people wrote
    stays unchanged, comments included.
    """

    path: Path
    """The path; the file need not exist yet."""
    normalize: IdentityNormalizer = canonical_json
    """Normalizes identities: two spellings with the same result are one record."""

    def load(self) -> Decisions:
        """Return the decisions in the file; none if there is no file yet.

        Raises:
            JobError: If the file can't be read, has other content, or contradicts itself.
        """
        return self._parse(self._read_text())

    def add(self, decisions: Decisions) -> Decisions:
        """Append the decisions that the file doesn't have yet, atomically and under a file lock.

        If two reviewers decide on the same thing, the first decision counts.

        Args:
            decisions: The decisions.

        Returns:
            The decisions that were not added because they contradict the file.

        Raises:
            JobError: If the file can't be written, or has other content.
        """
        path = self.path.resolve()  # a symbolic link stays; its target is written
        try:
            with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_S):
                # Read again under the lock: another run may have added decisions since.
                text = self._read_text()
                existing = self._parse(text)
                new = decisions.without(existing, normalize=self.normalize)
                if new != Decisions():
                    write_atomically(path, map(str.encode, [*_document_prefix(text), new.text()]))
                return decisions.contradicted_by(existing, normalize=self.normalize)
        except OSError as error:
            raise JobError(
                f"The decisions file {str(self.path)!r} can't be written: {error.strerror or error}."
            ) from None

    def _read_text(self) -> str:
        try:
            with self.path.open("rb") as file:
                return decode(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return ""
        except YamlError as error:
            raise JobError(f"The decisions file {str(self.path)!r} can't be read: {error}.") from None
        except OSError as error:
            raise JobError(f"The decisions file {str(self.path)!r} can't be read: {error.strerror}.") from None

    def _parse(self, text: str) -> Decisions:
        parts: list[Decisions] = []
        try:
            for each in load_with_positions(text):
                data = {} if each.value is None else each.value
                try:
                    parts.append(Decisions.model_validate(data))
                except ValidationError as error:
                    found = explain_errors(error, data, lambda path: str(each.position.find(path)))  # noqa: B023 -- called at once
                    raise JobError(
                        f"The decisions file {self.path.name!r} is not a mapping of 'same', 'different' and 'fields': "
                        f"{strip_control_chars(' '.join(found[:MAX_PROBLEMS]))}"
                    ) from None
        except YamlError as error:
            raise JobError(
                f"The decisions file {self.path.name!r} can't be used: {strip_control_chars(str(error))}."
            ) from None
        if found := [sentence for each in parts for sentence in each.contradictions(self.normalize)]:
            wrong = strip_control_chars("; ".join(found[:MAX_PROBLEMS]))
            raise JobError(f"The decisions file {self.path.name!r} contradicts itself: {wrong}.")
        return Decisions().combine(*parts, normalize=self.normalize)


def _document_prefix(text: str) -> Iterator[str]:
    """Yield the text that precedes an appended document: the present content and a separator."""
    if text.strip():
        yield from (text, "---\n" if text.endswith("\n") else "\n---\n")
