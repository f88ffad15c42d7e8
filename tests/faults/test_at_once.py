"""Two runs of one job at once, on a store of this machine and on S3: they share the work, and pay once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from moto.server import ThreadedMotoServer
from prefect_aws.client_parameters import AwsClientParameters
from prefect_aws.credentials import AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr

from prefect_dispatch.tasks.get_or_compute import SUFFIX
from prefect_dispatch.tasks.result_store import PREFIX, parse_record
from tests.faults.lives import CONCURRENCY, kill, lives
from tests.faults.words import await_calls, needed, said, sizes
from tests.openai_server import openai_server

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

ITEMS = 30
WORDS = [f"word-{n}" for n in range(ITEMS)]
BUCKET = "answers"


@pytest.fixture
def bucket(store: Path) -> Generator[Any]:
    """An empty bucket on this machine, which Prefect knows as a storage of results."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        credentials = AwsCredentials(
            aws_access_key_id="testing",
            aws_secret_access_key=SecretStr("testing"),
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=url),
        )
        client = cast("Any", credentials).get_client("s3")
        client.create_bucket(Bucket=BUCKET)
        cast("Any", S3Bucket(bucket_name=BUCKET, credentials=credentials)).save("answers", overwrite=True)
        yield client
    finally:
        server.stop()


def contents(client: Any) -> dict[str, bytes]:  # noqa: ANN401 -- boto3 has no types
    """Return what stands in the bucket."""
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX).get("Contents", ())
    return {each["Key"]: client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read() for each in listed}


def jobs(url: str, folder: Path, storage: str | None) -> list[dict[str, Any]]:
    """Return the same job twice."""
    return [{"url": url, "items": WORDS, "out": str(folder / f"{n}.json"), "storage": storage} for n in range(2)]


@pytest.mark.slow
def test_on_this_machine_nothing_is_asked_twice(store: Path, tmp_path: Path) -> None:
    """Each item is asked by one of them, to the request; both have all answers."""
    with openai_server(sizes) as server, lives(tmp_path) as processes:
        reports = processes.whole(jobs(server.url, tmp_path, None))
    assert server.count == needed(server, ITEMS)
    assert [said(report) for report in reports] == [{word: {"size": n} for n, word in enumerate(WORDS)}] * 2
    assert sum(report.usage.requests for report in reports) == server.count
    assert sum(report.usage.asked for report in reports) == sum(report.usage.cached for report in reports) == ITEMS


@pytest.mark.long
def test_on_s3_what_is_asked_twice_fits_in_a_moment(bucket: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """No lock reaches everybody there; drafts do, but for a moment. A run that was killed is gone on with."""
    with openai_server(sizes) as server, lives(tmp_path) as processes:
        both = jobs(server.url, tmp_path, f"s3-bucket/{BUCKET}")
        [life] = processes.begin(both[:1])
        await_calls(server, ITEMS // 3)
        kill(life)
        assert processes.ended() == [-9]
        reports = processes.whole(both)
        asked = server.count
        [again] = processes.whole(both[:1])
    assert (server.count, again.usage.cached) == (asked, ITEMS)
    assert [said(report) for report in reports] == [{word: {"size": n} for n, word in enumerate(WORDS)}] * 2
    stored = contents(bucket)
    answers = [parse_record(content) for key, content in stored.items() if not key.endswith(SUFFIX)]
    assert len(answers) == ITEMS
    spent = [attempt.usage for answer in answers if answer for attempt in answer.attempts]
    heard, lost = needed(server, ITEMS), sum(usage.unsettled for usage in spent)
    assert sum(usage.requests for usage in spent) == heard + lost
    assert asked - heard <= lost <= CONCURRENCY
