"""Keys in Prefect blocks: what they take, where they go, and where they never are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx
import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_dispatch import LLM, Brief, DispatchProfile, Limits, LLMCredentials, Synthesize, Tournament, dispatch, plan
from prefect_dispatch.blocks import block_reference, profile
from prefect_dispatch.errors import DispatchFailed, JobError
from prefect_dispatch.executors.block_references import (
    SLUGS,
    block_name,
    credentials,
    evict_credentials,
    load_credentials,
)
from prefect_dispatch.flows.prepare import require_keys
from prefect_dispatch.security.redaction import redact
from prefect_dispatch.testing import ScriptedExecutor
from tests.openai_server import Behaviour, OpenAIServer, failure, openai_server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from prefect.blocks.core import Block

KEY = "sk-not-told-4711-abcdef"
BRIEF = Brief(name="label", instructions="Label it.")


class _Suite(BlockStandardTestSuite):
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Its logo lies where Prefect's own do, so whoever sees those sees it; that address needs a network."""
        ours, theirs = (str(getattr(each, "_logo_url")) for each in (block, Secret))  # noqa: B009 -- Prefect's own name
        assert ours.rpartition("/")[0] == theirs.rpartition("/")[0]


class TestLLMCredentials(_Suite):
    """Prefect's own demands on a block."""

    @pytest.fixture
    def block(self) -> type[Block]:
        """The block."""
        return LLMCredentials


class TestDispatchProfile(_Suite):
    """Prefect's own demands on a block."""

    @pytest.fixture
    def block(self) -> type[Block]:
        """The block."""
        return DispatchProfile


@pytest.fixture(scope="module")
def model() -> Generator[OpenAIServer]:
    """A model that takes one key only."""

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        return Behaviour(content=json.dumps(request["messages"][-1]["content"][:40]))

    with openai_server(behave) as server:
        yield server


def saved(name: str, **fields: Any) -> LLMCredentials:  # noqa: ANN401 -- fields of a block
    """Save credentials and return them."""
    block = LLMCredentials.model_validate({"api_key": KEY, **fields})
    block.save(name, overwrite=True)
    return block


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        pytest.param({"extra": "[1]"}, "must be a JSON object", id="extra-is-a-list"),
        pytest.param({"extra": "aws"}, "must be a JSON object", id="extra-is-no-json"),
        pytest.param({"extra": 3}, "valid string", id="extra-is-a-number"),
        pytest.param({"extra": '{"messages": []}'}, "'messages' can't be set here", id="extra-that-a-brief-sets"),
        pytest.param({"api_base": "http://me:pw@host"}, "must be a plain address", id="password-in-the-address"),
        pytest.param({"usd_per_million_sent": 1}, "or neither", id="half-a-price"),
        pytest.param({"usd_per_million_sent": -1, "usd_per_million_received": 1}, "greater than", id="negative-price"),
    ],
)
def test_wrong_credentials_are_refused(fields: dict[str, Any], told: str) -> None:
    """A block that could never work is refused as it is made, and the message tells no secret."""
    with pytest.raises(ValidationError, match=told):
        LLMCredentials.model_validate({"api_key": KEY, **fields})


def test_what_a_call_takes() -> None:
    """The key, and all else that is secret, in litellm's words; what a name says is no secret isn't hidden."""
    service = {"type": "service_account", "private_key": "-----BEGIN-----xyz"}
    block = LLMCredentials.model_validate(
        {
            "api_key": KEY,
            "extra": {"aws_secret_access_key": "hush-hush-hush", "aws_region_name": "eu-west-1",
                      "vertex_credentials": json.dumps(service), "azure": {"password": "pa55word-x"}},
            "usd_per_million_sent": 1, "usd_per_million_received": 2,
        }
    )  # fmt: skip
    assert block.arguments["api_key"] == KEY
    assert block.arguments["aws_region_name"] == "eu-west-1"
    assert block.secrets == {KEY, "hush-hush-hush", json.dumps(service), "-----BEGIN-----xyz", "pa55word-x"}
    assert block.price == (1, 2)
    nothing = LLMCredentials()
    assert (nothing.arguments, nothing.price, nothing.secrets) == ({}, None, frozenset())
    assert LLMCredentials.model_validate({"extra": None}).arguments == {}
    given = {"api_key": KEY, "model": "openai/test", "api_base": "http://127.0.0.1:9/v1"}
    client: Any = LLMCredentials.model_validate(given).get_client()
    assert client.keywords == given
    plain: Any = LLMCredentials().get_client()
    assert plain.keywords == {}
    odd = LLMCredentials.model_validate({"extra": {"vertex_credentials": "{not json}", "api_version": "2024-02-01"}})
    assert odd.secrets == {"{not json}"}
    pasted = LLMCredentials.model_validate({"api_key": f" \t{KEY}\r\n"})
    assert pasted.arguments == {"api_key": KEY}
    assert pasted.secrets == {KEY}
    assert LLMCredentials.model_validate({"api_key": " \n"}).arguments == {}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        pytest.param("My Key", "is not the name of a block", id="no-name"),
        pytest.param("sk-proj-0123456789abcdef", "looks like a key itself", id="a-key"),
        pytest.param(3, "must be the name of a saved block of the type 'llm-credentials'", id="a-number"),
        pytest.param(DispatchProfile(), "not DispatchProfile", id="another-block"),
        pytest.param(LLMCredentials(), "isn't saved", id="not-saved"),
    ],
)
def test_a_name_that_is_none(value: object, told: str) -> None:
    """Only the name of a saved block travels with a run; whatever else is given is refused with the way out."""
    with pytest.raises(ValueError, match=told):
        block_name("credentials", value)
    with pytest.raises(ValidationError, match=told):
        LLM.model_validate({"model": "openai/test", "credentials": value})


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_key_goes_to_the_provider_and_nowhere_else(model: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    """With its address, model and price it comes from the block; no record of the run or its tasks holds it."""
    block = saved("nowhere-else", api_base=model.url, usd_per_million_sent=1, usd_per_million_received=2)
    executor = LLM.model_validate({"model": "openai/test", "credentials": block})
    assert executor.credentials == "nowhere-else"
    report = dispatch([BRIEF], ["a", "b"], executor=executor)
    assert report.status == "complete"
    assert report.usage.cost_usd
    assert {each.headers["authorization"] for each in model.requests} == {f"Bearer {KEY}"}
    with get_client(sync_client=True) as client:
        run_id = UUID(cast("dict[str, Any]", report.run["flow_run"])["id"])
        run = client.read_flow_run(run_id)
        tasks = client.read_task_runs()
        told = [run.model_dump_json(), *(each.model_dump_json() for each in tasks), report.model_dump_json()]
        told += [each.model_dump_json() for each in client.read_artifacts()]
    assert KEY not in "".join([*told, caplog.text])
    assert run.parameters["executor"]["credentials"] == "nowhere-else"
    assert redact(f"key {KEY}!") == "key ***!"
    asked = model.count
    saved("nowhere-else", api_key="sk-another-key-0815-xyz", api_base=model.url)
    assert dispatch([BRIEF], ["a", "b"], executor=executor).usage.cached == 2
    dispatch([BRIEF], ["c"], executor=executor)
    assert model.requests[-1].headers["authorization"] == "Bearer sk-another-key-0815-xyz"
    assert model.count == asked + 1


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_missing_block_is_refused_before_anything_is_spent(model: OpenAIServer) -> None:
    """A plan says so too; the message names what comes nearest, and how to make one."""
    saved("my-openai", api_base=model.url)
    asked = model.count
    wrong = LLM(model="openai/test", credentials="my-opnai")
    with pytest.raises(JobError, match=r"no LLMCredentials block 'my-opnai'. Did you mean 'my-openai'\?"):
        plan([BRIEF], ["a"], executor=wrong)
    with pytest.raises(JobError, match=r"There are (.*, )?'my-openai'"):
        load_credentials("zzzzzz")
    with pytest.raises(JobError, match=r"^integrator.judge.credentials: .*prefect block register -m prefect_d"):
        dispatch([BRIEF], ["a"], executor=LLM(model="openai/test"), integrator=Synthesize(
            instructions="Sum up.", judge=wrong))  # fmt: skip
    with pytest.raises(JobError, match="no DispatchProfile block 'nobody'"):
        profile("nobody")
    with pytest.raises(JobError, match="no LLMCredentials block"):
        block_reference("credentials", "nobody-knows")
    assert model.count == asked


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("block", ["", "without-a-key"], ids=["no-block", "a-block-without-a-key"])
def test_a_judge_without_a_key_is_refused_before_answers_are_paid_for(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run, whose environment counts; where every answer is stored already, the judge's may be, too."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    agent = ScriptedExecutor(lambda ask: str(ask.item.key))
    judge = LLM(model="anthropic/judge")
    if block:
        saved(block, api_key="", model="anthropic/judge")
        judge = LLM(model="anthropic/judge", credentials=block)
    integrator = Synthesize(instructions="Sum up.", judge=judge)
    assert plan([BRIEF], ["a"], agent, integrator=integrator).to_ask == 1
    neither = f"neither the block '{block}' nor the environment of this run has" if block else "the environment of this"
    with pytest.raises(JobError, match=f"^integrator.judge: there is no key for 'anthropic/judge': {neither}"):
        dispatch([BRIEF], ["a"], agent, integrator)
    assert agent.calls == 0
    dispatch([BRIEF], ["a"], agent)
    assert dispatch([BRIEF], ["a"], agent, integrator).status == "gaps"
    saved("with-a-key", api_key="sk-none-needed-0815", model="anthropic/judge")
    require_keys(Synthesize(instructions="Sum up.", judge=judge.model_copy(update={"credentials": "with-a-key"})))
    require_keys(
        Synthesize(instructions="Sum up.", judge=LLM(model="anthropic/judge", api_base="http://127.0.0.1:9/v1"))
    )
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none-needed-0815")
    require_keys(integrator)


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        pytest.param(LLM(model="nosuch/model"), "Model 'nosuch/model' is unknown to litellm", id="unknown"),
        pytest.param(LLM(model="local/gone.gguf"), "Model 'local//.*gone.gguf' has no file", id="no-file"),
    ],
)
def test_a_judge_that_nobody_can_ask_is_refused(judge: LLM, told: str) -> None:
    """By the field that names it, in a plan, too."""
    with pytest.raises(JobError, match=f"^integrator.judge: {told}"):
        plan([BRIEF], ["a", "b"], ScriptedExecutor({}), integrator=Tournament(criterion="Short.", judge=judge))


def test_a_judge_of_ones_own_is_looked_for_in_the_jobs_folder(tmp_path: Path) -> None:
    """And not where the command was called."""
    (tmp_path / "judge.gguf").touch()
    integrator = Tournament(criterion="Short.", judge=LLM(model="local/judge.gguf"))
    assert plan([BRIEF], ["a", "b"], ScriptedExecutor({}), integrator=integrator, folder=tmp_path).to_ask == 2


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_key_is_for_its_own_provider(model: OpenAIServer) -> None:
    """A block whose default model is one provider's gives its key to no other; nor does a fallback elsewhere get it."""
    saved("for-openai", api_base=model.url, model="openai/test")
    with pytest.raises(JobError, match=r"is for models of 'openai'.*'anthropic/x' is of another provider"):
        plan([BRIEF], ["a"], executor=LLM(model="anthropic/x", credentials="for-openai"))
    both = LLM(model="openai/test", fallbacks=("anthropic/x",), credentials="for-openai")
    assert [each.credentials for each in both.fallback_chain] == ["for-openai", None]
    assert both.with_model("openai/other").credentials == "for-openai"


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_refused_key_names_its_block() -> None:
    """The run stops, says which block to mend, and has the key read anew by the next run."""
    with openai_server(failure(401, "Incorrect API key provided.")) as server:
        saved("expired", api_base=server.url)
        with pytest.raises(DispatchFailed, match="LLMCredentials block 'expired': change it there") as caught:
            dispatch([BRIEF], ["a"], executor=LLM(model="openai/test", credentials="expired"))
    assert caught.value.report.gaps[0].error.kind == "credentials"
    assert KEY not in caught.value.report.model_dump_json()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_block_that_goes_away_meanwhile(model: OpenAIServer) -> None:
    """It is told as what it is, and another process loads it by its name."""
    saved("goes-away", api_base=model.url)
    executor = LLM(model="openai/test", credentials="goes-away", api_base=model.url)
    evict_credentials("goes-away")
    assert credentials("goes-away").arguments == {"api_key": KEY}
    LLMCredentials.delete("goes-away")
    evict_credentials("goes-away")
    with pytest.raises(JobError, match="no LLMCredentials block 'goes-away'"):
        credentials("goes-away")
    assert executor.fingerprint == executor.model_copy(update={"credentials": None}).fingerprint


@pytest.mark.usefixtures("store")
def test_a_block_of_an_older_make() -> None:
    """A document that no longer fits its type is told by its name, with what is wrong in it."""
    block = saved("older")
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("older", SLUGS["credentials"])
        data = {"data": {"usd_per_million_sent": 2.0}}
        url, sent = f"{client.api_url}block_documents/{document.id}", {**data, "merge_existing_data": True}
        wait_until(lambda: httpx.patch(url, json=sent).is_success, "a server that isn't busy takes it")
    with pytest.raises(JobError, match=r"credentials: the block 'older' can't be used: .*fix it in Prefect's UI"):
        load_credentials("older")
    assert block.api_key.get_secret_value() == KEY


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_profile_says_who_is_asked_and_how() -> None:
    """Model, key, parameters and limits come from it; what is wrong in it is told with its name."""
    key = saved("of-a-profile", model="openai/test")
    block = DispatchProfile(credentials=key, params='{"seed": 1}', limits=Limits(concurrency=3))
    block.save("nightly", overwrite=True)
    found = profile("nightly")
    assert found.executor == LLM(model="openai/test", credentials="of-a-profile", params={"seed": 1})
    assert (found.key, found.limits.concurrency) == ("of-a-profile", 3)
    assert (DispatchProfile().executor, DispatchProfile().key) == (None, None)
    DispatchProfile(model="openai/test", params="no json").save("wrong", overwrite=True)
    with pytest.raises(JobError, match="The profile 'wrong' can't be used: params"):
        _ = profile("wrong").executor
    with pytest.raises(JobError, match="The profile can't be used: credentials: this LLMCredentials isn't saved"):
        _ = DispatchProfile(model="openai/test", credentials=LLMCredentials()).executor


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_prefect_registers_the_blocks() -> None:
    """`prefect block register -m prefect_dispatch` finds both, and Prefect finds them by itself as a collection."""
    env = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "prefect", "block", "register", "-m", "prefect_dispatch"],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert "LLM Credentials" in done.stdout
    assert "Dispatch Profile" in done.stdout
    assert block_reference("profile", _saved_profile()).keys() == {"$ref"}


def _saved_profile() -> str:
    DispatchProfile().save("empty", overwrite=True)
    return "empty"
