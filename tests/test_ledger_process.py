"""Who is dead: the rule that decides whether an open row was a crash."""

import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from books import NOW

from router_ml.process import SILENT_AFTER, Writer, is_dead

HERE = Writer.here()
LATELY, LONG_AGO = NOW - timedelta(seconds=30), NOW - SILENT_AFTER - timedelta(seconds=1)


@pytest.mark.parametrize(
    ("writer", "seen_at", "dead"),
    [
        (HERE, LONG_AGO, False),  # silence means nothing where the process can be seen
        (replace(HERE, writer_id="another ledger of this process"), LONG_AGO, False),
        (replace(HERE, pid=2**22 + 1), LATELY, True),
        (replace(HERE, process_started="1"), LATELY, True),  # its id was given to another process
        (replace(HERE, pid=1), LATELY, True),  # a process lives there, but began at another time
        (replace(HERE, place="elsewhere"), LATELY, False),
        (replace(HERE, place="elsewhere"), LONG_AGO, True),
        (replace(HERE, process_started=""), LATELY, False),  # no /proc: the heartbeat decides
        (replace(HERE, process_started=""), LONG_AGO, True),
    ],
)
def test_a_writer_is_dead_if_its_process_is_or_if_it_is_elsewhere_and_silent(
    writer: Writer, seen_at: object, dead: bool
) -> None:
    assert is_dead(writer, seen_at, HERE, NOW) == dead  # type: ignore[arg-type]


def test_a_process_that_waits_to_be_reaped_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    ticks = stat.read_text().rpartition(")")[2].split()[19]
    assert is_dead(replace(HERE, pid=pid, process_started=ticks), NOW, HERE, NOW)
    os.waitpid(pid, 0)
