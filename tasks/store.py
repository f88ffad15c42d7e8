"""How answers are stored: Prefect's result storage, keyed by fingerprint, as plain JSON.

Prefect's own serializers run code that a stored record names; this one
builds an `Answer` or a `Report` from JSON and nothing else.
"""

from __future__ import annotations

import json
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext  # noqa: TC002 -- the signature that is overridden
from prefect.results import ResultStore  # noqa: TC002 -- see above
from prefect.serializers import Serializer

from prefect_dispatch.errors import DispatchError
from prefect_dispatch.fingerprint import fingerprint
from prefect_dispatch.ledger import Report
from prefect_dispatch.models import Answer

PREFIX = "prefect-dispatch-"


class AnswerSerializer(Serializer):
    """Writes answers and reports as tagged JSON, and reads nothing else."""

    type: str = "prefect-dispatch"
    """The name under which Prefect finds this serializer again."""

    def dumps(self, obj: Any) -> bytes:  # noqa: ANN401 -- Prefect's signature
        """Return the JSON of an answer, a report, or an error's message.

        Raises:
            TypeError: If it is anything else.
        """
        if isinstance(obj, Answer):
            record: dict[str, Any] = {"answer": obj.model_dump(mode="json")}
        elif isinstance(obj, Report):
            record = {"report": obj.model_dump(mode="json")}
        elif isinstance(obj, BaseException):
            record = {"error": f"{type(obj).__name__}: {obj}"}
        else:
            msg = f"only answers, reports and errors are stored, not {type(obj).__name__}"
            raise TypeError(msg)
        return json.dumps(record).encode()

    def loads(self, blob: bytes) -> Answer | Report | DispatchError:
        """Return what was stored.

        Raises:
            ValueError: If it is no record of this package.
        """
        record: Any = json.loads(blob)
        match record:
            case {"answer": answer}:
                return Answer.model_validate(answer)
            case {"report": report}:
                return Report.model_validate(report)
            case {"error": str(message)}:
                return DispatchError(message)
            case _:
                msg = "not a record of prefect-dispatch"
                raise ValueError(msg)


class FingerprintPolicy(CachePolicy):
    """Caches a task run's answer under the fingerprint of its work."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002 -- Prefect's signature
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002 -- Prefect's signature
        **_: Any,  # noqa: ANN401 -- Prefect's signature
    ) -> str:
        """Return the storage key of the work that the inputs of a task run describe."""
        return key_of(fingerprint(inputs["brief"], inputs["item"], inputs["executor"]))


def key_of(work: str) -> str:
    """Return the storage key of a fingerprint."""
    return PREFIX + work


def stored_answer(store: ResultStore, work: str) -> Answer | None:
    """Return the stored answer of a fingerprint, or None where there is no readable one."""
    key = key_of(work)
    if not store.exists(key):
        return None
    try:
        found = store.read(key).result
    except Exception:  # noqa: BLE001 -- whatever a damaged record raises, it is no answer
        return None
    return found if isinstance(found, Answer) else None
