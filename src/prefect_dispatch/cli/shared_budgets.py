"""The command `prefect-dispatch budget`: what is left of budgets that runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_dispatch.blocks import DispatchBudget
from prefect_dispatch.cli.commands import COMPLETE
from prefect_dispatch.errors import JobError
from prefect_dispatch.flows.runtime.named_budget import NamedBudget
from prefect_dispatch.processes.ephemeral_server import use_server

if TYPE_CHECKING:
    import argparse


def show_budgets(arguments: argparse.Namespace) -> int:
    """Print a line for each budget, or for those that are named.

    Raises:
        JobError: If there is no budget of a name, or none at all.
    """
    with use_server():
        for name in arguments.names or _find_names():
            print(NamedBudget.load(name).look_up())
    return COMPLETE


def _find_names() -> list[str]:
    """Return the names of all budgets of the server, in order."""
    with get_client(sync_client=True) as client:
        slug = DispatchBudget.get_block_type_slug()
        try:
            client.read_block_type_by_slug(slug)
            blocks = client.read_block_documents_by_type(slug, include_secrets=False)
        except ObjectNotFound:  # the type was never registered
            blocks = []
    if names := sorted(str(each.name) for each in blocks if each.name):
        return names
    raise JobError(
        "This Prefect server has no budget that runs share. Make one in Prefect's UI under Blocks, or in Python: "
        'DispatchBudget(usd=100, per="month").save("NAME").'
    )
