"""The file in which decisions are kept, and which every later run follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from filelock import FileLock
from pydantic import AfterValidator, ValidationError

from prefect_dispatch.decisions import Decisions
from prefect_dispatch.errors import JobError
from prefect_dispatch.fingerprint import canonical
from prefect_dispatch.inert import plain
from prefect_dispatch.whole import write
from prefect_dispatch.wrong_values import explain_errors
from prefect_dispatch.yaml_text import MAX_BYTES, YamlError, decode, read_documents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect_dispatch.decisions import Naming

LOCK_S = 60
"""How long to wait for another run that is writing to the file: it takes that a moment."""
MAX_SHOWN = 5
"""Problems of a file that are told at once."""


def _file_name(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character, which no file's name can")
    return text


FileName = Annotated[str, AfterValidator(_file_name)]
"""The path of a file."""


@dataclass(frozen=True)
class DecisionsFile:
    """A file of decisions, YAML or JSON.

    Each of its documents (`---` stands between them) holds decisions of one time: where two documents
    decide on the same, the later counts. What is added is a document of its own, so whatever
    people wrote stays as it is, comments included.
    """

    path: Path
    """Where it is, or is to be."""
    named: Naming = canonical
    """Says which spellings are one record."""

    def load(self) -> Decisions:
        """Return what was decided; nothing where there is no file yet.

        Raises:
            JobError: If it can't be read, holds something else, or contradicts itself.
        """
        return self._parsed(self._text())

    def add(self, decisions: Decisions) -> Decisions:
        """Add decisions on what the file doesn't decide yet, whole or not at all, whoever else adds to it meanwhile.

        Of two reviewers who decide on the same, the first one counts.

        Args:
            decisions: The decisions.

        Returns:
            Those of them that were not added, as the file says otherwise.

        Raises:
            JobError: If the file can't be written, or holds something else.
        """
        path = self.path.resolve()  # the file itself, where this is a link to it
        try:
            with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_S):
                text = self._text()
                known = self._parsed(text)
                new = decisions.without(known, named=self.named)
                if new != Decisions():
                    write(path, [*_ended(text), new.text()])
                return decisions.against(known, named=self.named)
        except OSError as error:
            raise JobError(
                f"The decisions file {str(self.path)!r} can't be written: {error.strerror or error}."
            ) from None

    def _text(self) -> str:
        try:
            with self.path.open("rb") as file:
                return decode(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            return ""
        except YamlError as error:
            raise JobError(f"The decisions file {str(self.path)!r} can't be read: {error}.") from None
        except OSError as error:
            raise JobError(f"The decisions file {str(self.path)!r} can't be read: {error.strerror}.") from None

    def _parsed(self, text: str) -> Decisions:
        parts: list[Decisions] = []
        try:
            for each in read_documents(text):
                data = {} if each.value is None else each.value
                try:
                    parts.append(Decisions.model_validate(data))
                except ValidationError as error:
                    found = explain_errors(error, data, lambda path: str(each.place.find(path)))  # noqa: B023 -- called at once
                    raise JobError(
                        f"The decisions file {self.path.name!r} is no mapping of 'same', 'different' and 'fields': "
                        f"{plain(' '.join(found[:MAX_SHOWN]))}"
                    ) from None
        except YamlError as error:
            raise JobError(f"The decisions file {self.path.name!r} can't be used: {plain(str(error))}.") from None
        if found := [sentence for each in parts for sentence in each.contradictions(self.named)]:
            wrong = plain("; ".join(found[:MAX_SHOWN]))
            raise JobError(f"The decisions file {self.path.name!r} contradicts itself: {wrong}.")
        return Decisions().plus(*parts, named=self.named)


def _ended(text: str) -> Iterator[str]:
    """Yield what comes before another document."""
    if text.strip():
        yield from (text, "---\n" if text.endswith("\n") else "\n---\n")
