"""The costs of runs: each dollar is counted once, by the attempt that paid it, and what is not known is said."""

from __future__ import annotations

import json
import os
import signal
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.filesystems import LocalFileSystem
from prefect.flow_runs import resume_flow_run

from prefect_dispatch import LLM, Brief, Limits, Pilot, Reply, Tournament, dispatch
from prefect_dispatch.cli.commands import COMPLETE, GAPS, UNUSABLE, main
from prefect_dispatch.errors import DispatchFailed, RejectedError
from prefect_dispatch.flows.runtime import cost_record
from prefect_dispatch.models.bill import BillRow, merge_briefs, rows_paid, split_bill, sum_costs
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.tasks.result_store import BlobStore
from prefect_dispatch.testing import ScriptedExecutor
from tests.flows.test_review import Deployed
from tests.openai_server import Behaviour, document, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from prefect_dispatch import Ask

NAMES = Brief(name="names", instructions="Name it.")
ONCE = Limits(retry_delay_s=0, retries=0, reasks=0, timeout_s=20, circuit=100)
USD = Decimal("0.1")


@pytest.fixture(autouse=True)
def own_runs(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of the test's own: the server is shared with other tests. Returns the store."""
    monkeypatch.setattr(cost_record, "TAG", f"prefect-dispatch-run-{uuid4()}")
    return store


class Biller:
    """A provider that bills ten cents for each answer, refusals included; the price of an item `odd` is unknown."""

    def __init__(self, *, refused: int = 0) -> None:
        """Bill nothing yet.

        Args:
            refused: How often the item `bad` is refused before it is answered.
        """
        self.calls, self._refused = 0, refused
        self.executor = ScriptedExecutor(self.answer)

    def answer(self, ask: Ask) -> Reply:
        """Answer, and bill it."""
        self.calls += 1
        usage = Usage(requests=1, prompt_tokens=10, cost_usd=None if ask.item.key == "odd" else float(USD))
        if ask.item.key == "bad" and self._refused:
            self._refused -= 1
            raise RejectedError("Refused.", usage=usage)
        return Reply(value=str(ask.item.value), usage=usage, model="small")

    @property
    def usd(self) -> float:
        """The whole bill."""
        return float(self.calls * USD)


def costs(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = COMPLETE) -> Any:  # noqa: ANN401 -- JSON
    """Return what the command prints as JSON."""
    capsys.readouterr()
    assert main(["costs", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def lines(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = COMPLETE) -> list[str]:
    """Return the lines that the command prints."""
    capsys.readouterr()
    assert main(["costs", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_runs_add_up_to_what_was_billed(capsys: pytest.CaptureFixture[str]) -> None:
    """By job, brief, model and tier; what the second run finds stored is counted once."""
    assert lines(capsys) == ["No run has a record of its costs."]
    biller = Biller()
    dispatch([NAMES], ["a", "b"], executor=biller.executor, limits=ONCE, name="letters")
    dispatch([NAMES], ["a", "b", "c"], executor=biller.executor, limits=ONCE, name="letters")
    dispatch([Brief(name="other", instructions="Say it.")], ["a"], executor=biller.executor, limits=ONCE)
    found = costs(capsys)
    assert biller.calls == 4
    assert found["total"]["cost_usd"] == biller.usd
    assert [(run["job"], run["items"], run["asked"], run["costs"]["cost_usd"]) for run in found["runs"]] == [
        ("letters", 2, 2, 0.2),
        ("letters", 3, 1, 0.1),
        ("other", 1, 1, 0.1),
    ]
    assert {name: each["cost_usd"] for name, each in found["jobs"].items()} == {"letters": 0.3, "other": 0.1}
    assert {name: each["cost_usd"] for name, each in found["by"]["brief"].items()} == {"names": 0.3, "other": 0.1}
    assert set(found["by"]) == {"stage", "brief", "model", "tier", "step"}
    first, second, _, *sums = lines(capsys)
    assert "Completed  2 of 2 items asked  2 requests, $0.2000" in first
    assert "  letters  Completed  1 of 3 items asked  1 request, $0.1000" in second
    assert sums[:3] == [
        "Job letters: 2 runs, 3 requests, $0.3000",
        "Job other: 1 run, 1 request, $0.1000",
        "By brief: names $0.3000, other $0.1000",
    ]
    assert sums[-1].startswith("Total of 3 runs since 20")
    assert sums[-1].endswith("UTC: 4 requests, $0.4000")


def test_an_unknown_price_is_counted_and_not_summed(capsys: pytest.CaptureFixture[str]) -> None:
    """It makes the total unknown."""
    dispatch([NAMES], ["a", "odd"], executor=Biller().executor, limits=ONCE)
    total = costs(capsys)["total"]
    assert (total["cost_usd"], total["known_usd"], total["unpriced"]) == (None, 0.1, 1)
    assert lines(capsys)[-1].endswith(": 2 requests, $0.1000 and 1 call of unknown price")


def test_each_attempt_counts_what_it_has_paid(capsys: pytest.CaptureFixture[str]) -> None:
    """A retry of the flow finds the answers of the attempt before stored, and a refusal was paid, too."""
    biller = Biller(refused=2)
    limits = ONCE.model_copy(update={"min_success": 1.0})
    dispatch.with_options(retries=3, name="mine")([NAMES], ["a", "bad"], executor=biller.executor, limits=limits)
    assert biller.calls == 4
    [run] = costs(capsys)["runs"]
    assert (run["costs"]["requests"], run["costs"]["cost_usd"], run["missing"]) == (4, biller.usd, [])


def test_a_failed_run_has_paid(capsys: pytest.CaptureFixture[str]) -> None:
    """It is listed like the others."""
    biller = Biller(refused=9)
    with pytest.raises(DispatchFailed):
        dispatch([NAMES], ["bad"], executor=biller.executor, limits=ONCE)
    [run] = costs(capsys)["runs"]
    assert (run["state"], run["costs"]["cost_usd"]) == ("Failed", biller.usd)


def test_a_cancelled_run_has_paid(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered until then; the next run pays for the rest."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    is_late = True

    def behave(request: dict[str, Any], _: int) -> Behaviour:
        return Behaviour(hang=is_late and "beta" in document(request))

    def press() -> None:
        wait_until(lambda: server.count == 2, "one answered, one under way")
        os.kill(os.getpid(), signal.SIGINT)

    with openai_server(behave) as server:
        executor = LLM(model="openai/x", api_base=server.url, usd_per_million=(1000, 2000))
        job: dict[str, Any] = {"executor": executor, "limits": ONCE.model_copy(update={"grace_s": 0.2})}
        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(CancelledRun):
            dispatch([NAMES], ["alpha", "beta"], **job)
        thread.join()
        is_late = False
        report: Any = dispatch([NAMES], ["alpha", "beta"], **job)
    first, second = costs(capsys)["runs"]
    assert (first["state"], first["asked"], first["costs"]["requests"]) == ("Cancelled", 1, 1)
    assert first["costs"]["cost_usd"] == sum_costs(rows_paid(report.bill, "stored")).cost_usd
    assert second["costs"]["cost_usd"] == report.usage.cost_usd


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_suspended_run_has_paid_once(own_runs: Path, capsys: pytest.CaptureFixture[str], is_lost: bool) -> None:  # noqa: FBT001 -- a case
    """The process that goes on takes over what was answered, also where the record of the first one is lost."""
    biller = Biller()
    limits = Limits(retries=0, pilot=Pilot(items=2))
    parameters = {"briefs": [NAMES], "items": list("abcde"), "executor": biller.executor, "limits": limits}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(dispatch), f"of-a-test-{uuid4()}")
        deployed = Deployed(parameters, client.create_flow_run_from_deployment(deployment).id)
    assert deployed.work().name == "NeedsReview"
    [suspended] = costs(capsys)["runs"]
    assert (suspended["asked"], suspended["costs"]["cost_usd"], suspended["goes_on"]) == (2, 0.2, False)
    if is_lost:
        (own_runs / cost_record.record_key(suspended["id"], 1)).unlink()
        assert costs(capsys, code=GAPS)["runs"][0]["missing"] == [1]
    resume_flow_run(deployed.id, run_input={"answer": "go on"})
    deployed.work()
    found = costs(capsys)
    [run] = found["runs"]
    assert (run["asked"], run["costs"]["cost_usd"], run["missing"]) == (5, biller.usd, [])
    assert {name: each["requests"] for name, each in found["by"]["stage"].items()} == {"items": 3, "pilot": 2}


def test_queries_of_the_integrator_are_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """As a stage of their own."""

    def answer(ask: Ask) -> Reply:
        is_judge = ask.brief.name == "judge"
        value: Any = {"reason": "It is longer.", "winner": "first"} if is_judge else ask.brief.name
        return Reply(value=value, usage=Usage(requests=1, cost_usd=0.1), model="small")

    briefs = [Brief(name=name, instructions=f"Write like {name}.") for name in ("a", "bb")]
    integrator = Tournament(criterion="The longer one is better.")
    report = dispatch(briefs, ["mug"], executor=ScriptedExecutor(answer), integrator=integrator)
    found = costs(capsys)
    assert found["total"]["cost_usd"] == report.usage.cost_usd
    assert found["by"]["stage"]["integrator"]["cost_usd"] == report.integration.cost_usd


def test_a_lost_or_damaged_record_is_said(own_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run that it belongs to; the sums are of the others, and the exit status says so."""
    for key in "abc":
        dispatch([NAMES], [key], executor=Biller().executor, limits=ONCE, name="letters")
    first, second, _ = costs(capsys)["runs"]
    (own_runs / cost_record.record_key(first["id"], 1)).unlink()
    (own_runs / cost_record.record_key(second["id"], 1)).write_text('{"job": "letters"}', encoding="utf-8")
    found = costs(capsys, "letters", code=GAPS)
    assert [(run["missing"], run["unreadable"]) for run in found["runs"]] == [([1], []), ([], [1]), ([], [])]
    assert (found["incomplete"], found["total"]["cost_usd"]) == (2, 0.1)
    shown = lines(capsys, code=GAPS)
    assert shown[0].endswith("  -  Completed  unknown: no record of attempt 1")
    assert shown[1].endswith("  -  Completed  unknown: the record of attempt 1 can't be read")
    assert shown[-1].startswith("Not in the sums: attempts of 2 runs without a record that can be read here.")


def test_the_runs_of_a_job(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its file or its name; an unknown one is refused with those that there are."""
    assert main(["costs", "none"]) == UNUSABLE
    assert "'none' has a record of its costs; there are no runs with a record." in capsys.readouterr().err
    job = tmp_path / "job.yaml"
    job.write_text(
        "briefs: [{name: words, instructions: Count., command: {run: 'echo 2'}}]\nitems: {list: [a]}\n"
        "executor: {kind: shell}\n",
        encoding="utf-8",
    )
    assert main(["run", str(job)]) == COMPLETE
    monkeypatch.chdir(tmp_path.parent)
    words = Brief(name="words", instructions="Count.")
    dispatch([words], ["a"], executor=Biller().executor, limits=ONCE)
    assert len(costs(capsys, str(job))["runs"]) == 1
    assert len(costs(capsys, "words")["runs"]) == 2
    assert main(["costs", "none"]) == UNUSABLE
    assert "No run of the job 'none' has a record of its costs; there are runs of words." in capsys.readouterr().err


@pytest.mark.parametrize(("since", "runs"), [("1d", 1), ("2020-01-31", 1), ("2999-01-01", 0)])
def test_runs_since_a_date(capsys: pytest.CaptureFixture[str], since: str, runs: int) -> None:
    """Or within some days."""
    dispatch([NAMES], ["a"], executor=Biller().executor, limits=ONCE)
    assert len(costs(capsys, "--since", since)["runs"]) == runs


@pytest.mark.parametrize("wrong", ["yesterday", "d", "-1d", "99999d", "2026-13-01"])
def test_a_wrong_date_is_refused(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """With an example of a right one."""
    with pytest.raises(SystemExit):
        main(["costs", f"--since={wrong}"])
    assert "is no date such as 2026-12-01, and no 7d" in capsys.readouterr().err


def test_all_pages_of_prefects_list_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is there once."""
    monkeypatch.setattr(cost_record, "PAGE", 2)
    for key in "abcd":
        dispatch([NAMES], [key], executor=Biller().executor, limits=ONCE)
    assert len({run["id"] for run in costs(capsys)["runs"]}) == 4


def test_a_run_goes_on_without_its_record(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning, and it is listed as unknown."""
    nowhere = BlobStore(LocalFileSystem(basepath="/proc/none"))
    with monkeypatch.context() as patch:
        patch.setattr(cost_record, "result_store_for_run", lambda: nowhere)
        report = dispatch([NAMES], ["a"], executor=Biller().executor, limits=ONCE)
    assert report.status == "complete"
    assert "will not know what this run has paid: TransientError: The result storage can't be written" in caplog.text
    assert costs(capsys, code=GAPS)["runs"][0]["missing"] == [1]


def test_a_run_that_can_not_be_marked_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on."""

    def no_client(**_: object) -> None:
        raise OSError("no way")

    monkeypatch.setattr(cost_record, "get_client", no_client)
    report = dispatch([NAMES], ["a"], executor=Biller().executor, limits=ONCE)
    assert report.status == "complete"
    assert "`prefect-dispatch costs` will not find this run: OSError: no way" in caplog.text


def test_a_run_that_goes_on_is_not_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its state is shown; it has no sum yet."""
    seen: list[list[str]] = []

    def answer(ask: Ask) -> str:
        seen.append(lines(capsys))
        return str(ask.item.value)

    dispatch([NAMES], ["a"], executor=ScriptedExecutor(answer), limits=ONCE)
    [(line, _, note)] = seen
    assert line.endswith("  -  Running")
    assert note == "Not in the sums: the current attempt of 1 run in progress, or killed."
    assert [run["goes_on"] for run in costs(capsys)["runs"]] == [False]


@given(
    rows=st.lists(
        st.builds(
            BillRow,
            paid=st.just("run"),
            stage=st.sampled_from(["items", "pilot"]),
            brief=st.sampled_from("abc"),
            model=st.sampled_from("mn"),
            tier=st.just("live"),
            step=st.just("ask"),
            requests=st.integers(0, 9),
            known_usd=st.shared(st.just(0.1)),
            cost_usd=st.just(0.1),
        )
    )
)
def test_a_bill_without_briefs_has_the_same_sums(rows: list[BillRow]) -> None:
    """By all its other columns."""
    merged = merge_briefs(rows)
    assert {row.brief for row in merged} <= {""}
    assert len(merged) <= 4
    assert sum_costs(merged) == sum_costs(rows)
    assert split_bill(merged, "model") == split_bill(rows, "model")


def test_a_record_is_bounded(
    own_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of very many briefs has the sums without them."""
    monkeypatch.setattr(cost_record, "MAX_ROWS", 3)
    briefs = [Brief(name=f"n{at}", instructions=f"Name it {at}.") for at in range(6)]
    biller = Biller()
    dispatch(briefs, ["a"], executor=biller.executor, limits=ONCE)
    found = costs(capsys)
    assert [*found["by"]["brief"]] == [""]
    assert (found["runs"][0]["job"], found["total"]["cost_usd"]) == ("n0, n1, n2, n3, n4 and 1 more", biller.usd)
    assert len([*own_runs.glob(f"{cost_record.KEY}*")]) == 1
    assert "no brief" not in "\n".join(lines(capsys))
