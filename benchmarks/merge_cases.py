"""Random inputs of merges for every built-in integrator: configuration, briefs, outcomes and, for some, an agent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch import (
    Brief,
    Collate,
    Consensus,
    MergeBranches,
    MergeRecords,
    Synthesize,
    TestMatrix,
    Tournament,
)
from prefect_dispatch.errors import MergeError
from prefect_dispatch.integrators.base import AskingIntegrator, BaseIntegrator
from prefect_dispatch.integrators.merge_records.similarity import Matching
from prefect_dispatch.integrators.run_merge import run_integrator
from prefect_dispatch.integrators.tournament.matches import group_contests
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.outcome import Change, Failure, Outcome, encode_patch
from prefect_dispatch.models.test_run import RESULTS, RUN
from prefect_dispatch.models.test_run import TestCase as Case
from prefect_dispatch.models.test_run import TestRun as Run
from prefect_dispatch.testing import ScriptedExecutor
from prefect_dispatch.workspaces.git import Git
from prefect_dispatch.workspaces.patches import diff_trees, to_changed_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from random import Random

    from pydantic import JsonValue

    from prefect_dispatch.executors.base import Executor
    from prefect_dispatch.integrators.base import AnyMerger, Question
    from prefect_dispatch.integrators.merge_records.field_rules import Claim
    from prefect_dispatch.models.ledger import Merge


class Agent:
    """Answers the questions of an integrator by a function, and keeps one outcome for each."""

    def __init__(self, answer: Callable[[Question], JsonValue]) -> None:
        """Keep the function; None as its result is a failure."""
        self._answer = answer
        self.outcomes: dict[str, Outcome] = {}

    @property
    def executor(self) -> Executor:
        """An executor that is never called."""
        return ScriptedExecutor({})

    def __call__(self, questions: Sequence[Question], executor: Executor | None = None) -> list[Outcome]:  # noqa: ARG002 -- the signature of every asker
        """Return one outcome for each question."""
        found = [self._outcome(each) for each in questions]
        self.outcomes |= {f"{question!r}": outcome for question, outcome in zip(questions, found, strict=True)}
        return found

    def _outcome(self, question: Question) -> Outcome:
        value = self._answer(question)
        names: dict[str, Any] = {"brief": question.brief.name, "item": question.item.key}
        if value is None:
            return Outcome(**names, status="failed", error=Failure(kind="timeout", message="No answer."))
        return Outcome(**names, status="succeeded", value=value, model="test")


class MergeCase(NamedTuple):
    """Input of a merge."""

    integrator: AnyMerger
    briefs: Sequence[Brief]
    outcomes: Sequence[Outcome]
    agent: Agent | None = None
    """Answers the integrator's own questions."""

    def merge(self, outcomes: Sequence[Outcome] | None = None, integrator: AnyMerger | None = None) -> Merge:
        """Return the merge of the outcomes, or of others, by its integrator, or by another one, as a run makes it."""
        chosen = integrator or self.integrator
        asking = isinstance(chosen, AskingIntegrator)
        given = self.outcomes if outcomes is None else outcomes
        merge = run_integrator(chosen, self.briefs, given, self.agent if asking else None)
        return merge.model_copy(update={"asked": tuple(self.agent.outcomes.values())}) if self.agent else merge

    def try_merge(self, outcomes: Sequence[Outcome], integrator: AnyMerger | None = None) -> Merge | None:
        """Return the merge of other outcomes, or by another integrator; None if that can't be merged.

        The agent's own answers stay those of this case.
        """
        asked = {**self.agent.outcomes} if self.agent else {}
        try:
            merge = self.merge(outcomes, integrator)
        except MergeError:
            return None
        finally:
            if self.agent:
                self.agent.outcomes = asked
        return merge.model_copy(update={"asked": tuple(asked.values())})


WORDS = ("MIT", "mit ", "Apache", "GPL", "a/b~c", "é", "2024-05-01", "12", "seven days", "the licensee")
SENTENCES = (
    "Notices must be kept in all copies.",
    "The licensee pays 30 euros within 14 days.",
    "Patents are granted to every user of the work.",
    "Source code has to be offered for 3 years.",
    "No warranty is given by the authors of the text.",
    "Changes need a dated note in each file that was modified.",
)


def random_scalar(rng: Random) -> JsonValue:
    """Return a random scalar."""
    return rng.choice([None, True, False, rng.randint(-3, 3), 1.0, 2.5, rng.choice(WORDS), rng.choice(WORDS)])


def random_value(rng: Random, depth: int = 2) -> JsonValue:
    """Return a random JSON value."""
    if not depth or rng.random() < 0.5:
        return random_scalar(rng)
    if rng.random() < 0.5:
        return [random_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {name: random_value(rng, depth - 1) for name in rng.sample(["a", "b/c", "value", "0"], rng.randint(0, 3))}


def random_outcomes(
    rng: Random, briefs: Sequence[str], items: int, value: Callable[[], JsonValue], lost: float = 0.15
) -> list[Outcome]:
    """Return the outcomes of some briefs for some items, a part of them without an answer."""
    found: list[Outcome] = []
    priorities = {brief: rng.randint(0, 1) for brief in briefs}
    for at in range(items):
        first = rng.randint(0, 1)
        for brief in briefs:
            status = "succeeded" if rng.random() >= lost else rng.choice(["failed", "skipped"])
            error = None if status == "succeeded" else Failure(kind=rng.choice(["timeout", "auth"]), message="Late.")
            names: dict[str, Any] = {"brief": brief, "item": f"item {at}", "status": status, "error": error}
            answer = value() if status == "succeeded" else None
            found.append(Outcome(**names, value=answer, brief_priority=priorities[brief], item_priority=first))
    return found


def create_briefs(names: Sequence[str], output: Any = "text") -> list[Brief]:  # noqa: ANN401 -- any notation of an output
    """Return briefs of some names with one form of answers."""
    return [Brief(name=name, instructions="Read.", output=output) for name in names]


# Collate


def collate_case(rng: Random, folder: Path) -> MergeCase:
    """Return an input of `Collate`: any answers, in some cases compared with expected ones."""
    names = ["terms", "facts"][: rng.randint(1, 2)]
    if rng.random() < 0.3:
        file = folder / "expected.csv"
        file.write_text("item,kind,free\n" + "".join(f"item {at},{'ab'[at % 2]},true\n" for at in range(4)))
        outcomes = random_outcomes(
            rng, names, 5, lambda: {"kind": rng.choice("abc"), "free": rng.choice([True, False, "true"])}
        )
        return MergeCase(Collate(expected=str(file)).resolve_paths(folder), [], outcomes)
    return MergeCase(Collate(), [], random_outcomes(rng, names, rng.randint(2, 5), lambda: random_value(rng, 3)))


# Records


def count_texts(claims: Sequence[Claim]) -> JsonValue:
    """Return what no record says; a rule of a user's own."""
    return {"count": len({claim.text for claim in claims})}


def random_record(rng: Random) -> dict[str, JsonValue]:
    """Return a random record; few names, so that several records are the same."""
    people = [
        {"name": rng.choice(["Ada", " ada", "Bob"]), "mail": rng.choice(["a", "b", None]), "at": rng.choice(["x", "y"])}
        for _ in range(rng.randint(0, 3))
    ]
    fields: dict[str, Any] = {
        "name": rng.choice(["MIT", "mit ", "Apache", "GPL", "GPL", None, 1]),
        "version": rng.choice([1, 1.0, 2, "1"]),
        "date": rng.choice(["2024-05-01", "2024-05-01T10:00:00+02:00", 2023, "soon", None]),
        "tags": rng.choice([["x", "y"], ["x", 1], ["y", "x", "x"], [], "x"]),
        "meta": rng.choice([{"a": 1, "b": "long text"}, {"b": "text"}, {"a": 2.5, "c": [1]}, 7]),
        "note": random_value(rng),
        "people": rng.choice([people, [*people, "et al."]]),
    }
    return {name: value for name, value in fields.items() if name == "name" or rng.random() < 0.75}


RULES: tuple[Any, ...] = (
    *("priority", "majority", "longest", "max", "min", "union", "keep_all", "trust"),
    {"rule": "newest", "by": "date"},
    {"rule": "trust", "of": "item"},
    {"rule": "max", "conflicts": "keep_all"},
    {"conflicts": "flag"},
    {"rule": "min", "conflicts": "flag"},
    count_texts,
)


def random_records_integrator(rng: Random) -> MergeRecords:
    """Return a random configuration of `MergeRecords`."""
    fields = rng.sample(["version", "tags", "note", "meta.b", "meta.c", "date", "meta"], rng.randint(0, 4))
    rules = {name: rng.choice(RULES) for name in fields}
    identity = rng.choice([["name"], ["name"], ["name", "version"], ["{key}"], ["{key}", "name"]])
    if "version" in identity:
        rules.pop("version", None)
    if rng.random() < 0.4:
        rules["people"] = {"rule": rng.choice(["union", "keep_all"]), "identity": ["name"]}
        rules["people.mail"] = rng.choice(["longest", "trust", {"rule": "max", "conflicts": "flag"}])
    decided = [{"record": {"name": "mit"}, "field": "version", "value": rng.choice([1, 2, 3])}]
    return MergeRecords.model_validate(
        {
            "identity": identity,
            "rules": rules,
            "default": rng.choice(RULES),
            "conflicts": rng.choice(["resolve", "resolve", "keep_all", "flag"]),
            "records": rng.choice(["", "found"]),
        }
    ).with_decisions(Decisions.model_validate({"fields": decided if identity == ["name"] else []}))


def records_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `MergeRecords`."""
    integrator = random_records_integrator(rng)

    def answer() -> JsonValue:
        if rng.random() < 0.1:
            return random_value(rng)
        records = [random_record(rng) for _ in range(rng.randint(1, 3))]
        if integrator.records:
            return {"found": list[Any](records), **({"more": random_scalar(rng)} if rng.random() < 0.3 else {})}
        return list[Any](records) if rng.random() < 0.5 else records[0]

    names = ["terms", "facts", "notes"][: rng.randint(1, 3)]
    return MergeCase(integrator, [], random_outcomes(rng, names, rng.randint(2, 4), answer))


def linked_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `MergeRecords` that links names which are spelt differently."""
    names = (
        "Johann Sebastian Bach",
        "Johann Sebastian Bach.",
        "Johann Sebastien Bach",
        "Clara Schumann",
        "Klara Schuman",
    )

    def answer() -> JsonValue:
        return [
            {
                "name": rng.choice(names),
                "born": rng.choice([1685, 1819, 1819.0]),
                "town": rng.choice(["Leipzig", "Bonn"]),
            }
            for _ in range(rng.randint(1, 3))
        ]

    matching = Matching(fields=tuple(rng.choice([[], ["town"]])))
    integrator = MergeRecords(identity=("name",), match=matching, default=rng.choice(RULES[:7]))
    same = [({"name": "Clara Schumann"}, {"name": "Klara Schuman"})] if rng.random() < 0.5 else []
    decided = integrator.with_decisions(Decisions.model_validate({"same": same}))
    return MergeCase(decided, [], random_outcomes(rng, ["one", "two"], rng.randint(2, 4), answer))


# Votes


def random_consensus(rng: Random) -> Consensus:
    """Return a random configuration of `Consensus`."""
    method = rng.choice(["auto", "auto", "majority", "weighted", "dawid_skene"])
    options: dict[str, Any] = {"method": method, "min_votes": rng.choice([1, 1, 2, 3])}
    if rng.random() < 0.4:
        options["rules"] = {"year": rng.choice(["median", "mean", "robust_mean", "priority", "majority"])}
    if method == "weighted" and rng.random() < 0.5:
        options["weights"] = {"v1": 2.5, "v2": 0.5}
    return Consensus.model_validate(options)


def votes_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `Consensus`: labels, numbers, texts, lists and objects, of voters that err differently."""
    integrator = random_consensus(rng)
    names = [f"v{number}" for number in range(1, rng.randint(3, 5) + 1)]
    items = rng.choice([3, 5, 40])
    errors = {name: rng.choice([0.1, 0.3, 0.8]) for name in names}
    fields = rng.sample(["label", "year", "text", "tags", "inner"], rng.randint(2, 5))
    outcomes: list[Outcome] = []
    priorities = {name: rng.randint(0, 1) if rng.random() < 0.3 else 0 for name in names}
    for at in range(items):
        for name in names:
            wrong = rng.random() < errors[name]
            full: dict[str, JsonValue] = {
                "label": rng.choice(["yes", "no", "maybe"]) if wrong else ("yes", "Yes", "yes ")[rng.randrange(3)],
                "year": rng.choice([1990 + at, 2000.5, 5, None]) if wrong else 1990 + at,
                "text": f"{rng.choice(SENTENCES)} {rng.choice(SENTENCES)} {rng.choice(SENTENCES)}",
                "tags": rng.sample(["x", "y", "z", "Z"], rng.randint(0, 3)) if wrong else ["x", "y"],
                "inner": {"a": rng.randint(0, 2) if wrong else 1, "b": None if wrong else True},
            }
            answer: JsonValue = {field: full[field] for field in fields if not (wrong and rng.random() < 0.1)}
            if rng.random() < 0.03:
                answer = rng.choice([None, "text", 3])
            lost = rng.random() < 0.1
            outcomes.append(
                Outcome(
                    brief=name,
                    item=f"item {at}",
                    status="failed" if lost else "succeeded",
                    error=Failure(kind="timeout", message="Late.") if lost else None,
                    value=None if lost else answer,
                    brief_priority=priorities[name],
                )
            )
    return MergeCase(integrator, create_briefs(names, {"type": ["object", "string", "number", "null"]}), outcomes)


def ballots_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `Consensus` whose answers name item and voter, as rows of a table do."""
    outcomes = [
        Outcome(
            brief="labels",
            item=str(number),
            status="succeeded",
            value={
                "question": f"q{number // 4}",
                "worker": f"w{number % 4}",
                "answer": rng.choice(["yes", "no", "Yes"]),
                "score": rng.choice([1, 2, 2.5, 100]),
            },
        )
        for number in range(rng.choice([8, 24, 80]))
        if rng.random() > 0.15
    ]
    method = rng.choice(["auto", "majority", "dawid_skene"])
    integrator = Consensus.model_validate({"method": method, "item": "question", "voter": "worker", "min_votes": 2})
    return MergeCase(integrator, create_briefs(["labels"], {"type": "object"}), outcomes)


# Tests


def matrix_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `TestMatrix`."""

    def run() -> JsonValue:
        cases: list[Case] = []
        for at in range(rng.randint(0, 7)):
            result: Any = rng.choice([*RESULTS, "passed", "passed", "passed"])
            fine = result == "passed"
            cases.append(
                Case(
                    suite=rng.choice(["pytest", "unit"]),
                    classname=f"tests.test_{at % 2}",
                    name=f"test_{at}[<é>]",
                    file=rng.choice(["", "a.py"]),
                    result=result,
                    seconds=rng.choice([0.0, 0.25, 1.5]),
                    tries=rng.choice([1, 2]) if result == "flaky" else 1,
                    message="" if fine else "assert 1 == 2",
                    text="" if fine else rng.choice(["", "line 1\nline <2> & more"]),
                    failures=("first", "second") if result == "failed" and rng.random() < 0.3 else (),
                )
            )
        unique = {case.key: case for case in cases}
        if rng.random() < 0.2:
            broken = Case(suite=RUN, name="the exit code", result="error", message="It exited with 3.", text="Trace")
            unique[broken.key] = broken
        data = Run(
            exit=rng.choice([0, 1]), seconds=rng.choice([0.0, 9.5]), reports=("r.xml",), cases=(*unique.values(),)
        )
        return data.model_dump(mode="json")

    names = ["tests", "lint"][: rng.randint(1, 2)]
    outcomes = random_outcomes(rng, names, rng.randint(1, 4), run)
    required: Any = rng.choice(["all", ("item 0",), ("*1",)])
    return MergeCase(TestMatrix(required=required, on_red=rng.choice(["fail", "report"])), [], outcomes)


# Tournaments


def measure_length(value: JsonValue, key: str) -> float:  # noqa: ARG001 -- the signature of every metric
    """Return a score of a variant; it raises for some, which are not ranked."""
    if isinstance(value, list):
        raise TypeError("no text")
    return len(repr(value))


def tournament_case(rng: Random, folder: Path) -> MergeCase:
    """Return an input of `Tournament` by a judge, a function or an experiment."""
    names = ["bold", "calm", "dry", "warm"][: rng.choice([1, 3, 4])]
    variants: list[JsonValue] = ["a", "bb", "ccc", "dddd", 1, 1.0, ["x"]]
    outcomes: list[Outcome] = []
    while sum(outcome.status == "succeeded" for outcome in outcomes) < 3:
        outcomes = random_outcomes(
            rng, names, 4 if len(names) == 1 else rng.randint(1, 2), lambda: rng.choice(variants)
        )
    way = rng.choice(["judge", "judge", "metric", "results"])
    if way == "metric":
        return MergeCase(Tournament(metric=measure_length), [], outcomes, Agent(lambda _: None))
    if way == "results":
        keys = [variant.key for contest in group_contests(outcomes) for variant in contest.variants]
        lines = [f"{key},{rng.choice([0, 50, 400])}" for key in keys if rng.random() < 0.9]
        counts = [(line, int(line.split(",")[1])) for line in lines]
        text = "key,trials,conversions\n" + "".join(f"{line},{rng.randint(0, n)}\n" for line, n in counts)
        (folder / "results.csv").write_text(text)
        integrator = Tournament(results=str(folder / "results.csv")).resolve_paths(folder)
        return MergeCase(integrator, [], outcomes, Agent(lambda _: None))
    seed = rng.random()

    def judge(question: Question) -> JsonValue:
        said = sum(map(ord, f"{question.item.value!r}{seed}")) % 7
        winner = (*("first", "second") * 2, "tie", "first", None)[said]
        return {"winner": winner, "reason": f"It is {winner}."} if winner else None

    agent = Agent(judge)
    case = MergeCase(Tournament(criterion="Good."), [], outcomes, agent)
    return case if BaseIntegrator.of(case.integrator).estimate_queries(2, []) else tournament_case(rng, folder)


# Syntheses


def write_text(question: Question, seed: float, *, careless: bool) -> JsonValue:
    """Return a text, or a value, that cites the answers of a question; a careless one forgets some and errs."""
    text = str(question.item.value).partition("\n\nDraft:\n")[0]
    answers = [(int(n), body[4:]) for n, body in re.findall(r"(?m)^\[(\d+)\] .*:\n(    .*)$", text)]
    chance = sum(map(ord, text)) + int(seed * 1000)
    kept = [pair for pair in answers if not (careless and (pair[0] + chance) % 4 == 0)]
    lines = [f"It says {said} [{number}]." for number, said in kept]
    if careless and chance % 2:
        lines = [line.replace("14", "15").replace("30", "31") for line in lines]
    if isinstance(question.brief.output, str) and question.brief.output == "text":
        return "\n".join(lines) or "Nothing [1]."
    named: list[JsonValue] = [{"path": f"/findings/{at}", "ids": [number]} for at, (number, _) in enumerate(kept)]
    return {
        "value": {"title": "Terms", "findings": list[Any](lines)},
        "sources": [{"path": "/title", "ids": [1]}, *named],
    }


def judge_claim(question: Question, seed: float) -> JsonValue:
    """Return a judge's verdict on a claim."""
    text = str(question.item.value)
    lines = [line.strip() for line in text.partition("Answers:")[2].split("\n") if line.startswith("    ")]
    chance = (sum(map(ord, text)) + int(seed * 1000)) % 4
    if chance == 0 or not lines:
        return {"label": "not_found", "sentence": ""}
    return {"label": "contradicted" if chance == 1 else "supported", "sentence": lines[0]}


def synthesis_case(rng: Random, folder: Path) -> MergeCase:  # noqa: ARG001 -- the signature of every case
    """Return an input of `Synthesize`."""
    seed, careless = rng.random(), rng.random() < 0.7
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "findings": {"type": "array", "items": {"type": "string"}}},
        "required": ["title", "findings"],
    }

    def answer(question: Question) -> JsonValue:
        if question.brief.name == "judge-claim":
            return judge_claim(question, seed)
        return write_text(question, seed, careless=careless)

    integrator = Synthesize(
        instructions="Write.",
        output=rng.choice(["text", schema]),
        judge=ScriptedExecutor({}) if rng.random() < 0.4 else None,
        reasks=rng.randint(0, 1),
    )
    outcomes: list[Outcome] = []
    while not any(outcome.status == "succeeded" for outcome in outcomes):
        outcomes = random_outcomes(rng, ["terms"], rng.randint(3, 6), lambda: rng.choice(SENTENCES))
    return MergeCase(integrator, [], outcomes, Agent(answer))


# Changes of a repository

_AUTHOR = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "author"), ("EMAIL", "author@example.org"), ("DATE", "@1700000000 +0000"))
}
_PATCH = ("diff-tree", "-r", "-p", "--unified=0", "--binary", "--full-index", "--no-renames", "--no-ext-diff")


def _write_tree(git: Git, files: Mapping[str, str]) -> str:
    lines = [
        f"100644 blob {git.output('hash-object', '-w', '--stdin', stdin=text.encode())}\t{path}\n"
        for path, text in sorted(files.items())
    ]
    return git.output("mktree", stdin="".join(lines).encode())


def branches_case(rng: Random, folder: Path) -> MergeCase:
    """Return an input of `MergeBranches`: changes of one repository, some of which contradict each other."""
    place = folder / f"repo-{rng.random()}"
    place.mkdir()
    git = Git(place)
    files = {f"file{at}.py": "".join(f"line {n}\n" for n in range(12)) for at in range(3)}
    git.output("init", "--quiet", "--initial-branch=main")
    base = git.output("commit-tree", _write_tree(git, files), stdin=b"The base\n", env=_AUTHOR)
    git.output("update-ref", "refs/heads/main", base)
    outcomes: list[Outcome] = []
    names = [f"task-{at}" for at in range(rng.randint(3, 5))]
    for name in names:
        if outcomes and rng.random() < 0.15:
            outcomes.append(
                Outcome(brief=name, item="repo", status="failed", error=Failure(kind="timeout", message="Late."))
            )
            continue
        changed = dict(files)
        for path in rng.sample(sorted(files), rng.randint(1, 2)):
            number = rng.choice([2, 6, 10])
            changed[path] = changed[path].replace(f"line {number}\n", f"line {number} by {name}\n")
        tree = _write_tree(git, changed)
        patch = encode_patch(git.output_bytes(*_PATCH, "--no-textconv", "--no-color", base, tree))
        change = Change(base=base, tree=tree, patch=patch, files=to_changed_files(diff_trees(git, base, tree)))
        outcomes.append(Outcome(brief=name, item="repo", status="succeeded", value=f"{name} is done.", change=change))
    accept: Any = None
    seed = rng.randrange(3)
    if rng.random() < 0.5:
        accept = {"run": "true"}
    integrator = MergeBranches.model_validate(
        {"workspace": {"repo": str(place)}, "accept": accept, "on_conflict": rng.choice(["priority", "skip"])}
    ).resolve_paths(place)

    def run_command(question: Question) -> JsonValue:
        return None if sum(map(ord, question.item.key)) % 3 == seed else ""

    return MergeCase(integrator, create_briefs(names), outcomes, Agent(run_command))


CASES: dict[str, Callable[[Random, Path], MergeCase]] = {
    "collate": collate_case,
    "merge_records": records_case,
    "merge_records, linked": linked_case,
    "consensus": votes_case,
    "consensus, ballots": ballots_case,
    "test_matrix": matrix_case,
    "tournament": tournament_case,
    "synthesize": synthesis_case,
    "merge_branches": branches_case,
}
"""Functions that create random inputs, by the name of the integrator."""


def create_case(name: str, rng: Random, folder: Path) -> MergeCase:
    """Return a random input of an integrator that it can merge."""
    case = CASES[name](rng, folder)
    try:
        case.merge()
    except MergeError:  # such as a tournament of which no match could be judged
        return create_case(name, rng, folder)
    return case
