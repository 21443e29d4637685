"""Who writes a ledger, and whether it still lives.

Several processes share one ledger, so a row left open is a crash only if its writer is dead. On the same machine, boot
and process namespace (containers share a boot but not each other's processes) that is exact: the process id exists and
began when the writer began. Elsewhere, or where the system has no /proc, a heartbeat that rides on the writer's commits
decides; a verdict that was wrong heals, because a finished request overrules ``interrupted``. An advisory lock would
be exact too, but a PostgreSQL session can be cut while its process goes on, and file locks fail quietly on network
folders.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

HEARTBEAT_S = 60.0
SILENT_AFTER = timedelta(minutes=15)  # of a writer elsewhere, whose process cannot be seen
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Writer:
    """One opened ledger in one process. ``process_started`` is in clock ticks since boot, "" where unknown."""

    writer_id: str
    place: str
    pid: int
    process_started: str

    @classmethod
    def here(cls) -> Writer:
        """A new writer in this process."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, _place(), pid, _started(pid) or "")


def is_dead(writer: Writer, seen_at: datetime, here: Writer, now: datetime) -> bool:
    """Whether ``writer``, last heard of at ``seen_at``, is gone, as judged from ``here``."""
    if writer.place != here.place or not writer.process_started:
        return now - seen_at > SILENT_AFTER
    return _started(writer.pid) != writer.process_started


def _place() -> str:
    """Machine, boot and process namespace: within one, process ids mean the same."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return socket.gethostname()[:200]
    return f"{socket.gethostname()[:150]} {boot} {namespace}"


def _started(pid: int) -> str | None:
    """When process ``pid`` began, in ticks since boot; None where there is none, or it only waits to be reaped."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
