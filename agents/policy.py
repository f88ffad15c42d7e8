"""What a user allows jobs to do and to spend, and the parts of a job that are refused."""

from __future__ import annotations

from fnmatch import fnmatchcase
from glob import escape
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from prefect_dispatch.models.base import Frozen

if TYPE_CHECKING:
    from pathlib import Path

Permission = Literal["shell", "python", "coding"]
"""What runs beyond calls of models: commands, Python code of the workspace, coding agents."""
Usd = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class Policy(Frozen):
    """What a user allows, set where the server is configured, which the agent can't write.

    Example:
        >>> policy = Policy(root="/work", models=("openai/gpt-5*",), max_usd=2)
        >>> policy.allows_model("openai/gpt-5-mini"), policy.allows_model("anthropic/claude-sonnet-4-5")
        (True, False)
    """

    root: str
    """The folder below which everything lies that a job reads; its real path."""
    models: tuple[str, ...] = ()
    """Patterns (globs) of the models that may be asked. Empty: the default model alone."""
    max_usd: Usd = 1.0
    """US dollars that one job may spend, its redrives included."""
    max_usd_total: Usd | None = None
    """US dollars that all jobs of the root may spend together. None: as much as one job."""
    max_items: Annotated[int, Field(ge=1)] = 200
    """Most (brief, item) pairs of a job."""
    max_concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    """Most calls in flight of a job."""
    allow: tuple[Permission, ...] = ()
    """What may run beyond calls of models."""

    @property
    def total_usd(self) -> float:
        """US dollars that all jobs of the root may spend together."""
        return self.max_usd if self.max_usd_total is None else self.max_usd_total

    def allows_model(self, model: str) -> bool:
        """Return whether a model may be asked."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def allows_path(self, path: Path) -> bool:
        """Return whether a path, with all links resolved, lies below the root."""
        return path.resolve().is_relative_to(self.root)

    def refuses(self, refusal: Refusal) -> bool:
        """Return whether a part that a plan found to be refused is refused by this policy, too."""
        match refusal.flag:
            case "--models":
                return not self.allows_model(str(refusal.wanted))
            case "--max-items":
                return int(refusal.wanted) > self.max_items
            case "--max-concurrency":
                return int(refusal.wanted) > self.max_concurrency
            case _:
                return True

    def widen(self, refusals: tuple[Refusal, ...]) -> Policy:
        """Return the policy for one job in which a person has allowed some refused parts."""
        models = [str(each.wanted) for each in refusals if each.flag == "--models"]

        def most(flag: str, allowed: int) -> int:
            return max(allowed, *(int(each.wanted) for each in refusals if each.flag == flag), 0)

        return self.model_copy(
            update={
                "models": (*self.models, *map(escape, models)),
                "max_items": most("--max-items", self.max_items),
                "max_concurrency": most("--max-concurrency", self.max_concurrency),
            }
        )


class Refusal(Frozen):
    """A part of a job that the user has not allowed."""

    part: str
    """Where it is in the job, such as `executor.model`."""
    reason: str
    """Why it is refused, in a sentence."""
    flag: str = ""
    """The option of `prefect-dispatch mcp` that would allow it; empty if none does."""
    wanted: str | int = ""
    """The value that the option would need."""

    @property
    def can_ask(self) -> bool:
        """Whether a person may allow it for one job, in a form of the client: no code, and no money."""
        return self.flag in {"--models", "--max-items", "--max-concurrency"}

    def __str__(self) -> str:
        """Return the refusal as a sentence."""
        way_out = f"allowed by {self.flag} {self.wanted}" if self.flag else "no option allows it"
        return f"{self.part}: {self.reason} ({way_out})."
