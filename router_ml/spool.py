"""Where entries wait while the database cannot be written: in memory, and in a file that survives the process.

The file is append-only, one writer's own (``<ledger>-<writer>.jsonl``): a header line that says who writes it, then a
line an entry, synced once a batch. It is removed when everything in it is committed. Entries can be applied twice with
the same result, so a crash between the two costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from router_ml.entries import Entry, Start, from_line, to_line
from router_ml.process import Writer, is_dead
from router_ml.schema import VERSION

MAX_BYTES = 64 * 1024 * 1024
_STARTS_SHARE = 0.75  # the rest is kept for finishes: a request whose start was kept is worth its end
_log = logging.getLogger(__name__)


class Spool:
    """Bounded by the bytes that wait. Not thread-safe: the group commit's lock guards it."""

    def __init__(self, folder: Path, ledger: str, writer: Writer, *, max_bytes: int = MAX_BYTES) -> None:
        """``ledger`` tells one ledger's files from another's in the same folder. Nothing is made until it is needed."""
        self._path = folder / f"{ledger}-{writer.writer_id}.jsonl"
        self._writer = writer
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._file: int | None = None
        self._in_file = 0  # how many of the lines, from the left, the file holds
        self._safe_bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def only_in_memory(self) -> int:
        """Entries that the file could not take: they are lost if the process ends before the database is back."""
        return len(self._lines) - self._in_file

    def add(self, entries: Sequence[Entry]) -> int:
        """Keep what the bound allows, in memory and on disk; returns how many had to be dropped."""
        dropped = 0
        for entry in entries:
            line = to_line(entry)
            bound = self._max_bytes * (_STARTS_SHARE if isinstance(entry, Start) else 1.0)
            if self._bytes + len(line) > bound:
                dropped += 1
                continue
            self._lines.append(line)
            self._bytes += len(line)
        self.save()
        return dropped

    def first(self, count: int) -> list[Entry]:
        """The oldest ``count`` entries, which stay until ``remove``."""
        return [from_line(line) for line in islice(self._lines, count)]

    def remove(self, count: int) -> None:
        """Forget the oldest ``count``, which are committed; the file goes with the last."""
        for _ in range(count):
            self._bytes -= len(self._lines.popleft())
        self._in_file = max(0, self._in_file - count)
        if not self._lines:
            self._discard()

    def close(self) -> None:
        """Let go of the file; it stays where something in it is not committed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def save(self) -> None:
        """Bring the file up to what waits in memory, where it lacks something."""
        missing = list(islice(self._lines, self._in_file, None))
        if not missing:
            return
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            data = b"".join(missing)
            while data:
                data = data[os.write(self._file, data) :]
            os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)
        except OSError as exc:
            _log.error(
                "spool %s cannot be written (%s): %d rows wait in memory only", self._path, exc.strerror, len(missing)
            )
            if self._file is not None:
                with contextlib.suppress(OSError):  # a torn last line is skipped by whoever reads it
                    os.ftruncate(self._file, self._safe_bytes)
            return
        self._in_file = len(self._lines)
        self._safe_bytes = os.fstat(self._file).st_size

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # rows hold prompts
        if os.fstat(self._file).st_size == 0:
            os.write(self._file, json.dumps({"schema": VERSION, **asdict(self._writer)}).encode() + b"\n")
        self._safe_bytes = os.fstat(self._file).st_size

    def _discard(self) -> None:
        self.close()
        self._in_file = self._safe_bytes = 0
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another writer's file keeps it
            self._path.parent.rmdir()


def left_behind(folder: Path, ledger: str, here: Writer) -> Iterator[tuple[Path, list[Entry]]]:
    """Spools of the ledger whose writers are dead, with their entries. The caller commits them and removes the file."""
    now = datetime.now(UTC)
    for path in sorted(folder.glob(f"{ledger}-*.jsonl")) if folder.is_dir() else ():
        try:
            header, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
            modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            said = json.loads(header)
            schema, writer = said.pop("schema"), Writer(**said)
        except FileNotFoundError:
            continue  # its writer has just removed it, or another opener
        except (ValueError, TypeError, KeyError, AttributeError):
            _log.error("spool %s has no readable header: left as it is", path)
            continue
        if not is_dead(writer, modified, here, now):
            continue
        if schema != VERSION:
            _log.error("spool %s was written for schema version %s, not %d: left as it is", path, schema, VERSION)
            continue
        yield path, list(_readable(path, lines))


def _readable(path: Path, lines: Sequence[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, 2):
        try:
            yield from_line(line)
        except ValueError:
            # The last line may be torn: its write was never acknowledged. Any other is damage.
            if number <= len(lines) or line.endswith(b"\n"):
                _log.error("spool %s: line %d cannot be read and is left out", path, number)
