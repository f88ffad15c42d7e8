"""Parser of the command line: every command with its options.

It imports nothing that a command needs, so that help and completions are quick.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_dispatch import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_S = 30
"""Minimum of `--start-timeout` in seconds."""
MAX_DIGITS = 9
"""Digits of a number in an option."""
MAX_SHOWN = 40
"""Characters of a wrong value that a message shows."""
FLOW_NAMES = ("dispatch", "analyze_files", "research_topics", "content_variants", "build_modules", "test_matrix")
"""The flows as job files name them; a tuple here, as the help imports no module."""
_SEVERAL_ITEMS: Any = {"metavar": "ITEM", "nargs": "+", "action": "extend"}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, from which completions of a shell can be generated, too."""
    parser = argparse.ArgumentParser(
        prog="prefect-dispatch",
        description="Run explicit briefs over many inputs, merge the answers, and account for every input.",
        epilog="Exit status: 0 complete, 3 completed with gaps, 1 failed, 2 unusable job (nothing was spent), "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _job_command(commands, "run", "run a job")
    run.add_argument(
        "--out",
        metavar="DIR",
        type=_text,
        help="write the report, every outcome and every table there: into a folder, or a URL such as "
        "s3://bucket/report; a file in it, such as DIR/answers.xlsx (or .csv, .parquet): the merged rows as well",
    )
    plan = _job_command(commands, "plan", "say what a job would take; nothing is asked")
    plan.add_argument(
        "--deadline",
        metavar="TIME",
        type=_text,
        help="the time that the job has, such as 2h: whether to fan out, and the cheapest mode that meets it",
    )

    explain = commands.add_parser("explain", help="explain how a value or an item of a report came about")
    explain.set_defaults(command=_command_of("report_commands", "explain"))
    explain.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")
    explain.add_argument(
        "what", metavar="FIELD|KEY", nargs="?", help="a value (`records.0.year`, `year`, `MIT.year`) or an item's key"
    )
    explain.add_argument(
        "--from",
        **_SEVERAL_ITEMS,
        dest="sources",
        help="list what in the merged value rests on these items (keys, `brief/item` or patterns such as `*.txt`)",
    )

    audit = commands.add_parser("audit", help="audit a published report again from its outcomes; nothing is asked")
    audit.set_defaults(command=_command_of("report_commands", "audit"))
    audit.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")

    merge = commands.add_parser(
        "merge",
        help="merge the outcomes of a report again, under other rules or without some of them; nothing is asked",
        description="Merge the stored outcomes of a report again, audit the merge, and show how it differs. No item is "
        "asked again, and the report stays as it is.",
    )
    merge.set_defaults(command=_command_of("report_commands", "merge"))
    merge.add_argument("report", metavar="REPORT", type=_path, help="a report.json, or the folder that holds it")
    merge.add_argument(
        "--without",
        **_SEVERAL_ITEMS,
        default=[],
        help="leave these outcomes out (keys, `brief/item` or patterns such as `draft-*`)",
    )
    merge.add_argument(
        "--rules",
        metavar="FILE",
        type=_path,
        help="merge with the integrator of this job file, or with the one that is the only content of the file",
    )
    merge.add_argument("--out", metavar="DIR", type=_text, help="write the report of this merge there")
    merge.add_argument(
        "--allow-calls", action="store_true", help="allow the integrator in the file of --rules to query a model"
    )

    check = commands.add_parser(
        "check",
        help="compare a text with its sources, sentence by sentence",
        description="Compare each sentence of a text with the sources that it cites by their number, such as [2] for "
        "the second one; without citations, with all of them. Exit status: 0 no doubt, 3 doubts, 2 a file can't be "
        "read or is empty.",
    )
    check.set_defaults(command=_command_of("report_commands", "check"))
    check.add_argument("text", metavar="TEXT", type=_path, help="the text, or Markdown")
    check.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        type=_path,
        help="a text or a JSON document; or a report.json or its folder: each of its answers",
    )
    check.add_argument("--judge", metavar="M", type=_text, help="a model that judges each statement after the rules")
    check.add_argument("--json", action="store_true", dest="as_json", help="print each verdict as JSON")

    opened = commands.add_parser("open", help="open the page of a report in the browser")
    opened.set_defaults(command=_command_of("report_commands", "open_page"))
    opened.add_argument(
        "report", metavar="REPORT", type=_path, help="the folder of a report, or its report.html or report.json"
    )

    logs = commands.add_parser(
        "logs",
        help="show what agents and commands are doing, and read their logs along",
        description="List the programs that work for runs on this machine, with what each of them is doing, and the "
        "latest that have ended; or print the log of one of them as readable steps. Logs are kept for a week.",
    )
    logs.set_defaults(command=_command_of("logs", "show_logs"))
    logs.add_argument(
        "run", metavar="JOB", nargs="?", type=_text, help="a job file, one of its briefs, or the id of a run"
    )
    logs.add_argument(
        "item", metavar="ITEM", nargs="?", type=_text, help="print the log for this item (its key, or `brief/item`)"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing until the program ends")

    init = commands.add_parser(
        "init",
        help="write a commented job file and sample items to begin with",
        description="Write a commented job file and three sample items. Nothing is overwritten.",
    )
    init.set_defaults(command=_command_of("init", "init"))
    init.add_argument(
        "flow",
        metavar="FLOW",
        nargs="?",
        default="dispatch",
        choices=FLOW_NAMES,
        help=f"{', '.join(FLOW_NAMES)} (by default dispatch)",
    )
    init.add_argument("folder", metavar="DIR", nargs="?", type=_path, help="the folder (by default named as the flow)")

    _add_deploy_commands(commands)
    _add_agent_commands(commands)
    return parser


def _command_of(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of another module, which is imported when it is run."""

    def command(arguments: argparse.Namespace) -> int:
        run: Callable[[argparse.Namespace], int] = getattr(import_module(f"prefect_dispatch.cli.{module}"), name)
        return run(arguments)

    return command


def _job_command(
    commands: Any,  # noqa: ANN401 -- the type is private to argparse
    name: str,
    text: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(command=_command_of("commands", name))
    parser.add_argument("job", metavar="JOB", type=_path, help="the job file (YAML or JSON)")
    parser.add_argument("--model", metavar="M", type=_text, help="the model to ask instead of the one in the job")
    parser.add_argument(
        "--set", metavar="a.b=c", action="append", default=[], dest="changes", help="change one value of the job"
    )
    parser.add_argument("--limit", metavar="N", type=_positive, help="take the first N items only")
    parser.add_argument(
        "--refresh",
        metavar="PATTERN",
        nargs="*",
        action="extend",
        help="ask again even where an answer is stored: all of it, or what patterns name (`terms/*.txt`, `mit.txt`)",
    )
    return parser


def _add_deploy_commands(commands: Any) -> None:  # noqa: ANN401 -- the type is private to argparse
    deploy = commands.add_parser(
        "deploy",
        help="register jobs, or the ready flows, with Prefect, for a worker to run",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, for "
        "a worker to run. Running it again updates them; schedules that were changed in Prefect stay.",
    )
    deploy.set_defaults(command=_register("deploy"))
    deploy.add_argument(
        "--work-pool",
        metavar="P",
        type=_text,
        help="the pool whose workers run it (by default Prefect's default, or else the process pool 'dispatch', which "
        "is made if it isn't there)",
    )
    _add_code_options(deploy)
    serve = commands.add_parser(
        "serve",
        help="the same, run by this very process as long as it lasts",
        description="Register a deployment of each job file with Prefect, or of each ready flow if there is none, and "
        "run what Prefect's UI, schedules or API ask for, until interrupted.",
    )
    serve.set_defaults(command=_register("serve"))
    for parser in (deploy, serve):
        parser.add_argument(
            "jobs", metavar="JOB", nargs="*", type=_path, help="a job file whose content fills in the form"
        )
        parser.add_argument("--name", metavar="N", help="what the deployment of the one job is called")
        parser.add_argument("--cron", metavar="C", help="when it is due, such as '0 6 * * 1-5'")
        parser.add_argument(
            "--timezone", metavar="Z", type=_text, help="in which time zone, such as Europe/Berlin (else UTC)"
        )
        parser.add_argument("--active", action="store_true", help="have the schedule make runs")

    reports = commands.add_parser(
        "reports",
        help="serve the report pages to which artifacts link, beside a worker",
        description="Serve the report pages of runs on this machine at a loopback address until interrupted; artifacts "
        "of later runs link to them. `serve` does the same by itself.",
    )
    reports.set_defaults(command=_command_of("report_commands", "serve_reports"))

    automations = commands.add_parser(
        "automations",
        help="the automations that end runs whose worker died",
        description="Show the automations that mark a run as Crashed once its worker or its process has died, or "
        "apply them.",
    )
    automations.set_defaults(command=_register("show_automations"))
    automations.add_argument("--apply", action="store_true", help="create them, or bring them up to date")
    automations.add_argument(
        "--start-timeout",
        metavar="S",
        type=_seconds,
        help="seconds that a run may take from when a worker takes it until it begins (by default 600); more where "
        "large images are pulled",
    )


def _add_agent_commands(commands: Any) -> None:  # noqa: ANN401 -- the type is private to argparse
    limit = argparse.ArgumentParser(add_help=False)
    limit.add_argument(
        "--root", metavar="DIR", type=_path, default=Path(), help="what jobs read lies below it (by default .)"
    )
    limit.add_argument(
        "--models",
        metavar="M,…",
        type=_names,
        help="the models that may be asked, or globs such as 'openai/*' (by default PREFECT_DISPATCH_MODEL alone)",
    )
    limit.add_argument("--max-usd", metavar="X", type=float, default=1.0, help="what one job may spend (by default 1)")
    limit.add_argument(
        "--max-usd-total", metavar="X", type=float, help="what all jobs under the root may spend (by default --max-usd)"
    )
    limit.add_argument(
        "--max-items", metavar="N", type=_positive, default=200, help="most (brief, item) pairs of a job"
    )
    limit.add_argument(
        "--max-concurrency", metavar="N", type=_positive, default=8, help="most calls in flight of a job"
    )
    limit.add_argument(
        "--allow",
        metavar="KIND",
        nargs="+",
        action="extend",
        default=[],
        choices=("shell", "python", "coding"),
        help="let jobs run commands (shell), code of the folder (python), coding agents (coding)",
    )
    mcp = commands.add_parser(
        "mcp",
        parents=[limit],
        help="serve jobs as tools for coding agents (MCP)",
        description="Let a coding agent plan, start, watch and redrive jobs over standard input and output, as far as "
        "these options allow. They stand where the agent is configured, which it can't write.",
    )
    mcp.set_defaults(command=_command_of("jobs", "serve"))
    plugin = commands.add_parser(
        "plugin",
        parents=[limit],
        help="install the skill and the server of `mcp` into Claude Code or Codex",
        description="Install the plugin (skill and MCP server) for all projects of this account, with these limits.",
    )
    plugin.set_defaults(command=_command_of("plugin", "install"))
    plugin.add_argument("action", choices=("install",), help="install it, or install it again with other options")
    plugin.add_argument("agent", choices=("claude", "codex"), help="the agent")
    plugin.add_argument("--print", action="store_true", dest="print_only", help="print what would be done")
    budget = commands.add_parser("budget", help="show what is left of the budgets that runs share")
    budget.set_defaults(command=_command_of("shared_budgets", "show_budgets"))
    budget.add_argument("names", metavar="NAME", nargs="*", type=_text, help="these only")
    jobs = commands.add_parser("jobs", help="show the jobs that coding agents have started")
    jobs.set_defaults(command=_command_of("jobs", "show_jobs"))
    jobs.add_argument("job", metavar="ID", nargs="?", type=_text, help="show this one")
    jobs.add_argument("--cancel", action="store_true", help="cancel it; what was answered stays stored")
    jobs.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def _names(text: str) -> list[str]:
    return [_text(name).strip() for name in text.split(",")]


def _register(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of the module that imports Prefect's deployments."""

    def command(arguments: argparse.Namespace) -> int:
        if name == "serve":  # its log is its output
            os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "NOTSET"
        return _command_of("deploy", name)(arguments)

    return command


def _seconds(text: str) -> int:
    return _whole_number(text, LEAST_S)


def _add_code_options(deploy: argparse.ArgumentParser) -> None:
    code = deploy.add_argument_group(
        "where runs find the job's folder",
        "By default under the path that it has here. All else that a run needs is in the worker's environment, or in "
        "the image.",
    )
    code.add_argument("--git", action="store_true", help="workers clone the job's git repository before each run")
    code.add_argument(
        "--git-url", dest="url", metavar="URL", type=_text, help="its address for workers (by default the remote's)"
    )
    code.add_argument(
        "--git-branch",
        dest="branch",
        metavar="B",
        type=_text,
        help="what they clone (by default the branch checked out here)",
    )
    code.add_argument(
        "--git-commit", dest="commit", metavar="C", type=_text, help="the commit to check out instead, such as HEAD"
    )
    code.add_argument(
        "--git-credentials",
        dest="credentials",
        metavar="TYPE/NAME",
        type=_text,
        help="a saved block with which they clone it, such as secret/github",
    )
    code.add_argument(
        "--image", metavar="I", type=_text, help="the image that runs start from, in a Docker or Kubernetes pool"
    )
    code.add_argument(
        "--folder",
        metavar="DIR",
        type=_text,
        help="the folder that has, where runs work, what the current folder has here (with --image by default the "
        "image's working directory)",
    )
    code.add_argument(
        "--job-variable",
        metavar="K=V",
        action="append",
        default=[],
        type=_variable,
        dest="job_variables",
        help="a setting of the work pool's jobs; V is JSON, or else a text",
    )


def _variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no K=V")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _text(text: str) -> str:
    """Return a value of an option; an empty one is refused, as an unset variable of a shell gives it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give it a value, or leave it out")
    if "\0" in text:
        raise argparse.ArgumentTypeError("it holds a NUL character")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text) >= least:
        return int(text)
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    raise argparse.ArgumentTypeError(
        f"{shown!r} is not a whole number of {least} or more, with {MAX_DIGITS} digits at most"
    )
