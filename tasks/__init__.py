"""Prefect tasks: a brief run for an item, preflight, plan."""
