"""router-ml ledger verify, prune, export."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.errors import InputError, LedgerError

if TYPE_CHECKING:
    from router_ml.database import Database

_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "w": timedelta(weeks=1)}


def add_commands(commands: Any) -> None:
    """``commands`` is what ``add_subparsers`` of the main parser returned."""
    about = "check, shorten or copy the ledger"
    ledger = commands.add_parser("ledger", help=about, description=about).add_subparsers(required=True, metavar="WHAT")

    def command(name: str, run: object, about: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = ledger.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--config", help="a router.toml (default: ./router.toml where there is one)")
        sub.add_argument("--database", help="SQLAlchemy URL of the ledger (default: the configured one)")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    command("verify", _verify, "check every invariant; exit status 1 where one is broken")
    prune = command("prune", _prune, "delete old requests, with their attempts and outcomes")
    prune.add_argument("--older-than", required=True, metavar="AGE", help="90d, 12w or 36h")
    prune.add_argument("--keep-judged", action="store_true", help="keep requests that have an outcome")
    export = command("export", _export, "copy all requests to a .parquet or .jsonl file")
    export.add_argument("file", type=Path)


def age(text: str) -> timedelta:
    """``90d`` -> 90 days. Raises InputError."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if match is None:
        raise InputError(f"an age is a number and d, w or h, as in 90d, not {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _verify(args: argparse.Namespace) -> None:
    from router_ml.audit import verify

    with _database(args) as database:
        audit = verify(database)
    if args.json:
        _say(json.dumps({"sound": audit.sound, **asdict(audit)}, indent=2))
    else:
        _say(f"{audit.requests} requests, {audit.attempts} attempts, {audit.outcomes} outcomes")
        for broken in audit.violations:
            _say(f"BROKEN: {broken.invariant}: {broken.count}, such as {', '.join(broken.examples)}")
        _say(f"{len(audit.checked) - len(audit.violations)} of {len(audit.checked)} invariants hold")
    if not audit.sound:
        raise LedgerError(f"{len(audit.violations)} invariants are broken")


def _prune(args: argparse.Namespace) -> None:
    from router_ml.archive import prune

    before = datetime.now(UTC) - age(args.older_than)
    with _database(args) as database, _progress("pruning") as progress:
        count = prune(database, before, keep_judged=args.keep_judged, progress=progress)
    _say(json.dumps({"pruned": count, "before": before.isoformat()}) if args.json else f"{count} requests pruned")


def _export(args: argparse.Namespace) -> None:
    from router_ml.archive import export

    with _database(args) as database, _progress("exporting") as progress:
        count = export(database, args.file, progress=progress)
    _say(json.dumps({"exported": count, "file": str(args.file)}) if args.json else f"{count} requests in {args.file}")


@contextmanager
def _database(args: argparse.Namespace) -> Iterator[Database]:
    from router_ml.catalog import Catalog
    from router_ml.database import open_database

    database = open_database(args.database or Catalog.load(args.config).settings.database, create=False)
    try:
        yield database
    finally:
        database.engine.dispose()


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal; its update takes the rows done and the rows in all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
