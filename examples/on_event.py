"""Started by what others do: when an asset that we depend on was written anew, a deployment of ours runs.

Run, with a server (`prefect server start`) and PREFECT_API_URL set:
    python examples/on_event.py

It stays, and serves the flow. Whoever writes the asset (`@materialize("file:///data/reviews.csv")`, or a run of this
package with `out` or `write_table`) starts it. It writes an asset itself, `file://…/out/report.json`, on which the next
deployment may wait: so pipelines are chained by what they make, and know nothing of each other.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow
from prefect.events import DeploymentEventTrigger

from prefect_dispatch import Brief, dispatch
from prefect_dispatch.testing import ScriptedExecutor

SHORT = Brief(name="short", scope="One review.", instructions="Say it in one word.")


@flow
def on_event(asset: str) -> str:
    """Read the rows of a CSV file that was just written.

    Args:
        asset: The asset, `file://` and the path of the file.

    Returns:
        What came of it, in a sentence.
    """
    path = Path(asset.removeprefix("file://"))
    agent = ScriptedExecutor(lambda ask: f"{ask.item.key}: fine")  # leave it out to ask a model
    report = dispatch([SHORT], {"csv": str(path), "key": "id"}, executor=agent, out=str(path.parent / "out"))
    return report.message


def written(asset: str) -> DeploymentEventTrigger:
    """Return what starts the flow whenever an asset was written.

    Args:
        asset: The asset's key.
    """
    return DeploymentEventTrigger(
        name=f"written: {asset}",
        expect={"prefect.asset.materialization.succeeded"},
        match={"prefect.resource.id": asset},
        parameters={"asset": "{{ event.resource.id }}"},
    )


if __name__ == "__main__":
    wanted = sys.argv[1] if sys.argv[1:] else f"file://{Path('reviews.csv').absolute()}"
    on_event.serve("on-event", triggers=[written(wanted)])
