#!/usr/bin/env python3
"""A stand-in for a coding agent: it reads what it is told, and writes what it knows; no model is asked."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LEXER = r'''"""Split an expression into its tokens."""

import re

_TOKEN = re.compile(r"\s*(?:(\d+|[-+*/()])|(\S))")


def tokens(text):
    """Return the tokens of an expression."""
    found = []
    for token, other in _TOKEN.findall(text):
        if other:
            raise ValueError(f"{other!r} is no token")
        found.append(token)
    return found
'''
PARSER = '''"""Make a tree of tokens."""

_LEVELS = LEVELS


def tree(tokens):
    """Return the tree of an expression."""
    rest = list(tokens)
    found = _joined(rest, 0)
    if rest:
        raise ValueError(f"{rest[0]!r} is one too many")
    return found


def _joined(rest, level):
    if level == len(_LEVELS):
        return _single(rest)
    left = _joined(rest, level + 1)
    while rest and rest[0] in _LEVELS[level]:
        left = (rest.pop(0), left, _joined(rest, level + 1))
    return left


def _single(rest):
    token = rest.pop(0) if rest else ""
    if token == "(":
        found = _joined(rest, 0)
        if not rest or rest.pop(0) != ")":
            raise ValueError("a bracket is open")
        return found
    if not token.isdecimal():
        raise ValueError(f"{token!r} is no number")
    return int(token)
'''
EVALUATOR = '''"""Work out the value of a tree."""

import operator
from fractions import Fraction

_DOES = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def value(tree):
    """Return the value of a tree."""
    if isinstance(tree, int):
        return Fraction(tree)
    does, left, right = tree
    return _DOES[does](value(left), value(right))
'''
KNOWN = {"calc/lexer.py": LEXER, "calc/parser.py": PARSER, "calc/evaluator.py": EVALUATOR}


def main() -> None:
    """Write the file that it is told to; the parser is wrong until that is sent back."""
    said = sys.stdin.read()
    [path] = re.findall(r"You may change only files that match `(.*)`\.", said)
    mended = "# Sent back" in said
    levels = '("+-", "*/")' if mended else '("+-*/",)'
    Path(path).write_text(KNOWN[path].replace("LEVELS\n", f"{levels}\n", 1), encoding="utf-8")
    print(f"{path} is written{', with what binds closer minded' if mended else ''}.")


if __name__ == "__main__":
    main()
