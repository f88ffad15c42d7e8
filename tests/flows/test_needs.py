"""Modules that start from the changes of others, and modules that write the same files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from prefect_dispatch import LLM, Brief, Item, Limits, MergeBranches, dispatch
from prefect_dispatch.cli.commands import UNUSABLE, main
from prefect_dispatch.errors import DependenceError, JobError
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.flows.prepare import plan
from prefect_dispatch.tasks.shards.options import Processes
from tests.flows.builders import Site, module
from tests.integrators.repos import files_at

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("store")]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A repository, and an agent to work in it."""
    return Site(tmp_path)


CORE = module("core", "WRITE core.txt 1|2|3|4|5")
LEXER = module("lexer", "MUST core.txt", "WRITE lexer.txt l", needs=["core"])
PARSER = module("parser", "MUST lexer.txt", "MUST core.txt", "WRITE parser.txt p", needs=["lexer"])


def trailer(site: Site, commit: str) -> str:
    """Return the title of a commit and of its first parent."""
    return site.git.output("log", "-2", "--first-parent", "--format=%s", commit)


@pytest.mark.slow
def test_a_module_starts_from_what_it_needs(site: Site) -> None:
    """Its agent has the changes of what it needs, in whichever order they stand; run again, no agent is asked.

    If what it needs has changed, it is asked again, as it starts from something else.
    """
    results: set[str] = set()
    for modules in ([CORE, LEXER, PARSER], [PARSER, LEXER, CORE]):
        report = site.build(modules, branch="agents/merged", force=True)
        assert (report.status, len(site.asked)) == ("complete", 3)
        results.add(report.model_dump_json(include={"value", "ledger", "fields", "gaps", "tables", "rules"}))
    assert len(results) == 1
    found = files_at(site.git, "agents/merged")
    assert {"core.txt", "lexer.txt", "parser.txt"} < {*found}
    assert "By `needs`, 'lexer' starts from 'core'; 'parser' starts from 'lexer'." in report.rules
    # The history says what each change started from.
    assert trailer(site, "agents/merged^2").splitlines()[0].startswith("parser/modules: ")
    assert trailer(site, "agents/merged^2").splitlines()[1].startswith("lexer/modules: ")
    changed = {**CORE, "goal": "WRITE core.txt 9"}
    assert site.build([changed, LEXER, PARSER]).status == "complete"
    assert len(site.asked) == 6
    # What needs nothing of it isn't asked again.
    assert site.build([changed, LEXER, PARSER, module("other")]).status == "complete"
    assert len(site.asked) == 7
    assert site.build([changed, LEXER, PARSER], refresh="lexer").status == "complete"
    assert len(site.asked) == 8


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["report", "auto"])
def test_a_pilot_builds_nothing_that_needs_others(site: Site, gate: str) -> None:
    """What needs the pilot's modules waits for the decision; without it, nothing is merged, and nothing lost."""
    modules, pilot = [CORE, LEXER, PARSER, module("other")], {"items": 3, "gate": gate}
    pilot |= {"min_success": 1.0} if gate == "auto" else {}
    report = site.build(modules, branch="agents/merged", pilot=pilot)
    result: Any = report.run["pilot"]
    assert (result["asked"], result["rest"], result["valid"]) == (2, 2, 2)
    if gate == "report":
        assert (report.status, len(site.asked)) == ("gaps", 2)
        assert {gap.brief: gap.error.kind for gap in report.gaps} == {"lexer": "pilot", "parser": "needs"}
        assert site.git.output("branch", "--list", "agents/merged") == ""
        report = site.build(modules, branch="agents/merged")
    assert (report.status, len(site.asked)) == ("complete", 4)
    assert {"core.txt", "lexer.txt", "parser.txt", "other.txt"} < {*files_at(site.git, "agents/merged")}


@pytest.mark.slow
def test_a_pilot_of_what_needs_others_alone_is_none(site: Site) -> None:
    """If all that can be asked first is stored, the rest is asked."""
    assert site.build([CORE]).status == "complete"
    assert site.build([CORE, LEXER, PARSER], pilot={"items": 1, "gate": "report"}).status == "complete"
    assert len(site.asked) == 3


@pytest.mark.slow
def test_a_module_goes_on_in_the_files_of_what_it_needs(site: Site) -> None:
    """The two may own one file, as they have an order; what both have changed is there once, without a conflict."""
    more = module("more", "MUST core.txt", "WRITE core.txt 1|2|3|4|6", owns="core.*", needs=["core"])
    report = site.build([CORE, more], branch="agents/merged")
    assert report.status == "complete", report.message
    assert files_at(site.git, "agents/merged")["core.txt"] == b"1\n2\n3\n4\n6\n"
    assert [row for table in report.tables if table.name in ("overlaps", "conflicts") for row in table.rows] == []


@pytest.mark.slow
def test_several_needs_are_merged_before_it_starts(site: Site) -> None:
    """It has the changes of all; two of them may be equal."""
    top = module("top", "MUST core.txt", "MUST b.txt", "WRITE top.txt t", needs=["core", "b", "same"])
    same = module("same", "WRITE core.txt 1|2|3|4|5", owns="core.*")
    modules = [CORE, module("b"), top, same]
    report = site.build(modules, branch="agents/merged", overlap="merge")
    ends = {row.brief: row.disposition for row in report.ledger}
    assert ends == {"core": "merged", "same": "duplicate_of", "b": "merged", "top": "merged"}


@pytest.mark.slow
def test_what_it_needs_has_failed(site: Site) -> None:
    """It is skipped, and with it all that needs it; each names what it needs, and what became of that."""
    broken = {**CORE, "goal": "EXIT 3"}
    report = site.build([broken, LEXER, PARSER, module("other")], retries=0)
    gaps = {gap.brief: (gap.status, gap.error.kind, gap.error.message) for gap in report.gaps}
    assert report.status == "gaps"
    assert gaps["lexer"][:2] == gaps["parser"][:2] == ("skipped", "needs")
    assert gaps["lexer"][2].startswith("Not asked: it needs 'core/modules', which has failed (")
    assert gaps["parser"][2] == "Not asked: it needs 'lexer/modules', which was skipped (needs)."
    assert len(site.asked) == 2
    repaired = site.build([CORE, LEXER, PARSER, module("other")])
    assert repaired.status == "complete"


@pytest.mark.slow
@pytest.mark.parametrize("check", ["each", "end"])
def test_what_it_needs_is_left_out(site: Site, check: str) -> None:
    """A change that starts from one that breaks the whole is left out, too, and so says the ledger."""
    accept = "! test -e core.txt"
    report = site.build([CORE, LEXER, PARSER, module("other")], accept=accept, check=check, branch="agents/merged")
    ends = {row.brief: (row.disposition, row.by and row.by.brief, row.reason) for row in report.ledger}
    assert ends["core"][:2] == ("overridden", None)
    assert ends["lexer"] == ("overridden", "core", "needs: core/modules is left out")
    assert ends["parser"] == ("overridden", "lexer", "needs: lexer/modules is left out")
    assert ends["other"][0] == "merged"
    assert "lexer/modules is left out: needs: core/modules is left out." in report.shortfalls
    assert {*files_at(site.git, "agents/merged")} == {"README.md", "app.txt", "other.txt"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["priority", "skip"])
def test_what_it_needs_contradicts_itself(site: Site, rule: str) -> None:
    """By priority it starts from what counts; by any other rule it doesn't start."""
    one = module("one", "WRITE app.txt one|2|3", owns="app.txt", priority=1)
    two = module("two", "WRITE app.txt two|2|3", "WRITE two.txt 2", owns=["app.txt", "two.txt"])
    top = module("top", "MUST two.txt", "WRITE top.txt t", needs=["one", "two"])
    report = site.build([one, two, top], on_conflict=rule, overlap="merge", branch="agents/merged")
    app = files_at(site.git, "agents/merged")["app.txt"]
    assert app == b"one\n2\n3\n"
    assert "waived by `on_dependence: merge` for 'one/modules' and 'two/modules' (write 'app.txt')" in report.rules
    if rule == "priority":
        assert (report.status, report.gaps) == ("complete", ())
        assert {row.brief: row.disposition for row in report.ledger}["top"] == "merged"
    else:
        [gap] = report.gaps
        assert gap.error.message == (
            "Not asked: what it needs contradicts itself on 'app.txt', and on_conflict is 'skip': have one of these "
            "need the other, or set on_conflict to 'priority'."
        )


@pytest.mark.slow
def test_several_write_one_file(site: Site) -> None:
    """Where the user allows it, two agents write one file, each in its checkout; the changes are merged by line."""
    one = module("one", "WRITE app.txt one|2|3", owns="app.txt")
    two = module("two", "WRITE app.txt 1|2|three", owns="app.txt")
    report = site.build([one, two], overlap="merge", branch="agents/merged")
    assert report.status == "complete"
    assert files_at(site.git, "agents/merged")["app.txt"] == b"one\n2\nthree\n"


@pytest.mark.slow
def test_the_budget_ends_before_it(site: Site) -> None:
    """What starts from work that the budget has stopped is skipped, as that is."""
    report = site.build([CORE, LEXER], budget_usd=0.5, max_usd=1.0)
    assert {gap.brief: gap.error.kind for gap in report.gaps} == {"core": "budget", "lexer": "needs"}


def given(site: Site, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- parts of the job
    """Return the parts of a job of two briefs for `dispatch`."""
    workspace = {"repo": str(site.git.repo)}
    briefs = [
        Brief(name="a", instructions="WRITE a.txt a", writes=("a.txt",)),
        Brief(name="b", instructions="WRITE b.txt b", writes=("b.txt",), reads=("a.txt",), needs=("a",)),
    ]
    executor = CodingAgent.model_validate({"agent": site.agent, "model": "literal", "workspace": workspace})
    return {
        "briefs": briefs,
        "items": [Item(key="one", value=1)],
        "executor": executor,
        "integrator": MergeBranches.model_validate({"workspace": workspace}),
        **more,
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param({"executor": LLM(model="openai/x")}, "^needs: 'b' needs 'a', which takes changes", id="executor"),
        pytest.param({"integrator": None}, "and the integrator 'merge_branches'", id="integrator"),
        pytest.param({"limits": Limits(on_dependence="serialize")}, "'needs' is an order by itself", id="serialize"),
    ],
)
def test_where_nothing_can_start_from_a_change(site: Site, more: dict[str, Any], told: str) -> None:
    """Such a job is refused, and says what it takes."""
    with pytest.raises(JobError, match=told):
        plan(**given(site, **more))


def test_work_with_needs_stays_in_the_process_of_the_run(site: Site) -> None:
    """What it starts from is made there."""
    with pytest.raises(JobError, match="what it starts from is made in the process of the run; leave 'task_runner'"):
        dispatch(**given(site, task_runner=Processes()))


def test_what_is_written_by_several_elsewhere(site: Site) -> None:
    """Only changes of a repository can be merged; what reads the writes of others is refused all the same."""
    limits = Limits(on_dependence="merge")
    brief = Brief(name="a", instructions="WRITE a.txt a", writes=("a.txt",))
    with pytest.raises(JobError, match=r"^limits\.on_dependence is 'merge', which takes changes of a repository"):
        plan(**given(site, briefs=[brief], executor=LLM(model="openai/x"), limits=limits))
    reader = brief.model_copy(update={"name": "reader", "reads": ("a.txt",), "writes": ()})
    many = [brief.model_copy(update={"name": f"a{at}"}) for at in range(30)]
    with pytest.raises(DependenceError, match="'reader/one' reads what 'a0/one' writes"):
        plan(**given(site, briefs=[*many, reader], limits=limits))


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        pytest.param(
            {"core": ["lexr"]}, "^needs: 'core' needs 'lexr', which isn't there; did you mean 'lexer'", id="no"
        ),
        pytest.param({"core": ["core"]}, "^needs: 'core' needs 'core': a circle has no beginning", id="itself"),
        pytest.param({"core": ["lexer"], "lexer": ["core"]}, "needs 'lexer' needs|needs 'core' needs", id="circle"),
    ],
)
def test_needs_without_an_order_are_refused(
    site: Site, needs: dict[str, list[str]], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that isn't there and a circle are named before anything is spent; so from the command line."""
    modules = [module(name, needs=needs.get(name, [])) for name in ("core", "lexer")]
    with pytest.raises(JobError, match=told):
        site.build(modules)
    job = {"flow": "build_modules", "repo": "repo", "agent": site.agent, "modules": modules}
    (site.folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    assert main(["plan", str(site.folder / "job.yaml")]) == UNUSABLE
    assert "needs: " in capsys.readouterr().err
    assert site.asked == []


def test_two_without_an_order_own_their_files(site: Site) -> None:
    """That both need a third gives the two no order: they are refused as any two."""
    one, two = (module(name, owns="x/", needs=["core"]) for name in ("one", "two"))
    with pytest.raises(JobError, match=r"^modules: 'one' and 'two' both own 'x'"):
        site.build([CORE, one, two])
    briefs = [
        Brief(name=name, instructions="x", writes=("x/**",), needs=("core",) if name != "core" else ())
        for name in ("core", "one", "two")
    ]
    with pytest.raises(DependenceError, match="'one/one' and 'two/one' both write"):
        plan(**given(site, briefs=briefs, items=[Item(key="one", value=1)]))


@pytest.mark.slow
def test_briefs_over_several_items(site: Site) -> None:
    """Each item's work starts from the changes for the same item, and a plan finds what is stored of it."""
    parts = given(site, items=[Item(key="one", value=1), Item(key="two", value=1)], limits=Limits(timeout_s=60.0))
    parts["briefs"] = [
        Brief(name="a", instructions="WRITE {key}.txt a", writes=("{key}.txt",)),
        Brief(name="b", instructions="MUST {key}.txt\nWRITE {key}.b b", writes=("{key}.b",), needs=("a",)),
    ]
    assert plan(**parts).to_ask == 4
    flow: Any = dispatch
    assert flow(**parts).status == "complete"
    assert plan(**parts).to_ask == 0
    assert plan(**parts, refresh="a").to_ask == 4
    assert plan(**parts, refresh="b").to_ask == 2


@pytest.mark.slow
def test_what_is_merged_is_pushed(site: Site) -> None:
    """The job says so, and the report, too; what can't be pushed is a gap, and what is missing is refused."""
    site.git.output("init", "--bare", "--quiet", str(site.folder / "bare"))
    more: dict[str, Any] = {"branch": "agents/merged", "publish": {"push": True}}
    with pytest.raises(JobError, match=r"^publish\.remote: the repository .* has no remote 'origin'"):
        site.build([module("one")], **more)
    assert site.asked == []
    site.git.output("remote", "add", "origin", str(site.folder / "bare"))
    report = site.build([module("one")], **more)
    assert (report.status, report.message.endswith("It was pushed to 'origin'.")) == ("complete", True)
    pushed = site.git.output("--git-dir", str(site.folder / "bare"), "rev-parse", "agents/merged")
    value: Any = report.value
    assert pushed == value["commit"]
    site.git.output("config", "remote.origin.pushurl", str(site.folder / "gone"))
    again = site.build([module("one")], **more)
    assert (again.status, len(site.asked)) == ("gaps", 1)
    assert again.shortfalls[0].startswith("The branch 'agents/merged' was not pushed to 'origin': `git push` failed")
