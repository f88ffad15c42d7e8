"""Command line interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dispatch.serialization.moved_names import lazy_names

if TYPE_CHECKING:
    from prefect_dispatch.cli.commands import main

__all__ = ["main"]

__getattr__ = lazy_names(__name__, {"main": "commands"})
