"""The installed wheel, alone: what it brings, and one run."""

from __future__ import annotations

from importlib.metadata import files
from importlib.util import find_spec

from prefect_dispatch import Brief, dispatch
from prefect_dispatch.testing import ScriptedExecutor

tops = {path.parts[0] for path in files("prefect_dispatch") or [] if ".." not in path.parts}
tops = {top for top in tops if not top.endswith(".dist-info")}
assert tops == {"prefect_dispatch"}, tops
assert not any(find_spec(name) for name in ("flows", "tasks", "integrators", "deployments", "agents"))
assert find_spec("xllamacpp") is None
report = dispatch(
    [Brief(name="smoke", instructions="Say it.")], ["a", "b"], executor=ScriptedExecutor({"a": "A", "b": "B"})
)
assert [row.disposition for row in report.ledger] == ["merged", "merged"], report.message
print(report.message)
