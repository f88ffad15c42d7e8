"""Items and reports in an object store: a server that speaks S3."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from prefect_dispatch import Brief, dispatch
from prefect_dispatch.cli.console import summary
from prefect_dispatch.errors import JobError, SourceError
from prefect_dispatch.flows.job_file import load_job, plan_job
from prefect_dispatch.flows.publish import page_location, publish_page, write_files
from prefect_dispatch.models.report import Report
from prefect_dispatch.reporting.output_folder import parse_output
from prefect_dispatch.sources import Source, read_items, source
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.inline import Listed
from prefect_dispatch.sources.tabular import Csv, JsonLines, Parquet
from prefect_dispatch.tasks.table_tasks import input_assets
from prefect_dispatch.testing import ScriptedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Put = Callable[[str, str | bytes], None]

HERE = Path("elsewhere")
ANY: Any = {"title": "any JSON"}


def boto3() -> Any:  # noqa: ANN401 -- it has no types
    """Return the module, which only tests use."""
    return import_module("boto3")


@pytest.fixture(scope="module")
def server() -> Generator[str]:
    """A server on this machine that speaks S3."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the environment in which its file system finds it."""
    s3fs: Any = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps the client of another test's server
    variables = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**variables, "ENDPOINT_URL": server}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid4().hex}"
    boto3().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def put(bucket: str) -> Put:
    """Returns what puts an object into the bucket."""
    client = boto3().client("s3")

    def put(key: str, content: str | bytes) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=content.encode() if isinstance(content, str) else content)

    return put


def keys(glob: str | tuple[str, ...], **more: Any) -> list[str]:  # noqa: ANN401 -- fields of a glob
    """Return the keys of the items of a glob."""
    return [item.key for item in read_items(Glob(glob=glob, **more), HERE)]


@pytest.mark.slow
def test_texts_are_found_by_a_glob(bucket: str, put: Put) -> None:
    """As on this machine: the key is the path in the bucket, or below `root`; what is new is found the next time."""
    for key in ("in/a.txt", "in/b.txt", "in/c.md", "in/.hidden.txt", "in/x/a.txt", "in/x/y/d.txt", "in.txt"):
        put(key, key)
    put("in/empty.txt", b"")
    put("in/", b"")  # the mark of a folder
    put("in/utf.txt", "naïve".encode("utf-16"))
    url = f"s3://{bucket}"
    assert keys(f"{url}/in/*.txt") == ["in/a.txt", "in/b.txt", "in/empty.txt", "in/utf.txt"]
    assert keys("*.txt", root=f"{url}/in") == ["a.txt", "b.txt", "empty.txt", "utf.txt"]
    assert keys("*.md", root=f"{url}/in/") == ["c.md"]
    assert keys((f"{url}/in/**/a.txt", f"{url}/*.txt")) == ["in.txt", "in/a.txt", "in/x/a.txt"]
    assert keys("**", root=f"{url}/in/x") == ["a.txt", "y/d.txt"]
    values = {item.key: item.value for item in read_items(Glob(glob=f"{url}/in/[eu]*.txt"), HERE)}
    assert values == {"in/empty.txt": "", "in/utf.txt": "naïve"}
    put("in/z.txt", "new")
    assert "in/z.txt" in keys(f"{url}/in/*.txt")


@pytest.mark.slow
def test_many_objects_are_read(bucket: str, put: Put) -> None:
    """More than are asked for at once, each with its own text."""
    for number in range(70):
        put(f"n/{number}.txt", f"number {number}")
    items = read_items(Glob(glob="n/*.txt", root=f"s3://{bucket}"), HERE)
    assert [(item.key, item.value) for item in items] == [(f"n/{n}.txt", f"number {n}") for n in range(70)]


def test_tables_are_read(bucket: str, put: Put) -> None:
    """JSON Lines, CSV with a mark of its encoding, and Parquet, each with its key."""
    put("t/rows.jsonl", '{"id": "x", "n": 1}\n\n{"id": "y", "n": 2}\n')
    put("t/rows.csv", "\ufeffid,n\r\nx,1\r\ny,2\r\n".encode())
    pa: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    sink = BytesIO()
    parquet.write_table(pa.table({"id": ["x", "y"], "n": [1, 2]}), sink)
    put("t/p/day=1/rows.parquet", sink.getvalue())
    url = f"s3://{bucket}/t"
    rows = [{"id": "x", "n": 1}, {"id": "y", "n": 2}]
    assert [item.value for item in read_items(JsonLines(jsonl=f"{url}/rows.jsonl", key="id"), HERE)] == rows
    csv = read_items(Csv(csv=f"{url}/rows.csv", key="id"), HERE)
    assert [(item.key, item.value) for item in csv] == [("x", {"id": "x", "n": "1"}), ("y", {"id": "y", "n": "2"})]
    lake = read_items(Parquet(parquet=f"{url}/p", key="id"), HERE)
    assert [item.value for item in lake] == [{**row, "day": 1} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("items", "message"),
    [
        pytest.param({"glob": "URL/none/*.txt"}, "There are no items: the glob 'none/.*' in 's3://bucket-", id="none"),
        pytest.param(
            {"glob": ["URL/a.txt", "URL/b.txt"]}, "The glob 'b.txt' matches nothing in 's3://", id="one-of-two"
        ),
        pytest.param({"glob": "s3://no-such-bucket-here/*"}, "can't be opened: .*bucket", id="bucket"),
        pytest.param({"glob": "URL/a.txt", "max_bytes": 2}, "File 'a.txt' is larger than 2 bytes", id="large"),
        pytest.param({"glob": "URL/b.bin"}, "File 'b.bin' is not text: it holds NUL bytes", id="binary"),
        pytest.param({"jsonl": "URL/none.jsonl"}, "JSON Lines file 's3://.*can't be opened: FileNotFound", id="jsonl"),
        pytest.param({"jsonl": "URL/a.txt"}, "line 1 is not JSON", id="not-json"),
        pytest.param({"jsonl": "URL/latin.csv"}, "is not UTF-8, as JSON has to be", id="latin-json"),
        pytest.param({"csv": "URL/latin.csv"}, "CSV file 's3://.*' is not utf-8; set `encoding`", id="latin"),
        pytest.param({"csv": "URL/a.txt", "key": "id"}, "no column 'id'", id="column"),
    ],
)
def test_what_cannot_be_read_is_named(bucket: str, put: Put, items: dict[str, Any], message: str) -> None:
    """In a sentence with the place, whatever the store says."""
    put("a.txt", "text")
    put("b.bin", b"a\0b")
    put("latin.csv", "name\né\n".encode("latin-1"))
    url = f"s3://{bucket}"
    filled = json.loads(json.dumps(items).replace("URL", url))
    with pytest.raises(SourceError, match=message):
        read_items(source(filled), HERE)


@pytest.mark.parametrize("items", [{"glob": "s3://b/*"}, {"jsonl": "s3://b/x.jsonl"}, {"csv": "s3a://b/x.csv"}])
def test_the_extra_is_named(items: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where s3fs isn't installed, the message is the command that installs it."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3", "s3a"):
        registry: Any = pytest.importorskip("fsspec.registry")
        monkeypatch.delitem(registry._registry, name, raising=False)  # noqa: SLF001 -- fsspec remembers what another test used
    with pytest.raises(SourceError, match=r"needs s3fs, which isn't .*: pip install 'prefect-dispatch\[s3\]'\."):
        read_items(source(items), HERE)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"glob": "s3://b/*", "root": "in"}, "'s3://b/\\*' is a URL and names its own place; leave `root` out"),
        ({"glob": ["s3://b/*", "s3://c/*"]}, "the globs are in several places"),
        ({"glob": ["s3://b/*", "*.txt"]}, "the globs are in several places"),
        ({"glob": "s3://b"}, "must stay below its folder"),
        ({"glob": "s3://b/../c"}, "must stay below its folder"),
        ({"glob": "s3://me:hunter2@b/*"}, "a URL with a password would be kept in plain text"),
        ({"glob": "*", "root": "s3://me:hunter2@b/"}, "a URL with a password would be kept in plain text"),
        ({"csv": "s3://me:hunter2@b/x.csv"}, "a URL with a password would be kept in plain text"),
    ],
)
def test_a_wrong_place_is_refused(items: dict[str, Any], message: str) -> None:
    """Before anything is opened, and without the password."""
    with pytest.raises(SourceError, match=message) as refused:
        source(items)
    assert "hunter2" not in str(refused.value)


def test_where_items_come_from_is_an_asset() -> None:
    """A bucket or an object by its URL, a folder by its path; a list is none."""
    found: list[Source] = [
        Glob(glob="s3://b/in/*"),
        Glob(glob="*", root="s3://b/in"),
        Csv(csv="s3://b/x.csv"),
        JsonLines(jsonl="x"),
    ]
    assert [input_assets(each, Path("/data")) for each in found] == [
        ["s3://b"],
        ["s3://b/in"],
        ["s3://b/x.csv"],
        ["file:///data/x"],
    ]
    assert input_assets(Listed.model_validate(["a"]), Path("/data")) == []


@pytest.mark.slow
def test_a_job_takes_its_items_from_a_bucket(bucket: str, put: Put, tmp_path: Path) -> None:
    """The job file names the URL, and a plan reads what is there."""
    put("in/a.txt", "One.")
    put("in/b.txt", "Two.")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"briefs: [{{name: x, instructions: Say it.}}]\nitems: {{glob: 's3://{bucket}/in/*.txt'}}\n"
        "executor: {model: openai/test}\n"
    )
    assert plan_job(load_job(job), tmp_path).work == 2


def stored_names(bucket: str) -> list[str]:
    """Return the names of the objects below `out/`."""
    found = boto3().client("s3").list_objects_v2(Bucket=bucket, Prefix="out/")
    return [each["Key"].removeprefix("out/") for each in found.get("Contents", ())]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_run_writes_its_report_to_a_bucket(
    bucket: str, put: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same files as in a folder; those of the run before are replaced, and other people's stay."""
    monkeypatch.chdir(tmp_path)
    put("out/mine.csv", "1")
    executor = ScriptedExecutor(lambda _: {"year": 1843})
    brief = Brief(name="years", instructions="Read it.", output=ANY)
    report = dispatch([brief], ["a"], executor=executor, out=f"s3://{bucket}/out/")
    files = {"mine.csv", "answers.csv", "outcomes.jsonl", "report.html", "report.json", "report.md"}
    assert {*stored_names(bucket)} == files
    assert not [*tmp_path.glob("s3*")]
    kept = boto3().client("s3").get_object(Bucket=bucket, Key="out/outcomes.jsonl")["Body"].read()
    assert json.loads(kept)["value"] == {"year": 1843}
    shown = summary(report, parse_output(f"s3://{bucket}/out"))
    assert f"Report: s3://{bucket}/out/report.html, s3://{bucket}/out/report.md, " in shown
    write_files(Report(status="complete", message="All."), parse_output(f"s3://{bucket}/out"))
    assert {*stored_names(bucket)} == files - {"answers.csv"}


@pytest.mark.slow
def test_the_page_in_a_bucket_is_named_in_prefect(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its URL, and as a link where a web server serves the bucket; one that can't be written is no failure."""
    report = Report(status="complete", message="All.")
    output = parse_output(f"s3://{bucket}/out")
    places, lacking = publish_page(report, output, (), (), is_deployed=False)
    assert (places.file, lacking) == (f"s3://{bucket}/out/report.html", [])
    assert "stored at this address" in page_location(places)
    assert places.file in page_location(places)
    monkeypatch.setenv("PREFECT_DISPATCH_REPORTS_URL", "https://minio.example/")
    assert page_location(places) == f"[Open the report page](https://minio.example/{bucket}/out/report.html)"
    _, (lacking_there,) = publish_page(report, parse_output("s3://no-such-bucket-here/out"), (), (), is_deployed=False)
    assert lacking_there.startswith("report.html was not written; ")


@pytest.mark.slow
def test_a_bucket_that_can_not_be_written_to_is_refused(bucket: str, tmp_path: Path) -> None:
    """Before anything is asked; the probe leaves nothing."""
    assert parse_output(f"s3://{bucket}/out").ensure().folder == f"s3://{bucket}/out"
    assert stored_names(bucket) == []
    with pytest.raises(JobError, match="out: 's3://no-such-bucket-here/out' can't be written to: "):
        parse_output("s3://no-such-bucket-here/out").ensure()
    with pytest.raises(JobError, match=r"out: 'nowhere://x/out' can't be written to: .*[Pp]rotocol"):
        parse_output("nowhere://x/out", tmp_path).ensure()
