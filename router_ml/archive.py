"""What leaves a ledger: old requests that are pruned, and exports to Parquet or JSON lines."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from router_ml import queries
from router_ml.database import Database
from router_ml.errors import InputError, LedgerError
from router_ml.schema import ATTEMPTS, OUTCOMES, REQUESTS, SPEND

_PRUNED_AT_ONCE = 1_000  # requests in one transaction: others wait for no more than that
_EXPORTED_AT_ONCE = 2_000
Progress = Callable[[int, int], None]  # rows done, rows in all
_TIMES = {"started_at", "finished_at", "noted_at"}


def prune(
    database: Database, before: datetime, *, keep_judged: bool = False, progress: Progress = lambda _done, _total: None
) -> int:
    """Delete the requests started before ``before`` that have ended, with their attempts and outcomes; returns how
    many. ``progress`` is told the numbers after each transaction. A day's spend goes down with them.

    Raises LedgerError; what was deleted until then stays deleted.
    """
    r = REQUESTS.c
    old = sa.select(r.request_id).where(r.started_at < before, r.status != "started")
    if keep_judged:
        old = old.where(~sa.exists().where(OUTCOMES.c.request_id == r.request_id))
    with database.reading() as connection:
        total = _size(connection, old)
    pruned = 0
    while True:
        with database.writing() as connection:
            ids = list(connection.execute(old.limit(_PRUNED_AT_ONCE)).scalars())
            for table in (OUTCOMES, ATTEMPTS):
                connection.execute(sa.delete(table).where(table.c.request_id.in_(ids)))
            gone = sa.delete(REQUESTS).where(r.request_id.in_(ids)).returning(r.started_at, r.charged_nanousd)
            _take_back(connection, [(row[0], row[1]) for row in connection.execute(gone)])
        pruned += len(ids)
        progress(pruned, total)
        if len(ids) < _PRUNED_AT_ONCE:
            return pruned


def export(database: Database, path: Path, *, progress: Progress = lambda _done, _total: None) -> int:
    """Write every request to ``path`` (.parquet or .jsonl), oldest first, with its attempts and outcomes as lists;
    returns how many. One snapshot, a few thousand rows in memory at a time; the file appears whole or not at all.

    Raises:
        InputError: another ending.
        LedgerError: the ledger cannot be read or the file not written, or Parquet is asked for without pyarrow.
    """
    writers = {".parquet": _parquet_writer, ".jsonl": _jsonl_writer}
    if path.suffix not in writers:
        raise InputError(f"{path.name} ends in neither .parquet nor .jsonl")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise LedgerError("Parquet needs the package pyarrow: pip install pyarrow, or export to .jsonl")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    exported = 0
    try:
        with writers[path.suffix](temporary) as write:
            for records, total in _records(database):
                write(records)
                exported += len(records)
                progress(exported, total)
        _sync(temporary)
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(path.parent)
    except OSError as exc:
        raise LedgerError(f"{path} cannot be written: {exc.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return exported


def _take_back(connection: sa.Connection, charges: list[tuple[datetime, int]]) -> None:
    """From the days' spend, which is the sum of what its requests are charged; days left at nothing go."""
    days: dict[str, int] = {}
    for started_at, nanousd in charges:
        days[started_at.date().isoformat()] = days.get(started_at.date().isoformat(), 0) + nanousd
    for day, nanousd in days.items():
        remaining = connection.execute(queries.charged(day)).scalar_one() - nanousd
        connection.execute(sa.delete(SPEND).where(SPEND.c.day == day))
        if remaining:
            connection.execute(sa.insert(SPEND), {"day": day, "writer_id": "", "charged_nanousd": remaining})


def _size(connection: sa.Connection, query: sa.Select[Any]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()


def _records(database: Database) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Requests in chunks, each as a record that holds its attempts and outcomes; and how many there are in all."""
    with database.reading() as connection:
        total = _size(connection, sa.select(REQUESTS.c.request_id))
        requests = connection.execution_options(yield_per=_EXPORTED_AT_ONCE).execute(
            sa.select(REQUESTS).order_by(REQUESTS.c.started_at, REQUESTS.c.request_id)
        )
        for rows in requests.mappings().partitions():
            records = {row["request_id"]: {**row, "attempts": [], "outcomes": []} for row in rows}
            for name, table, order in (("attempts", ATTEMPTS, "number"), ("outcomes", OUTCOMES, "source")):
                of_these = sa.select(table).where(table.c.request_id.in_(records)).order_by(table.c[order])
                for row in connection.execute(of_these).mappings():
                    part = dict(row)
                    records[part.pop("request_id")][name].append(part)
            yield list(records.values()), total


Writer = Callable[[list[dict[str, Any]]], None]


@contextmanager
def _jsonl_writer(path: Path) -> Iterator[Writer]:
    with path.open("x", encoding="utf-8") as file:

        def write(records: list[dict[str, Any]]) -> None:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, default=lambda at: at.isoformat()) + "\n")

        yield write


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def fields(table: sa.Table, *, without: tuple[str, ...] = ()) -> list[Any]:
        return [pa.field(c.name, _arrow_type(pa, c)) for c in table.columns if c.name not in without]

    parts = [
        pa.field(table.name, pa.list_(pa.struct(fields(table, without=("request_id",)))))
        for table in (ATTEMPTS, OUTCOMES)
    ]
    schema = pa.schema([*fields(REQUESTS), *parts])
    with path.open("xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield lambda records: writer.write_table(pa.Table.from_pylist(records, schema=schema))


def _arrow_type(pa: Any, column: sa.Column[Any]) -> Any:
    if column.name in _TIMES:
        return pa.timestamp("us", tz="UTC")
    if isinstance(column.type, sa.Integer):
        return pa.int64()
    return pa.float64() if isinstance(column.type, sa.Float) else pa.string()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
