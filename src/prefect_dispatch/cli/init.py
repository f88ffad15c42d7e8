"""Templates of jobs: for each flow a commented job file and three sample items, written by `prefect-dispatch init`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_dispatch.cli.commands import COMPLETE
from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    import argparse

PROJECT = "project"
"""Folder of a template that becomes a git repository of its own."""
_COMMIT = (
    "-c",
    "user.name=prefect-dispatch",
    "-c",
    "user.email=prefect-dispatch@localhost",
    "-c",
    "commit.gpgsign=false",
)

_HEAD = """\
# {purpose}
#
#   prefect-dispatch plan job.yaml               # what it would take; nothing is sent to a model
#   prefect-dispatch run job.yaml --out report   # the same command continues after an interruption
#   prefect-dispatch open report
#
# Relative paths start at this file. All keys: docs/job-file.md.

"""
_TEXTS = {
    "ada.txt": "Ada Lovelace published notes on the Analytical Engine in 1843. One of them holds the first program.\n",
    "grace.txt": "In 1952 Grace Hopper wrote a compiler, the A-0 system, for the UNIVAC I.\n",
    "alan.txt": "Alan Turing described a universal machine in a paper of 1936, in Cambridge.\n",
}
_DISPATCH = """\
briefs: # what is asked about each item; several briefs are all asked about each
  - name: people # small letters, digits and hyphens
    scope: One paragraph.
    instructions: Name the person it is about, what the person made, and the year.
    constraints: # rules that each answer must keep
      - Judge by the text alone.
    output: # a JSON Schema: an answer that doesn't fit is sent back. Without it, answers are texts.
      type: object
      properties: {name: {type: string}, made: {type: string}, year: {type: integer}}
      required: [name, made, year]

items: {glob: "texts/*.txt"} # or a list, {jsonl: …, key: …}, {csv: …, key: …}, {parquet: …}, {sql: …}

executor: {model: openai/gpt-5-mini} # needs OPENAI_API_KEY; any model that litellm supports, such as ollama/…

integrator: # how the answers become one result; without it, they are listed
  kind: merge_records
  identity: [name] # answers of the same name are one record
  rules: {year: majority} # how a conflict is decided; others are kept and reported

limits:
  concurrency: 4 # calls under way at once
  retries: 2 # after errors of the connection or the provider
  reasks: 2 # after invalid answers
  budget_usd: 0.5 # never exceeded; the next run continues there
  min_success: 0.9 # with fewer answers the run fails
"""
_ANALYZE_FILES = """\
flow: analyze_files
files: "texts/*.txt" # a glob, or a list of several
instructions: Say who it is about, and when it was.
fields: # what to note of each file; a name alone stands for a text
  - name
  - {name: year, kind: whole number}
  - {name: field, choices: [mathematics, engineering, computing]}

merge: side by side # or `merge records`, with `identity: [name]`, to merge what several files say about one thing

model: openai/gpt-5-mini # needs OPENAI_API_KEY
concurrency: 4 # calls under way at once
budget_usd: 0.5 # never exceeded; the next run continues there
min_success: 0.9 # with fewer answers the run fails
"""
_RESEARCH_TOPICS = """\
flow: research_topics
question: "What is {topic} used for today, and what replaces it?" # {topic} stands for each topic
topics_file: topics.txt # one on each line; or `topics: [one, another]`
sources: 2 # how many each answer must name; with fewer it is sent back
finding: Write half a page for engineers who choose between them. # what is made of all answers, with citations

model: openai/gpt-5-mini # needs OPENAI_API_KEY
# writer_model: openai/gpt-5 # writes the finding, if it is to be another model
concurrency: 4 # calls under way at once
budget_usd: 0.5 # never exceeded, the finding included
min_success: 0.9 # with fewer answers the run fails
"""
_CONTENT_VARIANTS = """\
flow: content_variants
product: An electric kettle that boils without a sound, for people who work at night.
instructions: Write a tagline for it, in one sentence.
variants: # each is written apart from the others
  - {name: plain, angle: Say plainly what it does.}
  - {name: question, angle: Ask its buyers a question.}
  - {name: promise, angle: Promise one thing.}
constraints: # rules for all variants
  - Claim nothing that isn't true of the product.
max_words: 12

evaluation: judge # a model compares them in pairs; or `metric` (your function), `experiment` (a table of results)
criterion: It makes the buyers want to know more.
# judge_model: openai/gpt-5 # who judges, if it is to be another model

model: openai/gpt-5-mini # needs OPENAI_API_KEY
concurrency: 4 # calls under way at once
budget_usd: 0.5 # never exceeded, the judge included
"""
_BUILD_MODULES = """\
flow: build_modules
repo: project # a git repository; its branches and files stay as they are, but for `branch` below
about: Greetings in Python, without dependencies. Its tests stand in tests/.

modules: # each is built by an agent in a checkout of its own, at the same time as the others
  - name: hello
    goal: Write greetings/hello.py with a function hello(name) that returns "Hello, Ada!" for "Ada".
    owns: [greetings/hello.py] # it may write these files only, and no two modules may own the same
    accept: python3 -m unittest tests.test_hello # has to pass in the checkout, else the agent is asked again
  - name: bye
    goal: Write greetings/bye.py with a function bye(name) that returns "Bye, Ada!" for "Ada".
    owns: [greetings/bye.py]
    accept: python3 -m unittest tests.test_bye
  - name: thanks
    goal: Write greetings/thanks.py with a function thanks(name) that returns "Thanks, Ada!" for "Ada".
    owns: [greetings/thanks.py]
    accept: python3 -m unittest tests.test_thanks

accept: python3 -m unittest # has to pass on what is merged
branch: agents/merged # where the result is committed

# This agent is a stand-in that needs no key. For a real one write, in place of it:
#   agent: claude # or codex, opencode, mini
#   model: anthropic/claude-sonnet-4-5
#   pass_env: [ANTHROPIC_API_KEY]
agent: {name: stand-in, argv: [./agent.sh]}
concurrency: 3 # agents at work at once
"""
_AGENT = """\
#!/bin/sh
# A stand-in for a coding agent: it reads its task on standard input, and writes the module that the goal names.
name=$(grep -o 'a function [a-z]*(name)' | head -n 1 | sed 's/a function \\(.*\\)(name)/\\1/')
word=$(printf %s "$name" | cut -c 1 | tr a-z A-Z)$(printf %s "$name" | cut -c 2-)
mkdir -p greetings
printf 'def %s(name):\\n    return f"%s, {name}!"\\n' "$name" "$word" > "greetings/$name.py"
"""
_TEST = """\
import unittest


class {title}(unittest.TestCase):
    def test_{name}(self):
        from greetings.{name} import {name}

        self.assertEqual({name}("Ada"), "{title}, Ada!")
"""
_TEST_MATRIX = """\
flow: test_matrix
repo: project # a git repository; its last commit is tested, in a checkout for each environment
command: | # run in each environment; the axes are in variables: ITEM_ZONE, ITEM_LANGUAGE
  export TZ="$ITEM_ZONE" LC_ALL="$ITEM_LANGUAGE"
  exec python3 -m pytest -q -p no:cacheprovider --junitxml="$REPORT_DIR/junit.xml"
axes: # each value of one with each value of the others
  zone: [UTC0, IST-5:30, EST5]
  language: [C, C.UTF-8]
exclude: # combinations that are left out
  - {zone: EST5, language: C}
# setup: pip install -r requirements.txt # run first in each checkout
time_limit_s: 120 # for each environment
concurrency: 2 # environments at once
"""
_MATRIX_TEST = """\
import {module}


def test_{module}():
    assert {check}
"""

TEMPLATES: dict[str, tuple[str, str, dict[str, str]]] = {
    "dispatch": (
        "Ask the same about each text, and merge the answers into records.",
        _DISPATCH,
        {f"texts/{name}": text for name, text in _TEXTS.items()},
    ),
    "analyze_files": (
        "Ask the same question about each file of a folder, and put the answers side by side.",
        _ANALYZE_FILES,
        {f"texts/{name}": text for name, text in _TEXTS.items()},
    ),
    "research_topics": (
        "Research each topic with sources, and write one summary that cites them.",
        _RESEARCH_TOPICS,
        {"topics.txt": "FTP\nTelnet\nSOAP\n"},
    ),
    "content_variants": ("Write variants of one text, and rank them by a judge.", _CONTENT_VARIANTS, {}),
    "build_modules": (
        "Let coding agents build modules of a repository in separate checkouts, and merge the branches.",
        _BUILD_MODULES,
        {
            "agent.sh": _AGENT,
            f"{PROJECT}/greetings/__init__.py": "",
            f"{PROJECT}/tests/__init__.py": "",
            **{
                f"{PROJECT}/tests/test_{name}.py": _TEST.format(name=name, title=name.title())
                for name in ("hello", "bye", "thanks")
            },
        },
    ),
    "test_matrix": (
        "Run one test suite in many environments, and show which test passes where.",
        _TEST_MATRIX,
        {
            f"{PROJECT}/test_time.py": _MATRIX_TEST.format(module="time", check="time.gmtime(0).tm_year == 1970"),
            f"{PROJECT}/test_locale.py": _MATRIX_TEST.format(
                module="locale", check='locale.localeconv()["decimal_point"]'
            ),
            f"{PROJECT}/test_math.py": _MATRIX_TEST.format(module="math", check="math.isclose(0.1 + 0.2, 0.3)"),
        },
    ),
}
"""For each flow the purpose of its template, the job file below the head, and the files beside it."""


def init(arguments: argparse.Namespace) -> int:
    """Write the template of a flow, and print what to do next."""
    print(write_template(arguments.flow, arguments.folder or Path(arguments.flow)))
    return COMPLETE


def write_template(flow: str, folder: Path) -> str:
    """Write the template of a flow into a folder, and return what to do next.

    Args:
        flow: The flow, as job files name it.
        folder: The folder; it is created if it is missing.

    Raises:
        JobError: If a file exists already, if the folder can't be written to, or if git is missing where the flow
            needs a repository.
    """
    purpose, job, more = TEMPLATES[flow]
    files = {"job.yaml": _HEAD.format(purpose=purpose) + job, **more}
    needs_git = any(name.startswith(f"{PROJECT}/") for name in files)
    # 1. Check everything, so that nothing is written if something is in the way.
    existing = [name for name in (*files, *([PROJECT] if needs_git else [])) if (folder / name).exists()]
    if existing:
        raise JobError(
            f"{str(folder / existing[0])!r} exists already, and nothing is overwritten; name another folder."
        )
    git = shutil.which("git")
    if needs_git and git is None:
        raise JobError(f"{flow} needs git, which is not on the PATH; install it first.")
    # 2. Write.
    try:
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            if name.endswith(".sh"):
                file.chmod(0o755)
    except OSError as error:
        raise JobError(f"{str(folder)!r} can't be written to: {error.strerror}.") from None
    if needs_git:
        for step in (["init", "-q"], ["add", "-A"], [*_COMMIT, "commit", "-q", "-m", "Begin"]):
            subprocess.run([str(git), "-C", str(folder / PROJECT), *step], check=True)  # noqa: S603 -- constant arguments
    return f"Wrote {', '.join(files)} in {folder}.\nNext: prefect-dispatch plan {shlex.quote(str(folder / 'job.yaml'))}"
