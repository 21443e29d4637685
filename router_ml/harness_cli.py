"""router-ml harness, and router-ml harness report."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.errors import ConfigError, InputError, RouterError

if TYPE_CHECKING:
    from router_ml.harness import Progress
    from router_ml.harness_journal import Plan
    from router_ml.harness_report import Line, Percentiles, Report

DEFAULT_COUNT = 100
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_COLUMNS = (
    *("kind", "of", "value", "region", "requests", "answered", "p50 ms", "p95 ms", "p99 ms"),
    *("first p50", "first p95", "first p99", "in", "out", "cost $", "failovers", "failed calls"),
)
_NOTE = "SIMULATED: the latencies, tokens and costs in lines marked simulated are of the loopback provider"


def add_command(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` of the main parser returned."""
    about = "measure the configured providers, or the loopback one, with the 100-prompt workload; resumes"
    harness = commands.add_parser("harness", help=about, description=about)
    harness.set_defaults(run=_run)
    harness.add_argument("--config", help="a router.toml (default: ./router.toml where there is one)")
    harness.add_argument("--out", type=Path, default=Path("harness.jsonl"), help="appended to (default: %(default)s)")
    harness.add_argument("--concurrency", type=int, nargs="+", default=[1, 10, 50], metavar="N")
    length = harness.add_mutually_exclusive_group()
    length.add_argument("--count", type=int, help=f"requests at each concurrency (default: {DEFAULT_COUNT})")
    length.add_argument("--duration", type=seconds, help="of each concurrency: 30s, 10m, 2h or 3d")
    harness.add_argument("--region", default="local", help="a label: where this is run")
    harness.add_argument("--stream", action="store_true", help="streams: measures the time to the first content")
    harness.add_argument("--database", help="SQLAlchemy URL of the ledger (simulated: a temporary one)")
    harness.add_argument("--again", action="store_true", help="a new run, where the file holds this one already")
    harness.add_argument("--simulate", action="store_true", help="the loopback provider: no key, no cost")
    harness.add_argument(
        "--faults", nargs="+", default=[], help="503%%5 ...: of all simulated providers, or one for each of the route"
    )
    harness.add_argument("--latency-ms", type=float, default=0.0, help="of a simulated provider")
    _add_output(harness)
    about = "merge files of several regions or days into one table"
    report = harness.add_subparsers(metavar="report").add_parser("report", help=about, description=about)
    report.set_defaults(run=_report)
    report.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_output(report)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw a chart (needs matplotlib)")


def seconds(text: str) -> float:
    """``2h`` -> 7200. Raises ValueError, as argparse wants it."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd])", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"a duration is a number and s, m, h or d, as in 2h, not {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _run(args: argparse.Namespace) -> None:
    from router_ml.catalog import Catalog
    from router_ml.harness import measure, plan, simulated
    from router_ml.harness_journal import Journal

    if not args.simulate and (args.faults or args.latency_ms):
        raise InputError("--faults and --latency-ms are of simulated providers: add --simulate")
    _check_plot(args)
    count = args.count if args.count is not None or args.duration is not None else DEFAULT_COUNT

    def opened() -> Journal:
        journal = Journal(args.out, asked, again=args.again)
        sys.stderr.write(f"run {journal.run.run_id} {'resumed from' if journal.resumed else 'in'} {args.out}\n")
        return journal

    with ExitStack() as stack:
        catalog = Catalog.load(args.config)
        asked = plan(
            catalog,
            region=args.region,
            simulated=args.simulate,
            stream=args.stream,
            concurrencies=tuple(args.concurrency),
            count=count,
            duration_s=args.duration,
            faults=tuple(args.faults),
            latency_ms=args.latency_ms,
        )
        if args.simulate:
            catalog = stack.enter_context(simulated(catalog, args.faults, latency_ms=args.latency_ms))
        with _progress(asked) as progress:
            run = measure(catalog, asked, opened, database=args.database, progress=progress)
    _show(args, [args.out], run.run_id)


def _report(args: argparse.Namespace) -> None:
    _check_plot(args)
    _show(args, args.files)


def _show(args: argparse.Namespace, files: Sequence[Path], run_id: str | None = None) -> None:
    """All runs of the files, or one."""
    from router_ml.harness_journal import read
    from router_ml.harness_report import summarise

    report = summarise(pair for pair in read(files) if run_id is None or pair[0].run_id == run_id)
    if not report.lines:
        raise RouterError(f"no request is in {', '.join(map(str, files))}")
    if args.json:
        _say(json.dumps(_document(report), indent=2, ensure_ascii=False, default=str))
    elif args.markdown:
        _say(markdown(report))
    else:
        _print_table(report)
    if args.plot:
        from router_ml.harness_chart import draw

        draw(report, args.plot)


def _document(report: Report) -> dict[str, Any]:
    lines = [{**asdict(line), "success_rate": line.success_rate} for line in report.lines]
    return {"simulated": report.simulated, "regions": report.regions, "repeated": report.repeated, "lines": lines}


def _cells(line: Line) -> list[str]:
    cost = f"{line.cost_usd:.6f}" + (f" + {line.cost_unknown} unknown" if line.cost_unknown else "")
    answered = "" if line.success_rate is None else f"{line.success_rate:.2%}"
    return [
        *("simulated" if line.simulated else "real", line.dimension, line.value, line.region),
        *(f"{line.requests:,}", answered, *_times(line.latency), *_times(line.first_content)),
        *(f"{line.input_tokens:,}", f"{line.output_tokens:,}", cost, f"{line.failovers:,}", f"{line.failed_calls:,}"),
    ]


def _times(percentiles: Percentiles) -> list[str]:
    times = (percentiles.p50_ms, percentiles.p95_ms, percentiles.p99_ms)
    return ["" if time is None else f"{time:,.1f}" for time in times]


def _notes(report: Report) -> list[str]:
    errors = [f"{line.region}: {count} x {name}" for line in report.of("all") for name, count in line.errors.items()]
    notes = [_NOTE] if report.simulated else []
    notes += [f"not answered: {'; '.join(errors)}"] if errors else []
    notes += [f"{report.repeated} requests were in the files twice, and are counted once"] if report.repeated else []
    return notes


def markdown(report: Report) -> str:
    rows = [_COLUMNS, ["---"] * len(_COLUMNS), *(_cells(line) for line in report.lines)]
    table = ["| " + " | ".join(_printable(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*table, "", *(f"{_printable(note)}\n" for note in _notes(report))]).rstrip()


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _COLUMNS[:4] else "right", no_wrap=True)
    before = ""
    for line in report.lines:
        if line.dimension != before and before:
            table.add_section()
        before = line.dimension
        table.add_row(*(Text(_printable(cell)) for cell in _cells(line)))
    console = Console()
    console.width = max(console.width, 220)
    console.print(table)
    for note in _notes(report):
        _say(_printable(note))


def _check_plot(args: argparse.Namespace) -> None:
    """Before anything is measured, not days after."""
    from importlib.util import find_spec

    if args.plot and find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'router-ml[notebook]'")


@contextmanager
def _progress(plan: Plan) -> Iterator[Progress]:
    """A bar a concurrency on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    what = "simulated, " if plan.simulated else ""
    console = Console(stderr=True)
    count = TextColumn("{task.fields[done]:,} requests")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        total = plan.duration_s if plan.count is None else plan.count
        bars = {
            concurrency: bar.add_task(f"{what}{concurrency} concurrent", total=total, done=0)
            for concurrency in plan.concurrencies
        }

        def advance(concurrency: int, done: int, elapsed_s: float) -> None:
            bar.update(bars[concurrency], completed=elapsed_s if plan.count is None else done, done=done)

        yield advance


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
