"""The commands that read a report, or compare a text with its sources: `explain`, `merge`, `audit`, `open`, `check`."""

from __future__ import annotations

import sys
import threading
import webbrowser
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from prefect_dispatch.cli.commands import CODES, COMPLETE, FAILED, GAPS
from prefect_dispatch.errors import JobError
from prefect_dispatch.models.report import Report
from prefect_dispatch.security.escaping import count_noun, strip_control_chars

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

PAGE = "report.html"
"""The page of a report."""


def explain(arguments: argparse.Namespace) -> int:
    """Print how a value or an item came about, or what rests on some items."""
    from prefect_dispatch.reporting import explain  # noqa: PLC0415 -- only here

    path: Path = arguments.report
    if arguments.what is not None and arguments.sources:
        raise JobError(f"explain: give a value or item ({arguments.what!r}), or --from with items, not both.")
    file = path / "report.json" if path.is_dir() else path
    try:
        report = Report.model_validate_json(file.read_bytes())
        if arguments.sources:
            print(explain.explain_sources(report, arguments.sources))
        else:
            print(explain.explain(report, arguments.what))
    except OSError as error:
        raise JobError(f"{str(file)!r} can't be read: {error.strerror}.") from None
    except ValidationError:
        raise JobError(f"{str(file)!r} is not a report.json.") from None
    except LookupError as error:
        raise JobError(str(error)) from None
    return COMPLETE


def merge(arguments: argparse.Namespace) -> int:
    """Merge a report again, print how the merge differs, and write its report if requested."""
    from prefect_dispatch.cli.merge import merge_again  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.flows.publish import write_files, write_page  # noqa: PLC0415 -- imports Prefect
    from prefect_dispatch.reporting.difference import describe_differences  # noqa: PLC0415 -- only here
    from prefect_dispatch.reporting.markdown import TITLES  # noqa: PLC0415 -- only here
    from prefect_dispatch.reporting.output_folder import Output, parse_output  # noqa: PLC0415 -- only here

    source: Path = arguments.report
    out = None if arguments.out is None else parse_output(arguments.out)
    if out and Output(out.folder).target == str((source if source.is_dir() else source.parent).resolve()):
        raise JobError(f"--out: {str(out.folder)!r} holds the report that is merged; name another folder.")
    merged = merge_again(source, without=arguments.without, rules=arguments.rules, allow_calls=arguments.allow_calls)
    report = merged.report
    print(describe_differences(merged.differences))
    print(f"{TITLES[report.status]}: {report.message}")
    if out:
        files = write_files(report, out.ensure())
        if problem := write_page(report, out, merged.briefs, []):
            print(f"prefect-dispatch: {problem}", file=sys.stderr)
        print(f"Report: {', '.join(files)}")
    return CODES[report.status]


def audit(arguments: argparse.Namespace) -> int:
    """Audit a published report, and print what was found, checked, and not checked."""
    from prefect_dispatch.integrators.audit.published_report import audit_report  # noqa: PLC0415 -- imports every integrator

    found = audit_report(arguments.report)
    for violation in found.violations:
        print(strip_control_chars(str(violation)))
    print(f"{count_noun(len(found.violations), 'violation')}." if found.violations else "Held.")
    if found.checked:
        print(f"Checked: {'; '.join(found.checked)}.")
    for sentence in found.unchecked:
        print(f"Not checked: {strip_control_chars(sentence)}")
    return FAILED if found.violations else COMPLETE


def open_page(arguments: argparse.Namespace) -> int:
    """Open the page of a report in the browser, and print its path."""
    report: Path = arguments.report
    page = report / PAGE if report.is_dir() else report.with_name(PAGE)
    if not page.is_file():
        where = f"{str(page.parent)!r}: name the folder that `prefect-dispatch run JOB --out DIR` wrote."
        raise JobError(f"There is no {PAGE} in {where}")
    page = page.resolve()
    print(page)
    if not webbrowser.open(page.as_uri()):
        print("prefect-dispatch: no browser was found; open the page yourself.", file=sys.stderr)
    return COMPLETE


def check(arguments: argparse.Namespace) -> int:
    """Compare a text with its sources, and print a verdict for each sentence."""
    from prefect_dispatch.cli.check import check_files  # noqa: PLC0415 -- imports litellm's adapter

    output, is_clean = check_files(arguments.text, arguments.sources, judge=arguments.judge, as_json=arguments.as_json)
    print(output)
    return COMPLETE if is_clean else GAPS


def serve_reports(_: argparse.Namespace) -> int:  # pragma: no cover -- never ends; test_page_server runs it
    """Serve the report pages of runs on this machine until interrupted."""
    from prefect_dispatch.reporting.page_server import serve_pages  # noqa: PLC0415 -- only here

    with serve_pages(partial(print, file=sys.stderr, flush=True)), suppress(KeyboardInterrupt):
        threading.Event().wait()
    return COMPLETE
