"""What a run's files are made of, as Prefect's assets have it; and that a page is worth no run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prefect.states import Pending

from prefect_dispatch import Brief, Item, dispatch, outcome_of, plan, write_parquet
from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from prefect_dispatch.models.report import Report
from prefect_dispatch.sources.tabular import Sql
from prefect_dispatch.tasks.table_tasks import input_assets
from prefect_dispatch.testing import ScriptedExecutor
from tests.databases import filled

if TYPE_CHECKING:
    from pathlib import Path

BRIEF = Brief(name="b", instructions="Do.")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_query_is_made_of_its_database(tmp_path: Path) -> None:
    """Its address without a password; a connection that has gone meanwhile is no reason to fail."""
    name = filled(tmp_path / "rows.sqlite", "CREATE TABLE t (id INTEGER)")
    (key,) = input_assets(Sql(sql="SELECT id FROM t", key="id", connection=name), tmp_path)
    assert key.startswith("sqlite://")
    assert key.endswith("rows.sqlite")
    assert input_assets(Sql(sql="SELECT id FROM t", key="id", connection="gone"), tmp_path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_page_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    """Where a folder stands in its place; the other files are there."""
    (tmp_path / "out" / "report.html" / "kept").mkdir(parents=True)
    report = dispatch([BRIEF], ["a"], executor=ScriptedExecutor(lambda _: "done"), out=str(tmp_path / "out"))
    assert report.status == "complete"
    assert (tmp_path / "out" / "report.json").is_file()
    assert (tmp_path / "out" / "report.html" / "kept").is_dir()


def test_what_has_not_run_is_an_outcome_without_an_answer() -> None:
    """A task run that is still to come, say."""
    outcome = outcome_of(BRIEF, Item(key="a", value="a"), Pending())
    assert (outcome.status, outcome.error is None) == ("failed", False)


def test_what_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """A review that nothing could follow, a file without a name, a source in a form's words."""
    with pytest.raises(JobError, match="review"):
        plan([BRIEF], ["a"], ScriptedExecutor({}), review=True, folder=tmp_path)
    with pytest.raises(JobError, match="the Parquet file has no name"):
        write_parquet.fn(Report(status="complete", message="1 of 1 answered."), " ")

    def step() -> None:
        raise SourceError("items.glob: nothing.")

    with pytest.raises(SourceError, match="nothing"):
        with_form_messages(step)
