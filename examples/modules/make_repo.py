"""Make the repository of `build_modules.yaml`: a calculator whose modules are yet to be built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = {
    "README.md": """\
# A calculator

    from calc import calculate
    calculate("1 + 2*(3 - 4)")  # Fraction(-1, 1)

- `calc.lexer.tokens(text)` splits a text into tokens: numbers, operators, brackets.
- `calc.parser.tree(tokens)` makes a tree of them: a number, or `(operator, left, right)`.
- `calc.evaluator.value(tree)` works it out.
""",
    "calc/__init__.py": '''\
"""A calculator."""


def calculate(text):
    """Return what an expression comes to."""
    from calc.evaluator import value
    from calc.lexer import tokens
    from calc.parser import tree

    return value(tree(tokens(text)))
''',
    "tests/__init__.py": "",
    "tests/test_lexer.py": """\
import unittest


class Lexer(unittest.TestCase):
    def test_tokens(self):
        from calc.lexer import tokens

        self.assertEqual(tokens("1 + 2*(3 - 40)"), ["1", "+", "2", "*", "(", "3", "-", "40", ")"])
        self.assertRaises(ValueError, tokens, "1 $ 2")
""",
    "tests/test_parser.py": """\
import unittest


class Parser(unittest.TestCase):
    def test_tree(self):
        from calc.parser import tree

        self.assertEqual(tree(["1", "+", "2", "*", "3"]), ("+", 1, ("*", 2, 3)))
        self.assertEqual(tree(["1", "-", "2", "-", "3"]), ("-", ("-", 1, 2), 3))
        self.assertEqual(tree(["(", "1", "+", "2", ")", "*", "3"]), ("*", ("+", 1, 2), 3))
        self.assertRaises(ValueError, tree, ["1", "+"])
""",
    "tests/test_evaluator.py": """\
import unittest


class Evaluator(unittest.TestCase):
    def test_value(self):
        from calc.evaluator import value

        self.assertEqual(value(("/", ("-", 1, 2), 4)) * 4, -1)
""",
    "tests/test_whole.py": """\
import unittest

from calc import calculate


class Whole(unittest.TestCase):
    def test_calculate(self):
        try:
            self.assertEqual(calculate("1 + 2*(3 - 4)"), -1)
        except ModuleNotFoundError as error:
            self.skipTest(f"{error.name} is yet to be built")
""",
}
DAY = "2024-01-01T00:00:00+00:00"


def make(folder: Path) -> None:
    """Make the repository, with one commit.

    Args:
        folder: Where; there must be nothing yet.
    """
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    who = {
        f"GIT_{role}_{field}": said
        for role in ("AUTHOR", "COMMITTER")
        for field, said in (("NAME", "A. Maker"), ("EMAIL", "maker@example.org"), ("DATE", DAY))
    }
    for command in ("init --quiet --initial-branch=main", "add --all", "commit --quiet --no-gpg-sign -m Interfaces"):
        subprocess.run(["git", *command.split()], cwd=folder, env={**os.environ, **who}, check=True)  # noqa: S603, S607 -- git, in our own words


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("calculator")
    make(place)
    print(f"Made {place}.")
