"""The same job again: what is asked, and what its report says of the run before."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ParameterTypeError
from prefect.filesystems import LocalFileSystem
from prefect.flow_engine import run_flow

from prefect_dispatch import Brief, Item, Limits, LLMCredentials, Merge, analyze_files, dispatch, plan
from prefect_dispatch.cli.console import summary
from prefect_dispatch.errors import DispatchFailed, JobError, RejectedError, TerminalError
from prefect_dispatch.flows.runtime import last_run
from prefect_dispatch.models.ledger import LedgerRow
from prefect_dispatch.models.report import Changes
from prefect_dispatch.reporting.markdown import markdown
from prefect_dispatch.serialization.json_text import digest
from prefect_dispatch.tasks.result_store import BlobStore
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, openai_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from prefect_dispatch import Ask, Outcome, Report

pytestmark = pytest.mark.usefixtures("store")

NAMES = Brief(name="names", instructions="Name it.")
TEXTS = Brief(name="texts", instructions="Say it.")
QUICK = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20)


def said(word: str) -> ScriptedExecutor:
    """Return an executor that answers everything with a word and the item."""
    return ScriptedExecutor(lambda ask: f"{word} {ask.item.value}")


def answers(report: Any) -> dict[str, JsonValue]:  # noqa: ANN401 -- a collated value
    """Return the answers of a report, by name."""
    return {f"{each['brief']}/{each['item']}": each["value"] for each in report.value["answers"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refresh", "asked"),
    [
        pytest.param(False, set[str](), id="nothing"),
        pytest.param(True, {"names/a", "names/b", "texts/a", "texts/b"}, id="everything"),
        pytest.param("a", {"names/a", "texts/a"}, id="an-item"),
        pytest.param(["texts/*"], {"texts/a", "texts/b"}, id="a-brief"),
        pytest.param(["names/a", "*/b"], {"names/a", "names/b", "texts/b"}, id="several"),
    ],
)
def test_what_a_pattern_names_is_asked_again(refresh: bool | str | list[str], asked: set[str]) -> None:  # noqa: FBT001 -- the forms of the parameter
    """And nothing else is; the plan says so before, and the new answers are stored."""
    briefs, items, new = [NAMES, TEXTS], ["a", "b"], said("new")
    dispatch(briefs, items, executor=said("old"), limits=QUICK)
    assert plan(briefs, items, new, limits=QUICK, refresh=refresh).to_ask == len(asked)
    report = dispatch(briefs, items, executor=new, limits=QUICK, refresh=refresh)
    assert {f"{ask.brief.name}/{ask.item.key}" for ask in new.asks} == asked
    assert (report.usage.asked, report.usage.cached) == (len(asked), 4 - len(asked))
    expected = {name: f"{'new' if name in asked else 'old'} {name[-1]}" for name in answers(report)}
    assert answers(report) == expected
    assert answers(dispatch(briefs, items, executor=said("none"), limits=QUICK)) == expected


@pytest.mark.slow
def test_equal_work_is_asked_again_for_all_of_it() -> None:
    """One answer belongs to equal items: a pattern that names one of them renews it for each."""
    items = [Item(key=key, value="same") for key in ("x", "y")]
    dispatch([NAMES], items, executor=said("old"), limits=QUICK)
    new = said("new")
    report = dispatch([NAMES], items, executor=new, limits=QUICK, refresh="y")
    assert new.calls == 1
    assert answers(report) == {"names/x": "new same", "names/y": "new same"}
    assert (report.usage.asked, report.usage.shared, report.plan["to_ask"]) == (1, 1, 1)


def test_a_pattern_that_names_nothing_costs_nothing() -> None:
    """It is refused, with names that there are, before anybody is asked."""
    executor = said("a word of")
    with pytest.raises(JobError, match="refresh: no work is called 'c'; of 2 names near are 'names/a', 'names/b'"):
        dispatch([NAMES], ["a", "b"], executor=executor, limits=QUICK, refresh=["a", "c"])
    assert executor.calls == 0


def refuses(*keys: str, word: str = "some") -> ScriptedExecutor:
    """Return an executor that refuses some items, and answers the others."""

    def script(ask: Ask) -> JsonValue:
        if ask.item.key in keys:
            raise RejectedError("not this one")
        return f"{word} {ask.item.value}"

    return ScriptedExecutor(script)


def locked_out() -> ScriptedExecutor:
    """Return an executor whose key is wrong."""

    def script(ask: Ask) -> JsonValue:
        raise TerminalError("wrong key")

    return ScriptedExecutor(script)


def run(executor: ScriptedExecutor, *items: str | Item, refresh: bool = False, **more: Any) -> Report:  # noqa: ANN401 -- any parameter
    """Return the report of a job's run, however it ended."""
    given = {"limits": QUICK, **more}
    try:
        report: Report = cast("Any", dispatch)([NAMES], items, executor=executor, refresh=refresh, **given)
    except DispatchFailed as error:
        report = error.report
    return report


def told(changes: Changes) -> dict[str, str]:
    """Return the items in each list of changes."""
    return {name: " ".join(ref.item for ref in refs) for name, refs in changes.lists.items()}


def records(store: Path) -> list[Path]:
    """Return where jobs are remembered."""
    return list(store.glob("prefect-dispatch.job-*"))


def test_a_rerun_asks_what_failed_and_patches_the_report(tmp_path: Path) -> None:
    """The gaps are asked, nothing else; the files and artifacts are those of the first run, and say what was closed."""
    out = str(tmp_path / "out")
    first = run(refuses("b", "d"), *"abcd", out=out)
    assert (first.changes, "since" in first.run) == (Changes(), False)
    assert "Since the last run" not in (tmp_path / "out" / "report.md").read_text()
    mended = said("some")
    second = run(mended, *"abcd", out=out)
    assert sorted(ask.item.key for ask in mended.asks) == ["b", "d"]
    assert (second.usage.asked, second.usage.cached) == (2, 2)
    assert str(second.changes) == "gaps closed 2"
    assert told(second.changes) == {"gaps closed": "b d"}
    assert second.run["since"] == {name: first.run[name] for name in ("started", "flow_run")}
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"report.json", "report.md", "report.html", "outcomes.jsonl", "answers.csv"}
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert kept["gaps"] == []
    assert [ref["item"] for ref in kept["changes"]["closed"]] == ["b", "d"]
    assert "- gaps closed: names/b, names/d\n" in (tmp_path / "out" / "report.md").read_text()
    keys = artifact_keys(first), artifact_keys(second)
    assert keys == ({"names-report", "names-outcomes", "names-progress"},) * 2
    third = run(said("none"), *"abcd")
    assert (str(third.changes), third.changes.earlier) == ("nothing changed", "found")


def artifact_keys(report: Report) -> set[str]:
    """Return the keys of the artifacts that a run left, those of Prefect's own results aside."""
    ran: Any = report.run["flow_run"]
    ids = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[ran["id"]]))
    with get_client(sync_client=True) as client:
        return {artifact.key for artifact in client.read_artifacts(artifact_filter=ids) if artifact.key}


@pytest.mark.slow
def test_items_that_come_and_go_and_answers_that_change_are_told() -> None:
    """New, gone, changed, closed, opened; each change with the work and the value before and after, in one order."""
    items = [Item(key=key, value=key) for key in ("i2", "i10", "gone", "open", "shut")]
    first = run(refuses("shut"), *items)
    edited = [Item(key="i10", value="other"), Item(key="new", value="new"), *(items[n] for n in (4, 3, 0))]
    again = refuses("open", word="another")
    second = run(again, *edited, refresh=True)
    assert told(second.changes) == {
        "new": "new",
        "gone": "gone",
        "changed": "i2 i10",
        "gaps closed": "shut",
        "gaps opened": "open",
    }
    by_item = [{outcome.item: outcome.fingerprint for outcome in report.outcomes} for report in (first, second)]
    for change in second.changes.changed:
        assert (change.before.fingerprint, change.after.fingerprint) == tuple(works[change.item] for works in by_item)
        assert change.before.digest == digest(f"some {change.item}")
    assert [change.before.fingerprint == change.after.fingerprint for change in second.changes.changed] == [True, False]


@pytest.mark.slow
def test_a_gap_does_not_forget_the_answer_before_it() -> None:
    """Answered, then a gap, then answered otherwise: closed, and changed; answered as before: closed alone."""
    run(said("one"), "a", "b", "c")
    assert told(run(refuses("a", "b", word="one"), "a", "b", "c", refresh=True).changes) == {"gaps opened": "a b"}
    now = ScriptedExecutor({"a": "two a", "b": "one b", "c": "one c"})
    assert told(run(now, "a", "b", "c", refresh=True).changes) == {"changed": "a", "gaps closed": "a b"}


@pytest.mark.slow
def test_a_run_without_answers_is_not_compared_with() -> None:
    """A night with a wrong key tells what it lost; the next good run is compared with the last one that had answers."""
    good = run(said("one"), "a", "b")
    bad = run(locked_out(), "a", "b", "c", refresh=True)
    assert (bad.status, told(bad.changes)) == ("failed", {"new": "c", "gaps opened": "a b"})
    next_one = run(ScriptedExecutor(lambda ask: "two" if ask.item.key == "a" else f"one {ask.item.key}"), "a", "b", "c")
    assert told(next_one.changes) == {"new": "c"}
    since: Any = next_one.run["since"]
    assert since["flow_run"] == good.run["flow_run"]


@pytest.mark.slow
def test_a_failed_run_with_answers_is_compared_with() -> None:
    """Too few answers is a failed run; the rerun that asks the rest says which gaps it closed."""
    limits = QUICK.model_copy(update={"min_success": 0.9})
    assert run(refuses("b"), "a", "b", limits=limits).status == "failed"
    rerun = run(said("some"), "a", "b", limits=limits)
    assert (rerun.status, told(rerun.changes)) == ("complete", {"gaps closed": "b"})


@pytest.mark.slow
def test_another_merge_of_the_same_answers_is_told() -> None:
    """By another integrator, say; nobody is asked. A run without a value forgets none."""
    run(said("one"), "a", "b")
    other = run(said("none"), "a", "b", integrator=Counted())
    assert (other.usage.asked, told(other.changes), other.changes.merged) == (0, {}, True)
    assert "Since the last run: only the merged value changed" in summary(other, None)
    broken = run(said("none"), "a", "b", integrator=Broken())
    assert (broken.value, broken.changes.merged) == (None, False)
    assert str(run(said("none"), "a", "b", integrator=Counted()).changes) == "nothing changed"


class Counted:
    """An integrator that counts the answers."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Count."""
        rows = (LedgerRow(brief=each.brief, item=each.item, disposition="merged") for each in outcomes)
        return Merge(value=len(outcomes), ledger=tuple(rows))


class Broken:
    """An integrator that breaks."""

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Break."""
        raise ZeroDivisionError("by zero")


def damaged(record: str, how: str) -> str:
    """Return a job's record, damaged."""
    return {
        "cut": record[: len(record) // 2],
        "empty": "",
        "a-list": "[]",
        "another": record.replace("prefect-dispatch-memory", "prefect-dispatch-answer"),
        "unknown-key": record.replace('"started"', '"begun"'),
        "not-a-row": record.replace("true", '"\\u001b[31m"'),
        "bottomless": "[" * 100_000,
    }[how]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "empty", "a-list", "another", "unknown-key", "not-a-row", "bottomless"])
def test_a_damaged_record_is_told_and_replaced(how: str, store: Path) -> None:
    """It counts as no earlier run, which the report says; the run after it is compared again."""
    run(said("one"), "a")
    (path,) = records(store)
    path.write_text(damaged(path.read_text(), how))
    lost = run(said("one"), "a", "b")
    assert (lost.status, lost.changes) == ("complete", Changes(earlier="unreadable"))
    assert "what the last run left can't be read" in markdown(lost)
    assert "Since the last run: unknown" in summary(lost, None)
    assert str(run(said("one"), "a", "b").changes) == "nothing changed"


@pytest.mark.slow
def test_a_storage_that_fails_costs_the_comparison_not_the_run(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not to be read: the report says so, and what may be whole there is left. Not to be written: the log says so."""
    run(said("one"), "a")
    (path,) = records(store)
    path.rename(path.with_suffix(".aside"))
    path.mkdir()
    lost = run(said("one"), "a", "b")
    assert (lost.status, lost.changes.earlier) == ("complete", "unreadable")
    path.rmdir()
    path.with_suffix(".aside").rename(path)
    assert told(run(said("one"), "a", "b").changes) == {"new": "b"}
    monkeypatch.setattr(last_run, "result_store_for_run", lambda: BlobStore(LocalFileSystem(basepath="/proc/none")))
    assert run(said("one"), "a").status == "complete"
    assert "The next run of this job will not know what changed" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"briefs": [Brief(name="names", instructions="Name it well.")]}, True, id="what-is-asked"),
        pytest.param({"executor": ScriptedExecutor(lambda _: "x", fingerprint="other")}, True, id="who-is-asked"),
        pytest.param({"limits": Limits(concurrency=1)}, True, id="limits"),
        pytest.param({"out": "elsewhere"}, True, id="the-folder-for-files"),
        pytest.param({"briefs": [NAMES, TEXTS]}, False, id="briefs"),
        pytest.param({"items": {"glob": "*.md"}}, False, id="source"),
        pytest.param({"limit": 1}, False, id="limit"),
        pytest.param({"folder": "other"}, False, id="folder"),
    ],
)
def test_what_makes_a_job_the_same(
    change: dict[str, Any],
    same: bool,  # noqa: FBT001 -- a case
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its briefs' names, its source, its limit and where it runs; not what is asked, of whom, or how."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a.md", "other/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A.")
    job: dict[str, Any] = {"briefs": [NAMES], "items": {"glob": "*.txt"}, "executor": said("x"), "limits": QUICK}
    dispatch(**job)
    report = cast("Any", dispatch)(**{**job, **change})
    assert (report.changes.earlier == "found") is same


@pytest.mark.slow
def test_lists_that_have_little_in_common_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    """Two calls of one folder with the same brief: other items are another job, and the log says how to name it."""
    run(said("x"), "a", "b")
    other = run(said("x"), "c", "d", "e")
    assert (other.changes, other.run.get("since")) == (Changes(earlier="none"), None)
    assert "had other items" in caplog.text
    assert "Give each job a name" in caplog.text
    assert told(run(said("x"), "c", "d", "e", "f").changes) == {"new": "f"}
    assert told(run(said("x"), "c", "e", "g").changes) == {"new": "g", "gone": "d f"}


@pytest.mark.slow
def test_runs_of_one_name_are_compared() -> None:
    """Whatever their briefs and items; a run of another name, or of none, is another job."""
    run(said("x"), "a", "b", name="daily")
    assert run(said("x"), "a", "b", name="weekly").changes.earlier == "none"
    assert run(said("x"), "c", "d").changes.earlier == "none"
    report: Report = cast("Any", dispatch)(TEXTS, ["c"], executor=said("x"), limits=QUICK, name="daily")
    assert told(report.changes) == {"new": "c", "gone": "a b"}
    with pytest.raises(ParameterTypeError, match="name"):
        run(said("x"), "a", name="Not a name")


@pytest.mark.slow
def test_a_job_that_gets_a_name_knows_its_last_run(store: Path) -> None:
    """What stands under the job as it was known before is found, and kept under the name from then on."""
    run(said("x"), "a", "b")
    unnamed = last_run.KEY + digest([["names"], None, None, str(Path.cwd())])  # as every version has stored it
    assert [path.name for path in records(store)] == [unnamed]
    assert told(run(said("x"), "a", "b", "c", name="daily").changes) == {"new": "c"}
    assert len(records(store)) == 2
    assert told(run(said("x"), "x", name="daily").changes) == {"new": "x", "gone": "a b c"}


@pytest.mark.slow
def test_the_name_of_a_form_is_the_name_of_its_job(tmp_path: Path) -> None:
    """Runs that it names are compared over whichever files; as a form comes, it names none."""
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("A.")
    with openai_server(Behaviour(content="said")) as server:
        block = LLMCredentials.model_validate({"api_key": "sk-none-needed", "api_base": server.url})
        block.save("named", overwrite=True)

        def analysed(files: str, **more: str) -> Report:
            given: Any = {"model": "openai/test", "credentials": block, **more}
            report: Report = cast("Any", analyze_files)(
                files=files, instructions="Say it.", folder=str(tmp_path), **given
            )
            return report

        reports = [analysed(files, name="daily") for files in ("*.txt", "*.md")]
        reports += [analysed(files) for files in ("*.txt", "*.md", "*.md")]
    assert [report.changes.earlier for report in reports] == ["none", "found", "none", "none", "found"]


def deployed(name: str, path: Path) -> Report:
    """Return the report of a run of a deployment."""
    with get_client(sync_client=True) as client:
        id_ = client.create_deployment(client.create_flow(dispatch), name=name)
        flow_run = client.create_flow_run_from_deployment(id_)
    # Where code is fetched for each run, the folder is another each time.
    path.mkdir()
    with contextlib.chdir(path):
        parameters = {"briefs": [NAMES], "items": ["a"], "executor": said("x"), "limits": QUICK}
        return cast("Report", run_flow(dispatch, flow_run=flow_run, parameters=parameters))


@pytest.mark.slow
def test_a_deployment_is_a_job_of_its_own(tmp_path: Path) -> None:
    """Its runs are compared with its own runs, from wherever its code was fetched to."""
    run(said("x"), "a")
    earlier = [deployed(name, tmp_path / str(n)).changes.earlier for n, name in enumerate(("one", "one", "two"))]
    assert earlier == ["none", "found", "none"]
