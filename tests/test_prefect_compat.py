"""What is used of Prefect beyond its documentation holds: a failure here names the version that breaks it.

These are contracts with Prefect, so most of them don't call this package at all. `.ci/run` runs them on both ends of
the range of versions that `pyproject.toml` declares.
"""

from __future__ import annotations

import inspect
import json
import sys
from datetime import timedelta
from http import HTTPStatus
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.filesystems import LocalFileSystem
from prefect.input import keyset_from_paused_state
from prefect.input.actions import create_flow_run_input
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Completed, Paused
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.transactions import get_transaction, transaction
from prefect.types._datetime import now

from prefect_dispatch import prefect_compat
from prefect_dispatch.prefect_compat import (
    ProcessPool,
    ReportState,
    ephemeral_server_url,
    forget_result,
    form_answer,
    form_keys,
    has_next_date,
    is_unreachable,
    keep_own_record,
    outside_transactions,
    override_settings,
    parameter_descriptions,
    propose_state,
    require_known_parameters,
    result_record,
    visit_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture
    from prefect.transactions import BaseTransaction

PREFECT = f"Prefect {version('prefect')}"


def require(holds: object, contract: str) -> None:
    """Fail with the version of Prefect if a contract doesn't hold."""
    assert holds, f"{PREFECT} breaks a contract: {contract}"


@flow
def adder(shown: int) -> int:
    """Return a number."""
    return shown


@task
def double(number: int) -> dict[str, int]:
    """Return a new object."""
    return {"doubled": 2 * number}


def test_outside_transactions() -> None:
    """`BaseTransaction.__var__` holds the open transaction, and is what `get_transaction` reads."""
    with transaction() as mine:
        with outside_transactions():
            require(get_transaction() is None, "BaseTransaction.__var__ holds the open transaction")
        require(get_transaction() is mine, "the context variable can be set and reset")


@pytest.mark.usefixtures("store")
def test_a_task_run_that_stores_its_result_by_itself() -> None:
    """With `write_on_commit` off nothing is stored; as `COMMITTED`, the task run ends as `Cached`."""
    kept: list[BaseTransaction] = []

    @task(cache_policy=INPUTS, persist_result=True)
    def stored_before(number: int, *, was_stored: bool) -> int:
        own = get_transaction()
        require(own is not None, "a task run with a cache policy has a transaction")
        kept.append(cast("BaseTransaction", own))
        keep_own_record(kept[-1], was_stored=was_stored)
        return number

    @flow
    def run() -> list[str]:
        return [stored_before(1, was_stored=each, return_state=True).name or "" for each in (False, True)]

    require(run() == ["Completed", "Cached"], "TransactionState.COMMITTED makes the state of a task run `Cached`")
    for own in kept:
        require(own.key, "the transaction of a task run has the key of its result")
        store = cast("ResultStore", own.store)
        require(not store.exists(str(own.key)), "write_on_commit=False keeps Prefect from storing a result")


@pytest.mark.usefixtures("store")
def test_results_are_linked_to_their_task_runs_until_they_are_forgotten() -> None:
    """`FlowRunContext.run_results` maps the id of a result to the state of its task run, first in a tuple."""

    @flow
    def run() -> tuple[bool, bool]:
        future: PrefectFuture[Any] = cast("Any", double).submit(1)
        result = future.result()
        context = FlowRunContext.get()
        assert context
        found = context.run_results.get(id(result))
        linked = found is not None and found[0].state_details.task_run_id == future.task_run_id
        forget_result(result, future)
        return linked, id(result) in context.run_results

    linked, kept = run()
    require(linked, "FlowRunContext.run_results holds (state, …) by the id of a result")
    require(not kept, "an entry of FlowRunContext.run_results can be removed")


def test_a_record_is_the_one_that_prefect_makes(tmp_path: Path) -> None:
    """A record of our own has what `ResultStore` writes for the same result, and Prefect reads it."""
    store = ResultStore(result_storage=LocalFileSystem(basepath=str(tmp_path)), serializer=JSONSerializer())
    until = now("UTC") + timedelta(days=1)
    theirs = store.create_result_record({"a": 1}, key="key", expiration=cast("Any", until))
    own = result_record(
        {"a": 1}, JSONSerializer(), storage_key=str(tmp_path / "key"), storage_block=None, expiration=until
    )
    require(json.loads(own) == json.loads(theirs.serialize()), "ResultRecord and ResultRecordMetadata")
    require(type(theirs).deserialize(own).result == {"a": 1}, "ResultRecord.deserialize reads a record")


@pytest.mark.usefixtures("store")
def test_prefect_takes_a_returned_state_whose_data_it_does_not_look_into() -> None:
    """A state that keeps its data from being walked through is a run's end like any other."""

    @flow
    def run() -> int:
        return cast("int", Completed(cls=ReportState, name="CompletedWithGaps", message="Gaps.", data=[1]))

    state: State[Any] = run(return_state=True)
    require(state.name == "CompletedWithGaps", "a flow may return a state of a subclass")
    require(state.result() == [1], "the data of a returned state is the result")
    fields = dict(cast("Any", ReportState(type=state.type, data=[1])))
    require("data" not in fields and "name" in fields, "State.__iter__ yields the fields")


def test_settings_can_be_overridden_by_context() -> None:
    """`SettingsContext` takes settings of ours, and `get_current_settings` gives them."""
    before = get_current_settings()
    with override_settings("flows", heartbeat_frequency=45), override_settings("client", max_retries=0):
        now = get_current_settings()
        require(now.flows.heartbeat_frequency == 45, "SettingsContext sets flows.heartbeat_frequency")
        require(now.client.max_retries == 0, "SettingsContext sets client.max_retries")
    require(get_current_settings() == before, "SettingsContext takes settings back")


@pytest.mark.usefixtures("store")
def test_a_pause_has_a_form_whose_answer_stands_under_keys() -> None:
    """A proposed pause is accepted; what is sent as its form's response is found, and else nothing."""

    @flow
    def run() -> None:
        context = FlowRunContext.get()
        assert context
        assert context.flow_run
        own = context.flow_run.id
        waiting: State[None] = Paused(timeout_seconds=60, pause_key="contract")
        keys = keyset_from_paused_state(waiting)
        require(form_keys("contract") == keys, "keys of a pause's form begin with `paused-` and the key of the pause")
        with get_client(sync_client=True) as client:
            state = propose_state(client, waiting, own)
            require(state.is_paused(), "propose_state_sync proposes a pause")
            require(form_answer(own, "contract") is None, "read_flow_run_input gives None where there is no answer")
            create_flow_run_input(key=keys["response"], value={"a": 1}, flow_run_id=own)
            require(form_answer(own, "contract") == {"a": 1}, "read_flow_run_input gives the answer")
            client.resume_flow_run(own, run_input={})

    run()


def test_the_process_pool_forwards_messages_in_a_method() -> None:
    """`ProcessPoolTaskRunner` has the method that its thread runs, and is copied as what it is."""
    require(hasattr(ProcessPoolTaskRunner, "_forward_subprocess_messages"), "the method that forwards messages")
    require(type(ProcessPool(max_workers=1).duplicate()) is ProcessPool, "duplicate() keeps the class")


@task
def see_flow() -> tuple[str, dict[str, Any], bool]:
    """Return what a task run sees of its flow run, and whether its process has imported this package's flows."""
    context: Any = FlowRunContext.get()
    return context.flow.name, context.parameters, "prefect_dispatch.flows.run_job" in sys.modules


@pytest.mark.slow
def test_a_process_of_the_pool_gets_the_name_of_its_flow_alone() -> None:
    """`submit` sends the flow and the parameters of the flow run's context, which is replaced meanwhile."""

    @flow(name="with-many-items")
    def run(items: list[int]) -> object:
        with ProcessPool(max_workers=1) as pool:
            seen = pool.submit(see_flow, {}).result()
        context: Any = FlowRunContext.get()
        require(context.parameters == {"items": items}, "the context of the flow run is as before")
        return seen

    require(run([1, 2]) == ("with-many-items", {}, False), "the process has the name of the flow only")


def test_the_server_that_prefect_starts_is_known_by_its_class() -> None:
    """`SubprocessASGIServer` keeps its instances, each with whether it runs and where."""
    if ephemeral_server_url() is None:  # other tests of this process may have started one
        module = import_module("prefect.server.api.server")
        server = module.SubprocessASGIServer()
        instances = cast("dict[object, object]", vars(module.SubprocessASGIServer)["_instances"])
        require(server in instances.values(), "SubprocessASGIServer._instances")
        require(server.running is False, "SubprocessASGIServer.running")
        require(hasattr(module.SubprocessASGIServer, "api_url"), "SubprocessASGIServer.api_url")


def test_an_api_that_is_away_is_known_by_the_words_of_the_error() -> None:
    """Prefect's client raises a plain `RuntimeError` as a flow run begins."""

    @flow
    def nothing() -> None: ...

    away: dict[Any, Any] = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), pytest.raises(RuntimeError) as caught:
        nothing()
    require(is_unreachable(caught.value), "the words of the error of an API that can't be reached")
    assert not is_unreachable(RuntimeError("another"))


def test_every_part_of_data_is_visited() -> None:
    """`visit_collection` calls a function for every part, without making anything of what it returns."""
    seen: list[object] = []

    def look(part: object) -> object:
        seen.append(part)
        return part

    visit_parts({"a": [1, (2, {"b": 3})]}, cast("Callable[[Any], Any]", look))
    require({1, 2, 3} <= {part for part in seen if isinstance(part, int)}, "visit_collection visits every part")


@pytest.mark.parametrize(("cron", "due"), [("0 6 * * *", True), ("0 0 30 2 *", False)])
def test_the_servers_scheduler_knows_whether_a_day_comes(cron: str, due: bool) -> None:  # noqa: FBT001 -- a column
    """A day that never comes is an error, or no date."""
    try:
        found = has_next_date(cron)
    except ValueError:
        found = False
    require(found == due, "prefect.server.schemas.schedules.CronSchedule.get_dates")


def test_descriptions_of_parameters_are_read_from_a_docstring() -> None:
    """One over several lines, too."""

    def takes(one: int) -> int:
        """Take one.

        Args:
            one: The first,
                and only one.
        """
        return one

    require(
        parameter_descriptions(takes) == {"one": "The first,\nand only one."} and takes(1) == 1,
        "prefect.utilities.callables.parameter_docstrings",
    )


def test_a_deployment_may_restrict_the_names_of_its_parameters(store: Path) -> None:
    """The server refuses a run with another name in plain words; one that the form doesn't show is known."""
    del store
    made: Any = cast("Any", adder).to_deployment("restricted")
    require_known_parameters(made, ["shown", "hidden"])
    deployment = made.apply()
    with get_client(sync_client=True) as client:
        assert client.create_flow_run_from_deployment(deployment, parameters={"shown": 1, "hidden": 2})
        with pytest.raises(PrefectHTTPStatusError, match="'other' is not one of \\['shown', 'hidden'\\]") as refused:
            client.create_flow_run_from_deployment(deployment, parameters={"shown": 1, "other": 2})
    require(refused.value.response.status_code == HTTPStatus.CONFLICT, "a wrong name of a parameter is a conflict")


def test_every_use_has_a_contract() -> None:
    """What the module offers is tested here."""
    offered = {
        name
        for name, value in vars(prefect_compat).items()
        if inspect.isfunction(value) and value.__module__ == prefect_compat.__name__
    }
    assert offered <= globals().keys()
