"""Canonical and strict JSON, strict YAML, streamed JSON and atomic writes."""
