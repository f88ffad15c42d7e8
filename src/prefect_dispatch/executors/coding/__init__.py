"""Coding agents: command-line programs that work in a folder of their own, each behind an adapter."""
