"""A workspace of an agent, with a job that may be started; and a model's server that jobs reach by the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prefect.settings import PREFECT_API_URL

from prefect_dispatch.agents import job_plan, server
from prefect_dispatch.agents.job_store import JobStore
from prefect_dispatch.agents.policy import Policy
from tests.openai_server import Behave, Behaviour, OpenAIServer, openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MODEL = "openai/gpt-4o-mini"
"""A model with a listed price."""
JOB = f"""\
name: terms
briefs: [{{name: terms, instructions: Say what it says.}}]
items: {{glob: "items/*.txt"}}
executor: {{kind: llm, model: {MODEL}, params: {{max_tokens: 50}}}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job of four items, and a state folder of its own."""
    monkeypatch.setenv("PREFECT_DISPATCH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")
    monkeypatch.setattr(job_plan, "PLAN_S", 300.0)  # a busy machine takes long
    monkeypatch.setattr(server, "CHECK_S", 300.0)
    folder = tmp_path / "root"
    (folder / "items").mkdir(parents=True)
    for number in range(4):
        (folder / "items" / f"{number}.txt").write_text(f"Text number {number}.", encoding="utf-8")
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    return folder.resolve()


@pytest.fixture
def policy(root: Path) -> Policy:
    """What a user allows who has set the model alone."""
    return Policy(root=str(root), models=(MODEL,))


@pytest.fixture
def jobs(root: Path) -> JobStore:
    """The jobs of the root."""
    return JobStore(root)


@pytest.fixture
def model(root: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[ModelServer]:
    """A model's server, as processes of jobs find it."""
    behaviour = ModelServer()
    with openai_server(behaviour.answer) as server:
        behaviour.server = server
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield behaviour


class ModelServer:
    """A model's server whose behaviour a test may change."""

    server: OpenAIServer

    def __init__(self) -> None:
        """Start with good answers."""
        self.behave: Behave = lambda _request, _n: Behaviour(content="fine")

    def answer(self, request: dict[str, Any], n: int) -> Behaviour:
        """Return the answer to a request."""
        return self.behave(request, n)

    @property
    def count(self) -> int:
        """How many requests came."""
        return self.server.count


@pytest.fixture
def api(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prefect's server and a store of answers, as processes of jobs find them."""
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(store))
    return store
