"""Coding agents: command-line programs that work in an isolated checkout, each with an adapter."""
