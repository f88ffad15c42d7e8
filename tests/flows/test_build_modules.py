"""Modules that coding agents build apart from each other, merged at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from prefect_dispatch import Command, LLMCredentials, MergeBranches, build_modules
from prefect_dispatch.cli.commands import UNUSABLE, main
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.build_modules import Module, require_disjoint
from prefect_dispatch.flows.runtime.form_layout import with_form_messages
from tests.flows.builders import Site, module, seen
from tests.integrators.repos import WHO, files_at

if TYPE_CHECKING:
    from pathlib import Path

ORDER = [
    "modules", "repo", "agent", "credentials", "model", "about", "folder", "name", "merging", "limits", "results",
    "advanced",
]  # fmt: skip
LEXER = {"name": "lexer", "goal": "Split {text}.", "owns": ["calc/lexer.py", "tests/*lexer*"]}


def given(**more: object) -> Any:  # noqa: ANN401 -- the parts of a job
    """Return what a form with two fields, and some more, is put together to."""
    valid = build_modules.validate_parameters({"modules": [LEXER], "model": "m", **more})
    return with_form_messages(lambda: build_modules.form.build(**valid))


def test_the_form_has_few_fields_and_groups_in_order() -> None:
    """One field is enough; what is a choice is a choice, and what is JSON is a text that is edited as such."""
    form = build_modules.parameters.model_dump()
    fields = dict(sorted(form["properties"].items(), key=lambda field: field[1]["position"]))
    assert [*fields] == ORDER
    assert all(field["description"] for field in fields.values())
    assert form["required"] == ["modules"]
    groups = [form["definitions"][name]["properties"] for name in ("Merging", "Merging", "Advanced")]
    names = ("on_conflict", "check", "keep")
    assert [group[name]["enum"] for group, name in zip(groups, names, strict=True)] == [
        ["priority", "skip", "fail", "agent"],
        ["each", "end"],
        ["never", "failed"],
    ]
    assert fields["agent"]["anyOf"][0]["enum"] == ["claude", "codex", "opencode", "mini"]
    assert [each["title"] for each in fields["agent"]["anyOf"] if "title" in each] == ["Known"]
    described = form["definitions"]["Generic"]
    assert described["title"] == "Any other"
    assert [field.get("title") for field in described["properties"].values()] == [
        "Name",
        "Program and arguments",
        "Standard input",
        "Variables",
        "Variable of its key",
        "When it is done",
        "Where its answer is",
        "Where it says what it spent",
    ]
    params, limits = groups[2]["params"], form["definitions"]["Limits"]["properties"]
    assert (params["format"], params["default"]) == ("json-string", "{}")
    assert fields["credentials"]["block_type_slug"] == "llm-credentials"
    assert limits["time_limit_s"]["default"] == 1800
    assert [*form["definitions"]["Module"]["properties"]] == [
        "name",
        "goal",
        "owns",
        "interface",
        "accept",
        "needs",
        "candidates",
        "priority",
    ]


def test_values_in_groups_are_those_by_themselves() -> None:
    """A group that is submitted with its defaults changes nothing; a value in both ways is refused."""
    flat = {"budget_usd": 3, "max_usd": 1, "branch": "agents/x", "base": "main", "params": '{"effort": "high"}'}
    nested = {
        "limits": {"budget_usd": 3, "max_usd": 1},
        "results": {"branch": "agents/x"},
        "advanced": {"base": "main", "params": '{"effort": "high"}'},
    }
    assert build_modules.form.layout.nest(flat, {}) == nested
    assert given(**nested) == given(**flat)
    defaults = {"merging": {"accept": ""}, "advanced": {"params": "{}", "base": "HEAD"}}
    assert given(**defaults, params='{"effort": "high"}') == given(params='{"effort": "high"}')
    assert given(**defaults) == given()
    with pytest.raises(JobError, match="params: it is given both in the group `advanced` and by itself"):
        given(advanced={"params": '{"effort": "low"}'}, params='{"effort": "high"}')
    assert build_modules.form.layout.label("accept") == "Merging > Acceptance command"


def test_what_a_form_becomes() -> None:
    """A brief for each module, on one item; braces in it are meant as they stand; who merges sees no key."""
    parts = given(
        modules=[
            {**LEXER, "interface": "tokens({text})", "accept": "pytest", "priority": 3},
            {"name": "ui", "goal": "Draw.", "owns": ["ui/"]},
        ],
        about="A {calculator}.",
        setup="make",
        accept="make test",
        branch="agents/x",
        on_conflict="skip",
        check="each",
        pass_env=["ANTHROPIC_API_KEY", "LANG"],
        params='{"effort": "high"}',
        max_usd=2,
        max_turns=9,
        budget_usd=20,
        reasks=0,
        retries=1,
        min_success=1,
        keep="failed",
        base="main",
    )
    [item] = parts.items.items
    assert (item.key, item.value) == ("modules", "A {calculator}.")
    lexer, ui = (brief.fill_placeholders(item) for brief in parts.briefs)
    assert (lexer.instructions, lexer.writes, lexer.priority) == ("Split {text}.", tuple(LEXER["owns"]), 3)
    assert "meet it to the letter:\ntokens({text})" in lexer.constraints[0]
    assert (lexer.command.run, ui.command, ui.constraints) == ("pytest", None, ())
    executor, integrator, limits = parts.executor, parts.integrator, parts.limits
    assert (executor.agent, executor.model, executor.params) == ("claude", "m", {"effort": "high"})
    assert (executor.max_usd, executor.max_turns, executor.idle_s) == (2, 9, 900)
    workspace = executor.workspace
    assert (workspace.base, workspace.setup.run, workspace.keep) == ("main", "make", "failed")
    assert isinstance(integrator, MergeBranches)
    assert (integrator.on_conflict, integrator.check, integrator.branch) == ("skip", "each", "agents/x")
    assert (integrator.accept, integrator.workspace, integrator.agent) == (Command(run="make test"), workspace, None)
    assert (executor.pass_env, integrator.pass_env) == (("ANTHROPIC_API_KEY", "LANG"), ("LANG",))
    assert (limits.timeout_s, limits.concurrency, limits.reasks, limits.retries) == (1800, 4, 0, 1)
    assert (limits.budget_usd, limits.min_success) == (20, 1)
    assert (executor.api_base, integrator.force) == ("", False)
    elsewhere = given(api_base="http://127.0.0.1:1/v1/", branch="b", force=True)
    own = {"name": "own", "argv": ["own"], "env": {"BASE": "{api_base}"}}
    assert given(agent=own, api_base="http://x").executor.api_base == "http://x"
    assert (elsewhere.executor.api_base, elsewhere.integrator.force) == ("http://127.0.0.1:1/v1", True)
    assert given().items.items[0].value == "A module of the repository in the working directory."


@pytest.mark.parametrize(
    ("owns", "told"),
    [
        pytest.param(["../x"], r"'\.\./x' leads out of the repository", id="above"),
        pytest.param(["a/../../x"], "leads out of the repository", id="above-by-a-way"),
        pytest.param(["/etc/x"], "'/etc/x' leads out of the repository; write it from its top, such as", id="absolute"),
        pytest.param([".git/hooks/*"], r"'\.git/hooks/\*' is git's own", id="git"),
        pytest.param(["a/../.GIT/config"], "is git's own", id="git-by-a-way"),
        pytest.param(["a/**/../b"], r"goes up from '\*\*'", id="unreadable"),
        pytest.param([], "at least 1 item", id="nothing"),
        pytest.param([" "], "at least 1 character", id="empty"),
        pytest.param(["a\nb"], "match pattern", id="lines"),
    ],
)
def test_files_that_nobody_can_own(owns: list[str], told: str) -> None:
    """A module owns files of the repository, some at least."""
    with pytest.raises(ParameterTypeError, match=told) as wrong:
        given(modules=[{**LEXER, "owns": owns}])
    assert str(wrong.value).count("modules") == 1


@pytest.mark.parametrize(
    ("module", "told"),
    [
        pytest.param({"name": ""}, "name", id="no-name"),
        pytest.param({"name": "No Name"}, "name", id="no-such-name"),
        pytest.param({"goal": " "}, "goal", id="no-goal"),
        pytest.param({"owner": "me"}, "owner", id="unknown-key"),
    ],
)
def test_what_is_no_module(module: dict[str, str], told: str) -> None:
    """It has a name that can be one everywhere, and a goal; a misspelt key is none."""
    with pytest.raises(ParameterTypeError, match=told):
        given(modules=[{**LEXER, **module}])
    with pytest.raises(ParameterTypeError, match="modules"):
        given(modules=[])


@pytest.mark.parametrize(
    ("one", "other", "on"),
    [
        pytest.param(["a.py"], ["a.py"], "'a.py'", id="equal"),
        pytest.param(["a.py"], ["./b/../a.py"], "'a.py'", id="equal-by-a-way"),
        pytest.param(["src"], ["src/a.py"], "'src' and 'src/a.py'", id="below"),
        pytest.param(["x", "src/*.py"], ["y", "src/a*"], r"'src/\*.py' and 'src/a\*'", id="globs"),
        pytest.param(["**/t_*.py"], ["src/"], r"'\*\*/t_\*.py' and 'src'", id="folders"),
        pytest.param(["[ab].py"], ["[b-d].py"], r"'\[ab\].py' and '\[b-d\].py'", id="sets"),
    ],
)
def test_two_that_own_one_file_are_refused(one: list[str], other: list[str], on: str) -> None:
    """Both are named, and the globs that meet."""
    modules = [{"name": "one", "goal": "x", "owns": one}, {"name": "other", "goal": "y", "owns": other}]
    with pytest.raises(JobError, match=f"^modules: 'one' and 'other' both own {on}. Each file has one owner: narrow"):
        given(modules=modules)
    with pytest.raises(JobError, match=f"^modules: 'other' and 'one' both own {on}"):
        given(modules=modules[::-1])


def test_many_that_meet_are_counted() -> None:
    """One glob for all is one mistake: a message has no more than can be read. One of two names is refused as such."""
    every = [Module(name=f"m{at}", goal="x", owns=("src/**", f"src/{at}.py")) for at in range(8)]
    with pytest.raises(JobError, match=r"'m0' and 'm1' both own 'src/\*\*'.*; and 8 more pairs\. Each file"):
        require_disjoint(every)
    require_disjoint([Module(name="a", goal="x", owns=("src/*.py", "src/a*")), Module(name="b", goal="x", owns=("a",))])
    with pytest.raises(JobError, match=r"^modules: 'm0' stands there twice; give each a name of its own\."):
        require_disjoint([every[0], every[0]])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"model": ""}, "^model: name the model that claude asks, such as claude-sonnet-4-5", id="model"),
        pytest.param({"model": "", "agent": "mini"}, "that mini asks, such as anthropic/claude", id="model-of-mini"),
        pytest.param({"agent": "mini"}, "^model: mini takes a model as provider/model", id="provider"),
        pytest.param(
            {"model": "", "agent": {"name": "own", "argv": ["own", "-m", "{model}"]}},
            "^model: the agent 'own' needs a model; name one",
            id="model-of-another",
        ),
        pytest.param(
            {"params": {"colour": "red"}}, "^params: for 'claude': unknown key 'colour'; known are", id="params"
        ),
        pytest.param({"params": {"api_key": "sk-1"}}, "looks like a secret", id="secret"),
        pytest.param({"setup": "a\0b"}, "setup", id="setup"),
        pytest.param({"force": True}, "^'force' is for a branch that is published on", id="force"),
        pytest.param({"api_base": "http://me:pw@x"}, "^api_base: must be a plain address", id="address-with-a-key"),
        pytest.param(
            {"api_base": "http://x", "agent": {"name": "own", "argv": ["own"]}},
            r"^api_base: the agent 'own' takes no address; write \{api_base\} where it takes one",
            id="address-that-goes-nowhere",
        ),
    ],
)
def test_what_does_not_go_together_is_told(more: dict[str, Any], told: str) -> None:
    """The message begins with the field of the form, and says the way out."""
    with pytest.raises((JobError, ParameterTypeError), match=told):
        given(**more)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_model_that_the_credentials_have() -> None:
    """The default model of the credentials is asked; an agent that names none is called by its name."""
    LLMCredentials.model_validate({"api_key": "sk-x", "model": "anthropic/claude-x"}).save("of-agents", overwrite=True)
    executor = given(model="", credentials="of-agents").executor
    assert (executor.model, executor.credentials) == ("anthropic/claude-x", "of-agents")
    LLMCredentials.model_validate({"api_key": "sk-x"}).save("of-none", overwrite=True)
    with pytest.raises(JobError, match=r"^model: name the model that claude asks, .*model\.$"):
        given(model="", credentials="of-none")
    assert given(model="", agent={"name": "own", "argv": ["own"]}).executor.model == "own"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A repository, and an agent to work in it."""
    return Site(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"repo": "nowhere"}, "repo: there is no folder '.*nowhere'", id="no-repository"),
        pytest.param({"base": "v9"}, "base: 'v9' is no commit of the repository", id="no-base"),
        pytest.param({"agent": {"name": "a", "argv": ["gone-4711"]}}, "needs the program 'gone-4711'", id="no-program"),
        pytest.param({"agent": "cloude"}, "agent", id="no-agent"),
        pytest.param({"agent": {"name": "a", "argv": ["true"], "key": "A_KEY"}}, "credentials: .* no key", id="no-key"),
        pytest.param({"credentials": "not-there-4711"}, "credentials: .*not-there-4711", id="no-block"),
        pytest.param({"pass_env": ["NOT_SET_4711"]}, "NOT_SET_4711", id="not-set"),
        pytest.param({"branch": "main"}, "branch: 'main' is checked out in", id="checked-out"),
        pytest.param({"branch": "a..b"}, "branch: 'a..b' is not a valid name of a branch", id="no-branch"),
        pytest.param({"budget_usd": 5.0}, "budget_usd can't be held: .* set max_usd", id="budget"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("store")
def test_nothing_is_spent_where_it_can_not_end_well(site: Site, more: dict[str, Any], told: str) -> None:
    """Refused by the run as by its plan, in the words of the form, before any agent is started."""
    with pytest.raises((JobError, ParameterTypeError), match=told) as refused:
        site.build([module("one")], **more)
    assert not any(word in str(refused.value) for word in ("workspace.", "executor.", "limits."))
    assert site.asked == []


def test_globs_with_alternatives_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be a name with braces; so it is said, by the module's name."""
    job = {"flow": "build_modules", "repo": "repo", "agent": site.agent, "modules": [module("one", owns="{a,b}.py")]}
    (site.folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    assert main(["plan", str(site.folder / "job.yaml")]) == UNUSABLE
    assert "Brief 'one': the glob '{a,b}.py' uses {a,b}; write one glob for each." in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_names_agents_and_ceilings(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Who works, how long at most, and for how much at most; nothing is asked."""
    job = {"flow": "build_modules", "repo": "repo", "agent": site.agent, "modules": [module("one"), module("two")]}

    def told(**more: object) -> str:
        (site.folder / "job.yaml").write_text(yaml.safe_dump({**job, **more}), encoding="utf-8")
        assert main(["plan", str(site.folder / "job.yaml")]) == 0
        return capsys.readouterr().out

    said = told(max_usd=2.5)
    assert "literal with literal: 2 runs, 4 at once of 1800 s at most, and of 2.5 USD: 5 USD in all" in said
    assert "time at most: 1800 s a run" in said
    assert "nothing bounds what a run costs: set max_usd" in told()
    assert "limits.budget_usd is 4, which may be less than that takes" in told(max_usd=2.5, budget_usd=4)
    assert "about 1 times" in told(accept="true")
    assert site.asked == []


@pytest.mark.usefixtures("store")
def test_modules_are_built_and_merged_on_a_branch(site: Site) -> None:
    """All is there, on a branch of its own and as a patch; what the user has open is as it was, byte for byte.

    Run again, nobody is asked, not even whether it is accepted.
    """
    (site.git.repo / "README.md").write_text("Not yet committed.\n", encoding="utf-8")
    (site.git.repo / "new.txt").write_text("Not even added.\n", encoding="utf-8")
    (site.git.repo / "staged.txt").write_text("Added.\n", encoding="utf-8")
    site.git.output("add", "staged.txt")
    before = seen(site.git, but="agents/merged")
    modules = [
        module("one", "WRITE one.txt 1", owns=["one.txt"], accept="test -s one.txt", interface="It is {one}."),
        module("two", "WRITE two/deep.txt 2", "WRITE two/wide.txt 3", owns="two/"),
    ]
    more = {"accept": "test -s one.txt && test -s two/deep.txt", "branch": "agents/merged", "out": "report"}
    report = site.build(modules, **more)
    assert (report.status, report.usage.asked) == ("complete", 3)
    found = files_at(site.git, "agents/merged")
    assert found == {
        "README.md": b"What is to be.\n",
        "app.txt": b"1\n2\n3\n",
        "one.txt": b"1\n",
        "two/deep.txt": b"2\n",
        "two/wide.txt": b"3\n",
    }
    assert seen(site.git, but="agents/merged") == before
    out = site.folder / "report"
    assert {"merged.patch", "review.md", "branches.csv", "report.html"} <= {path.name for path in out.iterdir()}
    value = json.loads((out / "report.json").read_text(encoding="utf-8"))["value"]
    assert (value["accepted"], value["gaps"]) == (True, [])
    assert (value["base"], value["commit"]) == (site.base, site.git.output("rev-parse", "agents/merged"))
    assert f"The branch 'agents/merged' was made at {value['commit'][:12]}." in report.message
    again = site.build(modules, **more)
    assert (again.status, again.usage.asked, again.usage.cached) == ("complete", 0, 3)
    assert f"The branch 'agents/merged' is at {value['commit'][:12]} already." in again.message
    assert site.asked == ["WRITE one.txt 1", "WRITE two/deep.txt 2"]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_gaps_are_told_and_the_next_run_fills_them(site: Site) -> None:
    """What failed is in the value, the review and the state; the rest is merged. Again, only that is asked."""
    modules = [
        module("good"),
        module("outside", "WRITE good.txt mine", "WRITE outside.txt x"),
        module("broken", "EXIT 3"),
        module("red", "WRITE red.txt bad", accept="grep good red.txt"),
        module("mended", "WRITE mended.txt bad", "MEND mended.txt good", accept="grep good mended.txt"),
    ]
    report = site.build(modules, reasks=1, out="report", retries=0)
    assert report.status == "gaps"
    assert {gap.brief: gap.error.kind for gap in report.gaps} == {
        "outside": "scope",
        "broken": "exit",
        "red": "invalid_output",
    }
    value: Any = report.value
    assert [(each["brief"], each["status"]) for each in value["gaps"]] == [
        ("broken", "failed"),
        ("outside", "failed"),
        ("red", "failed"),
    ]
    assert files_at(site.git, value["commit"]).keys() == {"README.md", "app.txt", "good.txt", "mended.txt"}
    review = (site.folder / "report" / "review.md").read_text(encoding="utf-8")
    for name in ("broken", "outside", "red"):
        assert f"- {name}/modules has no change (failed: " in review
    asked = site.asked
    assert asked.count("WRITE red.txt bad") == asked.count("WRITE mended.txt bad") == 2
    modules[2] = module("broken", "WRITE broken.txt b")
    again = site.build(modules[:1] + modules[2:3] + modules[4:])
    assert (again.status, again.usage.asked, again.usage.cached) == ("complete", 1, 2)
    failed = site.build(modules, min_success=0.9, retries=0, branch="agents/merged")
    assert (failed.status, "at least 90% must be" in failed.message) == ("failed", True)
    assert site.git.run("rev-parse", "--verify", "--quiet", "agents/merged")[0]


@pytest.mark.slow
@pytest.mark.parametrize("check", ["each", "end"])
@pytest.mark.usefixtures("store")
def test_a_module_that_breaks_the_whole_is_left_out(site: Site, check: str) -> None:
    """It passes by itself, and the whole fails with it: it is named, and the branch has the others."""
    modules = [module(name) for name in ("a", "b", "c")]
    report = site.build(modules, accept="test ! -e b.txt", check=check, branch="agents/merged")
    assert report.status == "gaps"
    assert "b/modules is left out: accept: what passed without it fails with it: exit: " in report.message
    ends = {row.brief: (row.disposition, row.by) for row in report.ledger}
    assert ends == {"a": ("merged", None), "b": ("overridden", None), "c": ("merged", None)}
    assert files_at(site.git, "agents/merged").keys() == {"README.md", "app.txt", "a.txt", "c.txt"}


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_is_not_accepted_is_not_published(site: Site) -> None:
    """A base that fails as well accuses no module; the patch is left, and the branch isn't made."""
    report = site.build([module("a")], accept="false", branch="agents/merged", out="report")
    assert report.status == "gaps"
    assert "fails on what is merged, and on the base as well" in report.message
    assert "The branch 'agents/merged' is not moved, as what is merged isn't accepted" in report.message
    assert "+a" in (site.folder / "report" / "merged.patch").read_text(encoding="utf-8")
    assert site.git.run("rev-parse", "--verify", "--quiet", "agents/merged")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_branch_that_moved_meanwhile_stays(site: Site) -> None:
    """Somebody commits to it while agents are at work: nothing of that is lost, and the patch is left."""
    mine = site.git.output("commit-tree", f"{site.base}^{{tree}}", "-p", site.base, stdin=b"Mine\n", env=WHO)
    move = f"git -C {site.git.repo} update-ref refs/heads/agents/merged {mine}"
    report = site.build([module("a")], accept=move, branch="agents/merged", out="report")
    assert report.status == "gaps"
    assert f"has 1 commit that the merge lacks, such as {mine[:12]}" in report.message
    assert site.git.output("rev-parse", "agents/merged") == mine
    assert "+a" in (site.folder / "report" / "merged.patch").read_text(encoding="utf-8")


def test_agents_may_ask_where_their_answers_have_a_file() -> None:
    """Without one, they must decide."""
    assert given().executor.answers is None
    assert given(answers="answers.yaml").executor.answers == "answers.yaml"
