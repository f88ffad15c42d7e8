"""The end of a run: documents, a verdict of the integrator's, and the merged value put where it is to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from prefect_dispatch import Brief, Collate, Limits, Merge, dispatch
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.integrators.base import Delivery
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Document
from prefect_dispatch.tasks.work_item import build_work
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

pytestmark = pytest.mark.usefixtures("store")
BRIEF = Brief(name="note", instructions="Say it.")
QUICK = Limits(retries=0)


class Delivers:
    """Collates, and then does what it is told to."""

    def __init__(self, delivery: Delivery | BaseException, *, failed: str = "", document: str = "review.md") -> None:
        """Keep what is to come of it."""
        self.delivery, self.failed, self.document = delivery, failed, document
        self.delivered: list[tuple[JsonValue, Path]] = []

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Return the answers, a document and perhaps a verdict."""
        documents = (Document(name=self.document, title="Review", text="# Read me"),)
        merged = Collate().merge(briefs, outcomes)
        return merged.model_copy(update={"documents": documents, "failed": self.failed})

    def deliver(self, value: JsonValue, folder: Path) -> Delivery:
        """Note what is delivered."""
        self.delivered.append((value, folder))
        if isinstance(self.delivery, BaseException):
            raise self.delivery
        return self.delivery


def test_a_value_is_delivered_once_it_is_audited(tmp_path: Path) -> None:
    """Once, with the job's folder; the run says so; its document is a file and an artifact."""
    integrator = Delivers(Delivery(done="It is on the shelf."))
    said = ScriptedExecutor({"a": "A"})
    items = [Item(key="a", value=1)]
    report = dispatch(
        [BRIEF], items, executor=said, integrator=integrator, limits=QUICK, folder=str(tmp_path), out="out"
    )
    assert integrator.delivered == [(report.value, tmp_path)]
    assert (report.status, report.message) == ("complete", "1 of 1 answered. It is on the shelf.")
    assert (tmp_path / "out" / "review.md").read_text() == "# Read me"
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["note-review"])))
    assert [each.data for each in found] == ["# Read me"]


@pytest.mark.slow
@pytest.mark.parametrize("delivery", [Delivery(shortfall="No room."), OSError("No room."), SystemExit("No room.")])
def test_what_could_not_be_delivered_is_a_gap(delivery: Delivery | BaseException) -> None:
    """The value stands in the report, which says what is lacking."""
    integrator = Delivers(delivery, document="other.txt")
    report = dispatch([BRIEF], ["a"], executor=ScriptedExecutor(lambda _: "A"), integrator=integrator, limits=QUICK)
    assert (report.status, len(report.shortfalls)) == ("gaps", 1)
    assert report.message.endswith("No room.")
    assert report.value is not None


@pytest.mark.slow
def test_a_run_that_an_integrator_fails_delivers_nothing() -> None:
    """The run is failed for the reason that the integrator gives, with its value."""
    integrator = Delivers(Delivery(done="Never."), failed="A required part is red.")
    with pytest.raises(DispatchFailed, match=r"^A required part is red. \(1 of 1 answered\)$") as caught:
        dispatch([BRIEF], ["a"], executor=ScriptedExecutor(lambda _: "A"), integrator=integrator, limits=QUICK)
    assert integrator.delivered == []
    assert caught.value.report.value is not None


def test_a_command_is_not_passed_over() -> None:
    """Who runs no commands refuses a brief that has one, before anything is asked."""
    brief = Brief.model_validate({"name": "count", "instructions": "Count.", "command": {"run": "wc"}})
    said = ScriptedExecutor(lambda _: "A")
    with pytest.raises(JobError, match="Brief 'count' has a command, and ScriptedExecutor runs none"):
        dispatch([brief], ["a"], executor=said, limits=QUICK)
    assert said.calls == 0


class Sited(ScriptedExecutor):
    """Answers by what lies in a file."""

    file = Path()

    def external_inputs(self, brief: Brief, item: Item) -> JsonValue:
        """Return what stands in the file, and what was given."""
        return [self.file.read_text(), brief.instructions, item.key]


def test_what_an_answer_depends_on_is_part_of_its_identity(tmp_path: Path) -> None:
    """Another content of a file is other work; the brief reads as it does for the item."""
    executor = Sited(lambda _: "A")
    executor.file = tmp_path / "input"
    items, brief = [Item(key="a", value={"title": "T"})], Brief(name="note", instructions="Say {title}.")
    names: list[str] = []
    for content in ("1", "2", "1"):
        executor.file.write_text(content)
        names += [work.fingerprint for work in build_work([brief], items, executor)]
    assert names[0] == names[2] != names[1]
