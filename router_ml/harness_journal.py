"""What the harness writes down: one JSON line a run, one a request, appended as it ends.

A line is one write to the file, so that a killed process leaves whole lines and loses only requests under way.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from router_ml.errors import InputError, RouterError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is asked to do. The same plan on the same file is the same run, and is taken up where it stopped.

    ``count`` and ``duration_s`` are of each concurrency; one of them is None. ``offers`` are those of the route.
    """

    region: str
    simulated: bool
    stream: bool
    concurrencies: tuple[int, ...]
    count: int | None
    duration_s: float | None
    faults: tuple[str, ...] = ()
    latency_ms: float = 0.0
    offers: tuple[str, ...] = ()
    quality: float = 0.95


@dataclass(frozen=True, slots=True)
class Run:
    run_id: str
    started_at: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request as its caller saw it. ``number`` counts from 0 at each concurrency; ``elapsed_s`` is how long that
    concurrency had been measured when it ended, time between a crash and its resumption left out.

    ``attempts`` is None where the request was refused before or by its provider and nobody counted; ``failed_at`` are
    the offers of the attempts that failed. ``first_content_ms`` is a stream's. ``cost_usd`` is None where unknown;
    ``cost_source`` is "estimate" where the provider returned no usage.
    """

    run_id: str
    simulated: bool
    concurrency: int
    number: int
    elapsed_s: float
    ended_at: str
    prompt_id: str
    task: str
    request_id: str | None
    tier: str
    provider: str
    model: str
    error: str | None
    message: str | None
    attempts: int | None
    failed_at: tuple[tuple[str, str], ...]
    latency_ms: float
    first_content_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    cost_source: str | None

    @property
    def answered(self) -> bool:
        return self.error is None


class Numbers:
    """A set of numbers that arrive nearly in order, in memory bounded by how far they are out of it."""

    def __init__(self) -> None:
        self.end = 0
        self.missing = set[int]()

    def add(self, number: int) -> bool:
        """False where it was there already."""
        if number >= self.end:
            self.missing.update(range(self.end, number))
            self.end = number + 1
            return True
        if number not in self.missing:
            return False
        self.missing.remove(number)
        return True

    def left(self, count: int | None) -> Iterator[int]:
        """The numbers below ``count`` (None: no end) that are not in it yet; what is left out first."""
        yield from sorted(self.missing)
        number = self.end
        while count is None or number < count:
            yield number
            number += 1


class Level:
    """How far a run has come at one concurrency."""

    def __init__(self) -> None:
        self.numbers = Numbers()
        self.elapsed_s = 0.0

    def add(self, measurement: Measurement) -> None:
        self.numbers.add(measurement.number)
        self.elapsed_s = max(self.elapsed_s, measurement.elapsed_s)


class Journal:
    """A file that one process at a time appends to; ``levels`` says what of ``run`` it holds, by concurrency."""

    def __init__(self, path: Path, plan: Plan, *, again: bool = False) -> None:
        """Takes up the file's last run of ``plan``, or begins one where there is none or ``again`` says so.

        Raises:
            InputError: the file is not a journal, or another process is writing it.
            RouterError: it cannot be written.
        """
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as exc:
            raise RouterError(f"{path} cannot be written: {exc.strerror}") from exc
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise InputError(f"{path} is not a file of the harness: it is no regular file")
            self._lock()
            last = self._last(plan)  # reads every line: what is not ours is refused before it is touched
            self._drop_torn_line()
            found = None if again else last
            self.levels = {concurrency: Level() for concurrency in plan.concurrencies}
            self.run = found or Run(uuid.uuid4().hex, datetime.now(UTC).isoformat(), plan)
            if found is None:
                self._write({"kind": "run", "run_id": self.run.run_id, "started_at": self.run.started_at})
            self.resumed = found is not None and self._count_done()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, measurement: Measurement) -> None:
        """Raises RouterError where the file cannot be written."""
        self._write({"kind": "request"}, measurement)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, head: dict[str, Any], measurement: Measurement | None = None) -> None:
        body = asdict(self.run.plan) if measurement is None else asdict(measurement)
        line = json.dumps({**head, **body}, ensure_ascii=False, default=str) + "\n"
        data = line.encode("utf-8", "replace")
        try:
            while data:  # one write, unless the disk is full
                data = data[os.write(self._file, data) :]
        except OSError as exc:
            raise RouterError(f"{self._path} cannot be written: {exc.strerror}") from exc

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two writers are the user's to avoid
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self._path} is being written by another process") from None

    def _drop_torn_line(self) -> None:
        """A line without its end is of a request that was under way."""
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            start = max(0, end - 4_096)
            os.lseek(self._file, start, os.SEEK_SET)
            at = os.read(self._file, end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end == 0 and size:
            raise InputError(f"{self._path} is not a file of the harness: it holds no whole line")
        if end < size:
            os.ftruncate(self._file, end)

    def _last(self, plan: Plan) -> Run | None:
        last = None
        for run in _runs(self._path):
            if run.plan == plan:
                last = run
        return last

    def _count_done(self) -> bool:
        for run, measurement in read([self._path]):
            if run == self.run:
                self.levels[measurement.concurrency].add(measurement)
        return any(level.numbers.end for level in self.levels.values())


def read(paths: Iterable[Path]) -> Iterator[tuple[Run, Measurement]]:
    """Every request of several files, one at a time, with the run that it belongs to.

    Raises:
        InputError: a file that cannot be read, a line that is none of ours, a request of a run that the file lacks.
    """
    for path in paths:
        runs: dict[str, Run] = {}
        for where, row in _rows(path):
            if row.get("kind") == "run":
                run = _parsed(_run, row, where)
                runs[run.run_id] = run
                continue
            measured = _parsed(_measurement, row, where)
            if measured.run_id not in runs:
                raise InputError(f"{where}: the file lacks the run {measured.run_id!r} of this request")
            yield runs[measured.run_id], measured


def _runs(path: Path) -> Iterator[Run]:
    for where, row in _rows(path):
        kind = row.get("kind")
        if kind not in ("run", "request"):
            raise InputError(f"{where} is not a line of the harness: its kind is {kind!r}")
        if kind == "run":
            yield _parsed(_run, row, where)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line, parsed, with where it stands. A last line without its end is one still being written."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise InputError(f"{where} is not a line of the harness: not a JSON object")
                yield where, row
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc


def _parsed(parse: Callable[[dict[str, Any]], Parsed], row: dict[str, Any], where: str) -> Parsed:
    try:
        return parse(row)
    except (KeyError, TypeError, ValueError, ArithmeticError) as exc:
        raise InputError(f"{where} is not a line of the harness: {type(exc).__name__} {exc}") from None


def _run(row: dict[str, Any]) -> Run:
    values = {field.name: row[field.name] for field in fields(Plan)}
    for name in ("concurrencies", "faults", "offers"):
        values[name] = tuple(values[name])
    return Run(row["run_id"], row["started_at"], Plan(**values))


def _measurement(row: dict[str, Any]) -> Measurement:
    values = {field.name: row[field.name] for field in fields(Measurement)}
    cost = values["cost_usd"]
    values["cost_usd"] = None if cost is None else Decimal(cost)
    values["failed_at"] = tuple((provider, model) for provider, model in values["failed_at"])
    return Measurement(**values)
