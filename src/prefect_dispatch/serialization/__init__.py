"""Canonical and strict JSON, strict YAML, and atomic writes of files."""
