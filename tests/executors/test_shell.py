"""A command for each item: what it gets to see, what its end means, and what it can't do."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dispatch import Brief, Command, Item, Shell
from prefect_dispatch.errors import ExecutorError, JobError, RejectedError, TerminalError, TransientError
from prefect_dispatch.executors.base import Ask, Executor, fingerprint
from prefect_dispatch.executors.command_checks import MAX_VARIABLE_BYTES, require_item_variables
from prefect_dispatch.executors.shell import MAX_KEPT_BYTES
from prefect_dispatch.processes.runner import MAX_LOG_BYTES as MOST_LOGGED
from prefect_dispatch.processes.state_folder import state_folder
from tests.processes.programs import Crowd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

ITEM = Item(key="a.txt", value="some words")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder."""
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def brief(run: str | Sequence[str] = "true", *, output: Any = "text", reads: Sequence[str] = (), **more: Any) -> Brief:  # noqa: ANN401 -- whatever a job may say
    """Return a brief with a command."""
    return Brief.model_validate(
        {
            "name": "count",
            "instructions": "Count.",
            "output": output,
            "reads": reads,
            "command": {"run": run, **more},
        }
    )


def answer(what: Brief, item: Item = ITEM, shell: Shell | None = None, folder: Path | None = None) -> JsonValue:
    """Return what a shell answers."""
    shell = shell or Shell()
    if folder is not None:
        shell = shell.resolve_paths(folder)
    return asyncio.run(shell.answer(Ask(brief=what, item=item))).value


def failure(what: Brief, item: Item = ITEM, shell: Shell | None = None, folder: Path | None = None) -> ExecutorError:
    """Return the error that a shell raises."""
    with pytest.raises(ExecutorError) as caught:
        answer(what, item, shell, folder)
    return caught.value


def fitted(what: Brief, folder: Path, shell: Shell | None = None) -> None:
    """Look whether a shell can answer a brief."""
    (shell or Shell()).resolve_paths(folder).require_supported([what])


SHOW = "import os, sys; sys.stdout.write(os.environ['ITEM_VALUE'])"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("plain", "plain", id="text"),
        pytest.param("$(touch pwned); `touch pwned` && rm -rf . | x > pwned #", None, id="metacharacters"),
        pytest.param("'; touch pwned; '", None, id="quotes"),
        pytest.param('" ; touch pwned ; "', None, id="double-quotes"),
        pytest.param("first\nsecond\r\nthird", None, id="lines"),
        pytest.param("-rf --help", None, id="options"),
        pytest.param("{key} {{ item }} ${ITEM_KEY} %s \\n", None, id="templates"),
        pytest.param("ünï 漢字 \u202e 🙂", None, id="beyond-ascii"),
        pytest.param({"a": [1, None, "é"], "b": True}, '{"a": [1, null, "é"], "b": true}', id="object"),
        pytest.param([1, 2.5], "[1, 2.5]", id="list"),
        pytest.param(7, "7", id="number"),
        pytest.param(None, "null", id="nothing"),
    ],
)
@pytest.mark.parametrize("way", ["variable", "shell", "stdin"])
def test_a_value_arrives_as_it_is(value: JsonValue, expected: str | None, way: str, folder: Path) -> None:
    """By variable, through a shell or on standard input: character by character, and never run."""
    what = {
        "variable": brief([sys.executable, "-c", SHOW]),
        "shell": brief('printf %s "$ITEM_VALUE"'),
        "stdin": brief("cat", stdin=True),
    }[way]
    assert answer(what, Item(key="k", value=value), folder=folder) == (value if expected is None else expected)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_arrives_as_it_is(text: str) -> None:
    """Whatever an item is, a command reads it, and reads nothing else."""
    what = brief('printf %s "$ITEM_VALUE" > "$TMPDIR/x"; cat > "$TMPDIR/y"; cat "$TMPDIR/x"; test ! -s "$TMPDIR/y"')
    assert answer(what, Item(key="k", value=text)) == text.rstrip("\r\n")


def test_keys_and_fields_have_variables() -> None:
    """`ITEM_KEY` is the key; each plain field of an object stands in one of its own."""
    item = Item(key="k;1", value={"unit-price": 2.5, "ok": False, "név": "é", "none": None, "tags": ["x"]})
    said = answer(brief("env | grep ^ITEM_ | sort"), item)
    assert isinstance(said, str)
    assert said.splitlines() == [
        "ITEM_KEY=k;1",
        "ITEM_N_V=é",
        "ITEM_OK=false",
        "ITEM_UNIT_PRICE=2.5",
        'ITEM_VALUE={"unit-price": 2.5, "ok": false, "név": "é", "none": null, "tags": ["x"]}',
    ]
    assert answer(brief("env | grep ^ITEM_", stdin=True), item) == "ITEM_KEY=k;1"
    row = Item(key="k", value={"key": "k", "n": 1})
    assert answer(brief('echo "$ITEM_KEY $ITEM_N"'), row) == "k 1"


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        pytest.param("a\0b", "nul", "NUL", id="nul"),
        pytest.param({"a": "x\0"}, "nul", "ITEM_A can't hold a NUL", id="nul-in-a-field"),
        pytest.param(
            "x" * (MAX_VARIABLE_BYTES + 1), "too_large", f"would take {MAX_VARIABLE_BYTES + 1:,} bytes", id="too-long"
        ),
        pytest.param({"a-b": 1, "a_b": 2}, "fields", "ITEM_A_B would be the field 'a-b' and the field 'a_b'", id="two"),
        pytest.param({"key": 1}, "fields", "ITEM_KEY would be the key and the field 'key'", id="a-field-key"),
    ],
)
def test_what_no_variable_holds_is_refused_with_the_way_out(value: JsonValue, kind: str, told: str) -> None:
    """The item fails before anything is run, at no cost; on standard input it goes."""
    item = Item(key="k", value=value)
    error = failure(brief("cat"), item)
    assert isinstance(error, RejectedError)
    assert (error.kind, error.usage and error.usage.requests) == (kind, 0)
    assert told in str(error)
    assert "stdin: true" in str(error)
    assert answer(brief("wc -c", stdin=True), item)


def test_a_key_that_no_variable_holds() -> None:
    """It is a variable whatever is on standard input: another key is the way out."""
    error = failure(brief("cat", stdin=True), Item(key="a\0b", value="x"))
    assert (error.kind, "give it a key without one" in str(error)) == ("nul", True)


def test_many_long_fields_do_not_fit() -> None:
    """What the system refuses for its size is this item's failure, and nobody else's."""
    error = failure(brief("true"), Item(key="k", value={f"f{n}": "x" * 90_000 for n in range(60)}))
    assert (type(error), error.kind) == (RejectedError, "too_large")


def test_a_command_sees_what_is_listed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the flow's reaches a command, unless it is named; then it is hidden in what the command prints."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-flow-4711")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu-of-the-flow-4711")
    monkeypatch.setenv("DEPLOY_TOKEN", "correct-horse-battery")
    names = "env | sed 's/=.*//' | sort"
    said = str(answer(brief(names, env={"MINE": "1"}))).split()
    passed = {"PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME"} & set(os.environ)
    own = {"HOME", "TMPDIR", "REPORT_DIR", "ITEM_KEY", "ITEM_VALUE", "MINE", "PWD", "GIT_CEILING_DIRECTORIES"}
    marks = {f"PREFECT_DISPATCH_{name}" for name in ("COOKIE", "GUARD", "LEASE")}
    extra = {name for name in said if name.startswith(("LC_", "SSL_")) or name.endswith(("_CERTS", "_BUNDLE"))}
    assert set(said) - {"_", "OLDPWD", "SHLVL"} == passed | own | marks | extra
    shown = brief('echo "token: $DEPLOY_TOKEN"; echo $DEPLOY_TOKEN >&2; exit ${CODE:-0}')
    assert answer(shown, shell=Shell(pass_env=("DEPLOY_TOKEN",))) == "token: ***"
    failed = failure(brief("echo $DEPLOY_TOKEN >&2; exit 2"), shell=Shell(pass_env=("DEPLOY_TOKEN",)))
    assert "horse" not in str(failed)
    logs = [path.read_text() for path in (state_folder() / "logs").glob("*/*.log")]
    assert logs
    assert not [text for text in logs if "horse" in text]


def test_home_and_temporary_folder_are_its_own_and_gone_afterwards() -> None:
    """Nothing that a command leaves there meets another."""
    said = str(answer(brief('touch "$HOME/.x" "$TMPDIR/y"; ls -A "$HOME" "$TMPDIR" | wc -l; echo "$HOME"; pwd')))
    _, home, here = said.splitlines()
    assert not os.path.exists(home)  # noqa: PTH110 -- a text
    assert home.startswith(str(state_folder()))
    assert here == os.getcwd()  # noqa: PTH109 -- the same


@pytest.mark.parametrize(
    ("what", "error", "kind", "told"),
    [
        pytest.param({"run": "echo no good >&2; exit 3"}, RejectedError, "exit", "(exit code 3): no good", id="3"),
        pytest.param({"run": "exit 75", "retry": [75]}, TransientError, "retry", "asks for another try", id="retry"),
        pytest.param({"run": "exit 0", "ok": [1]}, RejectedError, "exit", "it printed nothing", id="0-is-not-ok"),
        pytest.param({"run": "kill -9 $$"}, RejectedError, "signal", "SIGKILL (as the system does", id="kill"),
        pytest.param({"run": "kill -TERM $$"}, RejectedError, "signal", "ended by SIGTERM:", id="term"),
        pytest.param({"run": "kill -40 $$"}, RejectedError, "signal", "ended by signal 40", id="a-real-time-signal"),
        pytest.param({"run": "printf '\\377'"}, RejectedError, "not_text", "no UTF-8 text (at byte 0)", id="bytes"),
    ],
)
def test_how_it_ends_is_what_it_means(
    what: dict[str, Any], error: type[ExecutorError], kind: str, told: str, folder: Path
) -> None:
    """Exit codes by the brief; an end by a signal is a failure; each tells where to read on."""
    found = failure(brief(what.pop("run"), **what), folder=folder)
    assert (type(found), found.kind) == (error, kind)
    assert told in str(found)
    assert "(all of it: " in str(found)


def test_other_exit_codes_may_be_success() -> None:
    """A linter that found something has not failed."""
    assert answer(brief("echo a.py:1 unused; exit 1", ok=[0, 1])) == "a.py:1 unused"


def test_who_says_nothing_has_an_answer() -> None:
    """Success without a word is success; where JSON is wanted, nothing is no answer."""
    assert answer(brief("true")) == "(printed nothing)"
    assert answer(brief("echo")) == "(printed nothing)"
    assert answer(brief("true", output={"type": "object"})) == ""


def test_an_error_quotes_the_end_of_a_long_complaint() -> None:
    """The last lines, whole; all of it is in the log that it names."""
    error = str(failure(brief("seq 100000 >&2; echo the reason >&2; exit 1")))
    assert "99999\n100000\nthe reason" in error
    assert len(error) < 1500
    with open(error.rpartition("(all of it: ")[2].rstrip(")")) as log:  # noqa: PTH123 -- a text
        assert log.read() == "".join(f"{n}\n" for n in range(1, 100_001)) + "the reason\n"


@pytest.mark.slow
def test_an_answer_has_an_end() -> None:
    """Two megabytes are an answer, more are refused; the log has more than that, and says where it stops."""
    most = answer(brief(f"head -c {2 * MAX_KEPT_BYTES} /dev/zero | tr '\\0' x"))
    assert isinstance(most, str)
    assert len(most) == 2 * MAX_KEPT_BYTES
    error = failure(brief(f"head -c {MOST_LOGGED + 2_000_000} /dev/zero | tr '\\0' x"))
    assert (type(error), error.kind) == (RejectedError, "too_large")
    assert "printed 22,000,000 bytes, and an answer has 2,097,152 at most" in str(error)


def test_silence_ends_a_command() -> None:
    """`idle_s`: silent for too long is worth another try."""
    error = failure(brief("echo begun; sleep 1000"), shell=Shell(idle_s=0.2))
    assert (type(error), error.kind) == (TransientError, "idle")
    assert "begun" in str(error)


@pytest.mark.slow
def test_cancelling_ends_all_of_it() -> None:
    """A time limit leaves no child, however it hides, and no folder."""
    crowd = Crowd()
    before = sorted((state_folder() / "leases").glob("*"))

    async def limited() -> None:
        with anyio.fail_after(0.5):
            shell, ask = Shell(), Ask(brief=brief(f"(setsid {crowd.waits} &); {crowd.waits}"), item=ITEM)
            await shell.answer(ask)

    with pytest.raises(TimeoutError):
        asyncio.run(limited())
    assert crowd.alive == []
    assert sorted((state_folder() / "leases").glob("*")) == before


@pytest.mark.parametrize(
    ("run", "told"),
    [
        pytest.param("wc -w {{ item }}", "'{{ item }}' would stay as it stands", id="jinja"),
        pytest.param("wc -w {{item.path | quote}}", 'write "$ITEM_VALUE"', id="jinja-filter"),
        pytest.param(["wc", "-w", "{key}"], 'write "$ITEM_KEY"', id="a-placeholder"),
        pytest.param("wc -w '{{ value }}'", "stdin: true", id="quoted"),
        pytest.param("head -n {max-lines} x; wc {path}", 'write "$ITEM_PATH"', id="a-field"),
        pytest.param("wc {path.name}", 'write "$ITEM_PATH"', id="inside-a-field"),
        pytest.param(
            'wc -w "$ITEM_PAHT"',
            "$ITEM_PAHT is never set: an item gives ITEM_KEY, ITEM_VALUE, ITEM_PATH",
            id="misspelt",
        ),
        pytest.param("wc -w ${ITEM_SIZE}", "write ${ITEM_SIZE:-}", id="misspelt-in-braces"),
    ],
)
def test_a_command_with_a_place_for_an_item_is_refused(run: str | list[str], told: str) -> None:
    """What would be run as it stands, or with nothing in its place, is told with what to write."""
    items = [Item(key="a", value={"path": "a.txt"}), Item(key="b", value="b.txt")]
    with pytest.raises(JobError) as caught:
        require_item_variables([brief("true"), brief(run)], items)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "run",
    [
        "for key in 1 2; do echo ${key} {a,b}; done",
        "awk '{print $1; n += {}}' | docker ps --format '{{.Names}}' && find . -exec wc {} +",
        'echo "$ITEM_KEY ${ITEM_VALUE} ${ITEM_PATH}"',
        "echo {other} {{ other }}",
        "echo ${ITEM_OTHER:-none} ${ITEM_MORE:+x}",
        "ITEM_N=1; for ITEM_I in 1; do echo $ITEM_N$ITEM_I; done; read -r ITEM_A ITEM_B; echo $ITEM_B",
        'echo "$ITEM_MINE"',
    ],
)
def test_what_a_shell_means_by_braces_is_left_alone(run: str) -> None:
    """A shell's own variables, and the braces of other programs, are nobody's placeholders."""
    require_item_variables([brief(run, env={"ITEM_MINE": "1"})], [Item(key="a", value={"path": "a.txt"})])
    require_item_variables([Brief(name="x", instructions="{{ item }}")], [ITEM])


def test_on_standard_input_there_is_no_variable_for_the_value() -> None:
    """Who reads it there and names the variable gets told."""
    with pytest.raises(JobError, match="an item gives ITEM_KEY; with stdin: true its value is on standard input only"):
        require_item_variables([brief('wc "$ITEM_VALUE"', stdin=True)], [ITEM])
    with pytest.raises(JobError, match="a part of a command: read it from standard input"):
        require_item_variables([brief("wc {{ item }}", stdin=True)], [ITEM])
    with pytest.raises(JobError, match='a part of a command: write "\\$ITEM_KEY" for it'):
        require_item_variables([brief("wc {key}", stdin=True)], [ITEM])


def test_a_field_without_a_variable_of_its_own_is_refused_beforehand() -> None:
    """Item, variable and both fields are named; on standard input, or where both say the same, nothing is in doubt."""
    clashing = Item(key="it", value={"a-b": 1, "a_b": 2})
    with pytest.raises(JobError, match="Item 'it': ITEM_A_B would be the field 'a-b' and the field 'a_b': call one"):
        require_item_variables([brief("true", stdin=True), brief("true")], [ITEM, clashing])
    with pytest.raises(JobError, match="Item 'it': ITEM_VALUE would be the whole value and the field 'value'"):
        require_item_variables([brief("true")], [Item(key="it", value={"value": "x"})])
    require_item_variables([brief("true", stdin=True)], [clashing])
    require_item_variables([brief("true")], [Item(key="it", value={"a-b": 1, "a_b": 1, "key": "it"})])


def test_where_there_is_no_item_nothing_can_be_wrong() -> None:
    """An empty folder is no reason to refuse a job; a field that has no variable of its own is one."""
    require_item_variables([brief("wc $ITEM_NAME {name}")], [])
    with pytest.raises(JobError, match=r"\$ITEM_TAGS is never set"):
        require_item_variables([brief("wc $ITEM_TAGS")], [Item(key="a", value={"tags": ["x"], "none": None})])


@pytest.mark.parametrize(
    ("what", "shell", "told"),
    [
        (Brief(name="x", instructions="Do."), {}, "Brief 'x' has no command, and a shell runs one"),
        (brief("true", env={"API_TOKEN": "x"}), {}, "'API_TOKEN' looks like a secret"),
        (brief("true", env={"HEADER": "sk-ant-REDACTED"}), {}, "'HEADER' looks like a secret"),
        (brief("true", env={"ITEM_KEY": "x"}), {}, "'ITEM_KEY' is set for each item"),
        (brief("true", report=["*.xml"]), {}, "set output: prefect_dispatch.test_run:TestRun"),
        (brief(["no-such-program-4711"]), {}, "the program 'no-such-program-4711' isn't here"),
        (brief(["./run.sh"]), {}, "the program './run.sh' isn't here"),
        (brief(["true"], env={"PATH": "/nowhere"}), {}, "the program 'true' isn't here"),
        (brief("true"), {"pass_env": ["NOT_SET_4711"]}, "'NOT_SET_4711' is not set here"),
        (brief("true"), {"pass_env": ["HOME"]}, "'HOME' is set separately for each program"),
        (brief("true"), {"cwd": "../elsewhere"}, "leads out of the job's folder"),
        (brief("true"), {"cwd": "/etc"}, "leads out of the job's folder"),
        (brief("true"), {"cwd": "gone"}, "there is no folder 'gone'"),
        (brief("true"), {"cwd": "link"}, "is a link that leads out of the job's folder"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    what: Brief, shell: dict[str, Any], told: str, folder: Path
) -> None:
    """Each with what to change."""
    (folder / "link").symlink_to("/etc")
    with pytest.raises(JobError) as caught:
        fitted(what, folder, Shell.model_validate(shell))
    assert told in str(caught.value)


def test_what_can_be_run(folder: Path) -> None:
    """Programs of the job's folder, of PATH, and by their whole path; in a folder of the job's."""
    (folder / "sub").mkdir()
    script = folder / "sub" / "run.sh"
    script.write_text("#!/bin/sh\npwd\n")
    script.chmod(0o755)
    for run, cwd in (("./sub/run.sh", "."), ("./run.sh", "sub"), (str(script), "."), ("pwd", "sub/../sub")):
        shell = Shell(cwd=cwd)
        fitted(brief([run]), folder, shell)
        where = folder / "sub" if "sub" in cwd else folder
        assert answer(brief([run]), shell=shell, folder=folder) == str(where)


def test_a_program_that_goes_away_meanwhile(folder: Path) -> None:
    """Every item would meet it, so that it stops the run."""
    error = failure(brief(["./gone.sh"]), folder=folder)
    assert (type(error), error.kind) == (TerminalError, "missing_program")
    error = failure(Brief(name="x", instructions="Do."))
    assert (type(error), error.kind) == (TerminalError, "command")


def test_what_counts_in_a_fingerprint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, its folder, what it reads and which variables it sees; no value of those, and no idle limit."""
    monkeypatch.setenv("SOME_TOKEN", "first")
    (folder / "sub").mkdir()
    (folder / "data.csv").write_text("1")

    def mark(what: Brief | None = None, **shell: Any) -> str:  # noqa: ANN401 -- fields
        placed = Shell.model_validate(shell).resolve_paths(folder)
        return fingerprint(what or brief("wc", reads=["*.csv"]), ITEM, placed)

    first = mark()
    others = [
        mark(brief("wc -l", reads=["*.csv"])),
        mark(brief(["wc"], reads=["*.csv"])),
        mark(brief("wc", reads=["*.csv"], env={"A": "1"})),
        mark(cwd="sub"),
        mark(pass_env=["SOME_TOKEN"]),
    ]
    assert len({first, *others}) == 6
    assert first == mark() == mark(idle_s=5) == mark(cwd="sub/..")
    token = mark(pass_env=["SOME_TOKEN"])
    monkeypatch.setenv("SOME_TOKEN", "second")
    assert mark(pass_env=["SOME_TOKEN"]) == token
    (folder / "data.csv").write_text("2")
    assert mark() != first
    (folder / "data.csv").write_text("1")
    (folder / "other.txt").write_text("not read")
    assert mark() == first


def test_what_commands_write_meanwhile_is_not_what_they_read(folder: Path) -> None:
    """A run looks once; the next one looks again."""
    (folder / "log.csv").write_text("1")
    shell, what = Shell().resolve_paths(folder), brief("true", reads=["*.csv"])
    before = fingerprint(what, ITEM, shell)
    (folder / "log.csv").write_text("2")
    assert fingerprint(what, ITEM, shell) == before
    assert fingerprint(what, ITEM, Shell().resolve_paths(folder)) != before


def test_a_shell_that_nobody_has_placed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called alone, it runs where this process does."""
    monkeypatch.chdir(folder)
    (folder / "a.csv").write_text("1")
    what = brief("pwd", reads=["*.csv"])
    assert answer(what) == str(folder)
    assert Shell().fingerprint == Shell().resolve_paths(folder).fingerprint
    assert fingerprint(what, ITEM, Shell()) == fingerprint(what, ITEM, Shell().resolve_paths(folder))


def test_an_executor_like_any_other() -> None:
    """It keeps the Protocol, costs nothing that could be counted, and shares one pace."""
    shell = Shell()
    assert isinstance(shell, Executor)
    shell.require_available()
    ceiling = shell.cost_bound(Ask(brief=brief(), item=ITEM))
    assert (shell.name, shell.price(), shell.count_tokens(brief(), ITEM)) == ("shell", (0.0, 0.0), 0)
    assert (ceiling.prompt_tokens, ceiling.completion_tokens, ceiling.cost_usd) == (0, 0, 0.0)
    assert shell.expected_completion_tokens(brief()) == 0
    assert Shell.model_validate(shell.model_dump(mode="json")) == shell


def test_a_command_is_data() -> None:
    """It is what a job says; nothing in it is called."""
    assert Command(run="wc").argv == ("/bin/sh", "-c", "wc")
