"""A small project of eight modules that use each other, its tests, and a model's part in building it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.executors.coding.agent_server import Request, Turn
from tests.executors.coding.real_agents import ending
from tests.workspaces.repositories import Repository

if TYPE_CHECKING:
    from pathlib import Path

ERRORS = '''class CalcError(ValueError):
    """What is no calculation."""
'''
TOKENS = """from typing import NamedTuple


class Token(NamedTuple):
    kind: str
    text: str
"""
LEXER = """import re

from calc.errors import CalcError
from calc.tokens import Token

_PART = re.compile(r"\\s*(?:(?P<number>[0-9.]+)|(?P<sign>[-+*/()]))")


def tokenize(text):
    found, place = [], 0
    while text[place:].strip():
        part = _PART.match(text, place)
        if part is None:
            raise CalcError(f"what is {text[place:].strip()!r}?")
        found.append(Token(part.lastgroup, part[part.lastgroup]))
        place = part.end()
    return found
"""
NODES = """from typing import NamedTuple


class Number(NamedTuple):
    value: float


class Binary(NamedTuple):
    sign: str
    left: object
    right: object
"""
PARSER = """from calc.errors import CalcError
from calc.nodes import Binary, Number

_SIGNS = ("+-", "*/")


def parse(tokens):
    rest = list(tokens)
    node = _level(rest, 0)
    if rest:
        raise CalcError(f"{rest[0].text!r} is too much")
    return node


def _level(rest, level):
    if level == len(_SIGNS):
        return _atom(rest)
    node = _level(rest, level + 1)
    while rest and rest[0].text in _SIGNS[level]:
        node = Binary(rest.pop(0).text, node, _level(rest, level + 1))
    return node


def _atom(rest):
    if not rest:
        raise CalcError("something is missing")
    token = rest.pop(0)
    if token.kind == "number":
        return Number(float(token.text))
    node = _level(rest, 0)
    if token.text != "(" or not rest or rest.pop(0).text != ")":
        raise CalcError("a bracket is missing")
    return node
"""
EVALUATE = """import operator

_DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def evaluate(node):
    if hasattr(node, "value"):
        return node.value
    return _DO[node.sign](evaluate(node.left), evaluate(node.right))
"""
SHOW = """def show(value):
    return f"{value:g}"
"""
CLI = """import sys

from calc.errors import CalcError
from calc.evaluate import evaluate
from calc.lexer import tokenize
from calc.parser import parse
from calc.show import show


def main(args):
    try:
        print(show(evaluate(parse(tokenize(" ".join(args))))))
    except CalcError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
"""
TESTS = """import contextlib
import io
import unittest

from calc.cli import main


class Whole(unittest.TestCase):
    def said(self, text):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            status = main([text])
        return status, out.getvalue().strip()

    def test_sums(self):
        self.assertEqual(self.said("1 + 2 * 3"), (0, "7"))
        self.assertEqual(self.said("(1 + 2) * 3 / 2 - 1"), (0, "3.5"))

    def test_what_is_no_sum(self):
        self.assertEqual(self.said("1 + x"), (2, "what is 'x'?"))
        self.assertEqual(self.said("(1"), (2, "a bracket is missing"))
"""
TEST_EVALUATE = """import unittest
from types import SimpleNamespace as Node

from calc.evaluate import evaluate


class Evaluate(unittest.TestCase):
    def test_minus(self):
        self.assertEqual(evaluate(Node(sign="-", left=Node(value=3), right=Node(value=2))), 1)
"""
MODULES = {
    "errors": ERRORS,
    "tokens": TOKENS,
    "lexer": LEXER,
    "nodes": NODES,
    "parser": PARSER,
    "evaluate": EVALUATE,
    "show": SHOW,
    "cli": CLI,
}
AGAIN = "was not accepted"
"""Words of a prompt that sends work back."""
ACCEPT = "python3 -B -m unittest --quiet tests.test_whole tests.test_evaluate"
"""What must pass on the whole."""


def begun(path: Path) -> Repository:
    """Return a repository that has the tests and no module yet."""
    made = Repository.init(path)
    made.put("calc/__init__.py", "")
    made.put("tests/test_whole.py", TESTS)
    made.put("tests/test_evaluate.py", TEST_EVALUATE)
    made.commit("Say what it has to do")
    return made


def modules() -> list[dict[str, Any]]:
    """Return what is to be built; of one of them a test must pass by itself."""
    alone = "python3 -B -m unittest --quiet tests.test_evaluate"
    return [
        {
            "name": name,
            "goal": f"Write the module {name} of a calculator.",
            "owns": [f"calc/{name}.py"],
            "accept": alone if name == "evaluate" else "",
        }
        for name in MODULES
    ]


def building(request: Request) -> Turn:
    """Write the module that the prompt asks for; the first try at one of them subtracts wrongly."""
    name = next(name for name in MODULES if f"`calc/{name}.py`" in request.prompt)
    file, source = f"calc/{name}.py", MODULES[name]
    again = AGAIN in request.prompt
    if name == "evaluate" and not again:
        source = source.replace("operator.sub", "operator.add")
    steps = [Turn(write={file: source})]
    if again and "Read" in request.tools:  # Claude Code writes over no file that it hasn't read
        steps.insert(0, Turn(call=("Read", {"file_path": file})))
    turn = _turns_since_rejection(request)
    return steps[turn] if turn < len(steps) else ending(request)


def _turns_since_rejection(request: Request) -> int:
    """Return how often the model has answered since its work was sent back, in the same session or in a new one."""
    messages = request.messages
    asked = [n for n, each in enumerate(messages) if each.get("role") == "user" and AGAIN in json.dumps(each)]
    since = messages[asked[-1] :] if asked else messages
    key = "messages" if "messages" in request.body else "input"
    return replace(request, body={**request.body, key: since}).turn
