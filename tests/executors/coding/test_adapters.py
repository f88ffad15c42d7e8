"""How each agent is started, and what its output means; what it prints is anything at all."""

from __future__ import annotations

import json
import shlex
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch.executors.coding.adapter import (
    LONGEST_ARGUMENT,
    AgentOutput,
    AgentReport,
    Launch,
    LaunchRequest,
    Tokens,
    as_list,
)
from prefect_dispatch.executors.coding.codex import KEY as CODEX_KEY
from prefect_dispatch.executors.coding.coding_agent import BUILT_IN_ADAPTERS, adapter_of
from prefect_dispatch.executors.coding.custom import Generic
from tests.executors.coding.fake_agents import KEY, claude_end, claude_start, codex_end, codex_said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prefect_dispatch.executors.coding.adapter import Adapter

HOME, WORK = Path("/home-of-the-run"), Path("/work")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
PROMPT = "Do it — 'all' of it."
GENERIC = Generic(name="any", argv=("any", "-m", "{model}"), key="ANY_KEY")
ADAPTERS: Mapping[str, Adapter] = {**BUILT_IN_ADAPTERS, "any": adapter_of(GENERIC)}
every_adapter = pytest.mark.parametrize("adapter", [pytest.param(each, id=name) for name, each in ADAPTERS.items()])


def started(adapter: Adapter, params: Mapping[str, Any] | None = None, **more: Any) -> Launch:  # noqa: ANN401 -- fields
    """Return how an adapter has its agent started."""
    fields: dict[str, Any] = {
        "program": f"/bin/{adapter.name}",
        "model": "openai/gpt-5",
        "prompt": PROMPT,
        "schema": None,
        "home": HOME,
        "workspace": WORK,
        "params": adapter.params_model.model_validate(params or {}),
        "key": KEY,
    }
    return adapter.launch(LaunchRequest(**{**fields, **more}))


def said(agent: str | Generic, *lines: object, exit_code: int | None = 0, **files: str) -> AgentReport:
    """Return what it means that an agent prints some lines; those that are no texts as JSON."""
    adapter = adapter_of(agent) if isinstance(agent, Generic) else BUILT_IN_ADAPTERS[agent]
    stderr = files.pop("stderr", "")
    stdout = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    named = {name.replace("_", "."): text for name, text in files.items()}
    return adapter.parse(AgentOutput(stdout, stderr, files=named, exit=exit_code))


def after(launch: Launch, option: str) -> list[str]:
    """Return what stands behind each occurrence of an option."""
    return [value for name, value in zip(launch.argv, launch.argv[1:], strict=False) if name == option]


def step(reason: str, cost: float = 0.25, **tokens: object) -> dict[str, object]:
    """Return what `opencode` prints at the end of a step."""
    return {"type": "step_finish", "part": {"reason": reason, "cost": cost, "tokens": tokens}}


def trajectory(status: str, *usages: object, calls: int | None = None, **info: object) -> str:
    """Return what `mini` writes of its work."""
    messages = [{"role": "assistant", "extra": {"response": {"usage": each}}} for each in usages]
    end = {"role": "exit", "content": status, "extra": {"exception_str": "it said no"}}
    stats = {"instance_cost": 0.5, "api_calls": len(usages) if calls is None else calls}
    told = {"exit_status": status, "submission": "Words.\n", "model_stats": stats, "mini_version": "2.4.6", **info}
    return json.dumps({"info": told, "messages": [*messages, end]})


USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


DENIED = [{"tool_name": "Bash", "tool_input": {"command": "x"}}]
SAMPLES: Mapping[str, list[Any]] = {
    "claude": [claude_start(), claude_end(permission_denials=DENIED, errors=["x"])],
    "codex": [
        codex_said(),
        {"type": "item.completed", "item": {"status": "declined", "command": "x"}},
        {"type": "turn.failed", "error": {"message": "x"}},
        codex_end(),
    ],
    "opencode": [
        {"type": "text", "part": {"text": "Done."}},
        {
            "type": "tool_use",
            "part": {"tool": "x", "state": {"error": "rejected permission", "input": {"command": "x"}}},
        },
        step("stop", input=1, cache={"read": 1}),
        {"type": "error", "error": {"name": "APIError", "data": {"message": "x", "statusCode": 401}}},
    ],
    "mini": [json.loads(trajectory("Submitted", USAGE))],
    "any": [{"ok": True}],
}
"""What each of them prints or writes."""


@every_adapter
def test_neither_key_nor_prompt_is_an_argument(adapter: Adapter) -> None:
    """Arguments can be seen by everybody on the machine, and are short; a schema's text may be among them."""
    for key, api_base in ((KEY, ""), (KEY, "http://127.0.0.1:1"), ("", "")):
        launch = started(adapter, schema=SCHEMA, key=key, api_base=api_base, max_usd=0.5, max_turns=7)
        assert launch.argv[0] == f"/bin/{adapter.name}"
        assert not any(KEY in word or "all' of it" in word for word in launch.argv)
        told = [*launch.files.values(), *launch.env.values()]
        assert any(KEY in text for text in told) is bool(key)
        assert sum(PROMPT in text or json.dumps(PROMPT)[1:-1] in text for text in (launch.stdin, *told)) >= 1
        assert all(path.is_relative_to(HOME) for path in launch.files)


@pytest.mark.slow
@every_adapter
@settings(deadline=None)
@given(text=st.text(), exit_code=st.none() | st.integers(0, 255))
def test_whatever_is_printed_nothing_is_raised(adapter: Adapter, text: str, exit_code: int | None) -> None:
    """Output is hostile data; without the event that means success it is no success."""
    found = adapter.parse(AgentOutput(text, text, dict.fromkeys(adapter.output_files, text), exit_code))
    if adapter.name != "any":
        assert not found.reports_success


ODD: tuple[Any, ...] = (None, True, -1, 0.5, float("inf"), "x", "", [], [0, None], {}, {"a": None})
"""What may stand anywhere."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 -- JSON
    """Yield each object or list inside a JSON value with each key or index of it."""
    keys: Iterable[Any] = cast("dict[str, Any]", value) if isinstance(value, dict) else range(len(as_list(value)))
    for key in keys:
        part: Any = cast("Any", value)[key]
        yield value, key
        yield from places(part)


@every_adapter
@settings(deadline=None)
@given(bent=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(ODD)), min_size=1, max_size=3))
def test_events_of_any_shape(adapter: Adapter, bent: list[tuple[int, object]]) -> None:
    """What stands at a known key may be of any type; amounts are what can be counted."""
    printed = deepcopy(SAMPLES[adapter.name])
    for number, odd in bent:
        if found := [*places(printed)]:
            inside, key = found[number % len(found)]
            inside[key] = deepcopy(odd)
    text = "\n".join(map(json.dumps, printed))
    end = adapter.parse(AgentOutput(text, files=dict.fromkeys(adapter.output_files, text)))
    assert end.cost_usd is None or 0 <= end.cost_usd < float("inf")
    assert end.tokens is None or min(end.tokens) >= 0
    assert all(isinstance(each, str) for each in (*end.errors, *end.denials, end.text))


def test_how_claude_is_started() -> None:
    """Its own settings are apart, it edits in its folder, and its key comes from a file by a helper."""
    claude = BUILT_IN_ADAPTERS["claude"]
    launch = started(
        claude, {"allowed_tools": ["Bash(ls *)"], "effort": "low"}, model="anthropic/claude-sonnet-4-5",
        schema=SCHEMA, max_usd=0.5, max_turns=7, api_base="http://127.0.0.1:1",
    )  # fmt: skip
    assert after(launch, "--model") == ["claude-sonnet-4-5"]
    assert after(launch, "--permission-mode") == ["acceptEdits"]
    assert after(launch, "--tools") == ["Read,Edit,Write,Glob,Grep,Bash"]
    assert after(launch, "--allowedTools") == ["Bash(ls *)"]
    assert after(launch, "--effort") == ["low"]
    assert after(launch, "--max-turns") == ["7"]
    assert after(launch, "--max-budget-usd") == ["0.500000"]
    assert json.loads(after(launch, "--json-schema")[0]) == SCHEMA
    helper = json.loads(after(launch, "--settings")[0])["apiKeyHelper"]
    assert launch.files[Path(shlex.split(helper)[1])] == KEY
    assert launch.env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert launch.stdin == PROMPT
    plain = started(claude, schema={"type": "array"}, key="")
    assert not {"--json-schema", "--allowedTools", "--effort", "--max-turns", "--max-budget-usd"} & {*plain.argv}
    assert after(plain, "--settings") == ["{}"]
    long = {**SCHEMA, "description": "x" * LONGEST_ARGUMENT}
    assert not after(started(claude, schema=long), "--json-schema")


def test_how_codex_is_started() -> None:
    """Its provider is one of ours, its key in a variable that its commands don't get, and a strict schema in a file."""
    codex = BUILT_IN_ADAPTERS["codex"]
    launch = started(
        codex, {"config": {"model_reasoning_effort": "high"}}, schema=SCHEMA, api_base="http://127.0.0.1:1/v1"
    )
    config = dict(each.split("=", 1) for each in after(launch, "-c"))
    assert config["model_providers.prefect_dispatch.base_url"] == '"http://127.0.0.1:1/v1"'
    assert config["model_providers.prefect_dispatch.env_key"] == f'"{CODEX_KEY}"'
    assert config["shell_environment_policy.exclude"] == f'["{CODEX_KEY}"]'
    assert config["model_reasoning_effort"] == '"high"'
    assert config["sandbox_workspace_write.exclude_slash_tmp"] == "true"
    assert after(launch, "-m") == ["gpt-5"]
    assert after(launch, "-s") == ["workspace-write"]
    assert launch.env[CODEX_KEY] == KEY
    assert json.loads(launch.files[Path(after(launch, "--output-schema")[0])]) == SCHEMA
    plain = started(codex, {"sandbox": "danger-full-access"}, schema={"type": "object"}, key="")
    assert after(plain, "-s") == ["danger-full-access"]
    assert "--output-schema" not in plain.argv
    assert CODEX_KEY not in plain.env
    assert dict(each.split("=", 1) for each in after(plain, "-c"))[
        "model_providers.prefect_dispatch.base_url"
    ] == '"https://api.openai.com/v1"'  # fmt: skip


def test_how_opencode_is_started() -> None:
    """All of it stands in a configuration of its own, the key in a file that this names."""
    opencode = BUILT_IN_ADAPTERS["opencode"]
    params = {"permission": {"bash": "deny"}, "provider": {"npm": "@x/y", "options": {"timeout": 1}}, "variant": "high"}
    launch = started(opencode, params, model="mine/m/1", api_base="http://127.0.0.1:1/v1")
    config = json.loads(launch.files[Path(launch.env["OPENCODE_CONFIG"])])
    provider = config["provider"]["mine"]
    assert (provider["npm"], provider["models"]) == ("@x/y", {"m/1": {}})
    assert provider["options"]["baseURL"] == "http://127.0.0.1:1/v1"
    assert provider["options"]["timeout"] == 1
    assert launch.files[Path(provider["options"]["apiKey"].removeprefix("{file:").removesuffix("}"))] == KEY
    assert (config["permission"]["bash"], config["permission"]["external_directory"]) == ("deny", "deny")
    assert after(launch, "-m") == ["mine/m/1"]
    assert after(launch, "--variant") == ["high"]
    plain = started(opencode, key="")
    assert json.loads(plain.files[Path(plain.env["OPENCODE_CONFIG"])])["provider"] == {"openai": {"options": {}}}
    unnamed = started(opencode, model="mine/m", api_base="http://127.0.0.1:1")
    assert json.loads(unnamed.files[HOME / "opencode.json"])["provider"]["mine"]["npm"] == "@ai-sdk/openai-compatible"


def test_how_mini_is_started() -> None:
    """All of it stands in a file of its own; the commands that it runs see an empty key."""
    launch = started(
        BUILT_IN_ADAPTERS["mini"],
        {"model_kwargs": {"seed": 1}},
        api_base="http://127.0.0.1:1",
        max_usd=0.5,
        max_turns=7,
    )
    config = json.loads(launch.files[Path(after(launch, "-c")[1])])
    assert config["run"]["task"].startswith(PROMPT)
    assert str(HOME / "answer.txt") in config["run"]["task"]
    assert config["model"]["model_name"] == "openai/gpt-5"
    assert config["model"]["model_kwargs"] == {"seed": 1, "api_base": "http://127.0.0.1:1"}
    assert (config["agent"]["cost_limit"], config["agent"]["step_limit"]) == (0.5, 7)
    assert config["environment"]["env"] == {"OPENAI_API_KEY": ""}
    assert config["environment"]["cwd"] == str(WORK)
    assert launch.env["OPENAI_API_KEY"] == KEY
    assert launch.cwd == HOME
    assert "OPENAI_API_KEY" not in started(BUILT_IN_ADAPTERS["mini"], key="").env


def test_what_codex_says() -> None:
    """Its end counts; errors before it are notes of new tries. Its last message is in a file, or in what it prints."""
    note = {"type": "error", "message": "Reconnecting... 1/3 (stream disconnected before completion)"}
    done = said("codex", note, codex_said("First."), codex_said(), codex_end())
    assert (done.reports_success, done.text, done.tokens, done.errors) == (True, "Done.", Tokens(100, 20, 40), ())
    assert said("codex", codex_said(), codex_end(), answer_txt="By file.").text == "By file."
    assert said("codex", codex_said(), codex_end(usage=None)).tokens is None
    declined = {
        "type": "item.completed",
        "item": {"type": "command_execution", "command": "rm x", "status": "declined"},
    }
    assert said("codex", declined, codex_end()).denials == ("rm x",)


REFUSED = (
    "2026-01-01T00:00:00Z ERROR codex_core::tools::router: error=exec_command failed: CreateProcess { message: "
    '"Rejected(\\"`/bin/bash -c \'rm -rf ~\'` rejected: rm -f style commands are not permitted.\\")" }\n'
)


def test_what_codex_refuses_itself() -> None:
    """Its policy tells it in its log alone; the model goes on, and so its work may be done all the same."""
    refused = said("codex", codex_said(), codex_end(), stderr=f"Reading …\n{REFUSED}{REFUSED}")
    why = "/bin/bash -c 'rm -rf ~' rejected: rm -f style commands are not permitted."
    assert (refused.reports_success, refused.denials, refused.refusals) == (True, (), (why, why))
    assert said("codex", codex_end(), stderr="ERROR codex_core: Rejected by a server").refusals == ()


def test_codex_without_its_sandbox() -> None:
    """Each command fails alike where none can be made; one that ran shows that there is one."""

    def ran(output: str, status: str = "failed") -> dict[str, object]:
        item = {"type": "command_execution", "command": "x", "aggregated_output": output, "status": status}
        return {"type": "item.completed", "item": item}

    none = "bwrap: No permissions to create a new namespace\n"
    assert said("codex", ran(none), ran(none), codex_end()).no_sandbox == none.strip()
    assert said("codex", ran(none), ran("x: not found\n"), codex_end()).no_sandbox == ""
    assert said("codex", ran(none, "completed"), codex_end()).no_sandbox == ""
    assert said("codex", codex_end()).no_sandbox == ""


@pytest.mark.parametrize(
    ("message", "status", "may_pass"),
    [
        pytest.param("unexpected status 401 Unauthorized: no, url: http://x/5/429", 401, False, id="401"),
        pytest.param("exceeded retry limit, last status: 429 Too Many Requests", 429, False, id="429"),
        pytest.param('{"error": {"message": "bad"}}', 400, False, id="400"),
        pytest.param("We are currently experiencing high demand, which may cause errors.", None, True, id="500"),
        pytest.param("stream disconnected before completion: network error", None, True, id="cut"),
        pytest.param("something else", None, False, id="unknown"),
    ],
)
def test_how_codex_fails(message: str, status: int | None, may_pass: bool) -> None:  # noqa: FBT001 -- a column
    """What it says of its provider tells whether another try is worth it; nobody knows what was spent."""
    for events in ([{"type": "turn.failed", "error": {"message": message}}], [{"type": "error", "message": message}]):
        found = said("codex", *events)
        assert (found.reports_success, found.errors, found.status, found.is_transient) == (
            False,
            (message,),
            status,
            may_pass,
        )
        assert found.tokens is None


def test_what_opencode_says() -> None:
    """A step that ends with `stop` is its end; steps are added up; without a price in its table its 0 means unknown."""
    text = {"type": "text", "part": {"text": "Done."}}
    synthetic = {"type": "text", "part": {"text": "Ours.", "synthetic": True}}
    first = step("tool-calls", input=10, output=2, reasoning=3, cache={"read": 5, "write": 1})
    done = said("opencode", first, text, synthetic, step("stop", input=1, output=1))
    assert (done.reports_success, done.text, done.tokens, done.cost_usd) == (True, "Done.", Tokens(17, 6, 5), 0.5)
    assert not said("opencode", first, text).reports_success
    assert said("opencode", step("stop", cost=0, input=1)).cost_usd is None
    assert said("opencode", step("stop"), "… 5 bytes left out …").tokens is None
    for error in ("The user rejected permission to use this", "prevents you from using", "no such file"):
        part = {"tool": "bash", "state": {"error": error, "input": {"command": "rm x"}}}
        found = said("opencode", {"type": "tool_use", "part": part}, step("stop"))
        assert found.denials == (() if "file" in error else ("bash rm x",))


def test_how_opencode_fails() -> None:
    """An error ends it unless a step follows."""

    def error(**data: object) -> dict[str, object]:
        return {"type": "error", "error": {"name": "APIError", "data": data}}

    found = said("opencode", error(message="no", statusCode=401, isRetryable=False))
    assert (found.reports_success, found.status, found.errors, found.is_transient) == (False, 401, ("no",), False)
    assert found.tokens is None
    assert said("opencode", error(message="cut", isRetryable=True)).is_transient
    assert said("opencode", error(message="cut"), step("stop")).reports_success
    assert said("opencode", {"type": "error", "error": {"name": "ContextOverflowError"}}).status == 413
    assert said("opencode", step("stop"), error(message="late")).reports_success is False


def test_what_mini_says() -> None:
    """Its trajectory says how it ended; its answer is in a file, or else what it submitted."""
    done = said("mini", trajectory_json=trajectory("Submitted", USAGE, USAGE))
    assert (done.reports_success, done.text, done.tokens, done.cost_usd) == (True, "Words.", Tokens(20, 4, 8), 0.5)
    assert (done.agent_version, done.errors) == ("2.4.6", ())
    assert said("mini", trajectory_json=trajectory("Submitted"), answer_txt=" By file. ").text == "By file."
    assert said("mini", trajectory_json=trajectory("Submitted", USAGE, {})).tokens is None
    assert said("mini", trajectory_json=trajectory("Submitted", USAGE, calls=2)).tokens is None
    assert not said("mini", "Submitted").reports_success


@pytest.mark.parametrize(
    ("status", "number", "limit", "may_pass"),
    [
        pytest.param("AuthenticationError", 401, "", False, id="401"),
        pytest.param("RateLimitError", 429, "", False, id="429"),
        pytest.param("InternalServerError", 500, "", False, id="500"),
        pytest.param("ContextWindowExceededError", 413, "", False, id="too-long"),
        pytest.param("APIConnectionError", None, "", True, id="connection"),
        pytest.param("LimitsExceeded", None, "max_usd", False, id="limit"),
        pytest.param("ValueError", None, "", False, id="unknown"),
    ],
)
def test_how_mini_fails(status: str, number: int | None, limit: str, may_pass: bool) -> None:  # noqa: FBT001 -- a column
    """The class of the error that ended it says what it means; it exits with 0 when a limit ended it."""
    found = said("mini", trajectory_json=trajectory(status, USAGE))
    assert (found.reports_success, found.status, found.limit, found.is_transient) == (False, number, limit, may_pass)
    assert found.errors == (f"{status}: it said no",)


def test_which_limit_ended_mini() -> None:
    """It was that of its turns if it had that many."""
    config = {"agent": {"step_limit": 2}}
    assert said("mini", trajectory_json=trajectory("LimitsExceeded", USAGE, USAGE, config=config)).limit == "max_turns"
    assert said("mini", trajectory_json=trajectory("LimitsExceeded", USAGE, config=config)).limit == "max_usd"


def test_what_claude_says() -> None:
    """Tokens of all models count, what was written to a cache too; without them nobody knows."""
    models = {
        "a": {"inputTokens": 1, "outputTokens": 2},
        "b": {"cacheReadInputTokens": 4, "cacheCreationInputTokens": 8},
    }
    found = said("claude", claude_start(), claude_end(modelUsage=models))
    assert (found.reports_success, found.tokens, found.agent_version) == (True, Tokens(13, 2, 4), "2.1.197")
    assert said("claude", claude_end(modelUsage=None)).tokens is None
    assert said("claude", claude_end(total_cost_usd=float("nan"))).cost_usd is None
    assert said("claude", claude_end(), claude_end(is_error=True)).reports_success is False


@pytest.mark.parametrize(
    ("message", "more", "may_pass"),
    [
        pytest.param("API Error: Connection closed mid-response. The response may be incomplete.", {}, True, id="cut"),
        pytest.param(
            "API Error: Response stalled while thinking, before producing a response.", {}, True, id="stalled"
        ),
        pytest.param("API Error: Connection to the API was lost (ECONNRESET).", {}, True, id="lost"),
        pytest.param("API Error: Request timed out.", {}, True, id="timeout"),
        pytest.param("API Error: Claude's response exceeded the 100 output token maximum.", {}, False, id="too-long"),
        pytest.param("API Error: 400 connection strings are no request", {"api_error_status": 400}, False, id="400"),
        pytest.param("The connection of the two parts is missing.", {}, False, id="its-own-words"),
    ],
)
def test_how_claude_tells_a_cut_stream(message: str, more: dict[str, Any], may_pass: bool) -> None:  # noqa: FBT001 -- a column
    """A provider's answer that broke off is worth another try; an answer that is no error never is."""
    assert said("claude", claude_end(is_error=True, result=message, **more), exit_code=1).is_transient is may_pass
    assert not said("claude", claude_end(result=message)).is_transient


def test_an_agent_that_is_described() -> None:
    """Words between braces are what they are in the run at hand; nothing else is replaced, and no shell reads them."""
    agent = Generic(
        name="mine",
        argv=(
            "mine", "{model}:{workspace}:{home}", "{prompt_file}", "{answer_file}", "{schema_file}",
            "{max_usd}{max_turns}", "{other} $HOME",
        ),
        stdin="nothing",
        env={"BASE": "{api_base}/x"},
    )  # fmt: skip
    launch = started(adapter_of(agent), schema=SCHEMA, api_base="http://127.0.0.1:1", max_usd=0.5, max_turns=7)
    assert launch.argv[1:] == (
        "openai/gpt-5:/work:/home-of-the-run", str(HOME / "prompt.txt"), str(HOME / "answer.txt"),
        str(HOME / "schema.json"), "0.5000007", "{other} $HOME",
    )  # fmt: skip
    assert launch.env == {"BASE": "http://127.0.0.1:1/x"}
    assert launch.stdin == ""
    assert launch.files == {HOME / "prompt.txt": PROMPT, HOME / "schema.json": json.dumps(SCHEMA, sort_keys=True)}


def described(**more: object) -> Generic:
    """Return an agent that is described."""
    return Generic.model_validate({"name": "mine", "argv": ("mine",), **more})


def test_what_a_described_agent_says() -> None:
    """Its answer, when it is done and what it spent are where its description says."""
    spent = {"prompt_tokens": "/usage/in", "completion_tokens": "/usage/out", "cost_usd": "/cost"}
    agent = described(done={"json_last": {"/ok": True}}, text="/messages/1/text", usage=spent)
    end = {"ok": True, "messages": [0, {"text": "Done."}], "usage": {"in": 3, "out": 4}, "cost": 0.5}
    found = said(agent, "Working …", {"ok": False}, end)
    assert (found.reports_success, found.text, found.tokens, found.cost_usd) == (True, "Done.", Tokens(3, 4), 0.5)
    wrong = said(agent, {**end, "ok": 1, "usage": {"in": "3"}, "cost": "much"})
    assert (wrong.reports_success, wrong.errors) == (False, ("/ok is 1 and not true",))
    assert (wrong.tokens, wrong.cost_usd) == (None, None)
    assert said(agent, "nothing").errors == ("/ok is null and not true",)
    assert said(agent, json.dumps(end, indent=1)).reports_success


def test_where_a_described_agent_says_it() -> None:
    """All that it prints, a file, or a place in its last object, whatever stands there."""
    assert said(described(), " All of it. ").text == "All of it."
    assert said(described(text="file"), "No.", answer_txt=" By file. ").text == "By file."
    assert said(described(text="file"), "No.").text == ""
    assert said(described(text="/a~1b/x"), {"a/b": {"x": [1]}}).text == "[1]"
    assert said(described(text="/a/9"), {"a": [1]}).text == ""
    assert said(described(text="/a/99999999999999999999"), {"a": [1]}).text == ""
    assert said(described(text="/a/x"), {"a": [1]}).text == ""


def test_exit_codes_of_a_described_agent() -> None:
    """Its description says which mean success, and which another time."""
    agent = described(done={"exit": [0, 3], "retry": [75]})
    assert said(agent, exit_code=3).valid_exit_codes == (0, 3)
    assert said(agent, exit_code=75).is_transient
    assert not said(agent, exit_code=1).is_transient
