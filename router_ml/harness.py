"""The packaged workload, again and again, through an AsyncRouter: what its callers see, written to a journal.

Memory stays flat however long it runs: a request is in the journal as soon as it has ended, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from router_ml.catalog import Catalog
from router_ml.errors import InputError, RequestFailed, RouterError
from router_ml.faults import Fault
from router_ml.harness_journal import Journal, Level, Measurement, Plan, Run
from router_ml.ledger import Ledger
from router_ml.router import AsyncRouter
from router_ml.types import TIERS, Attempt

Progress = Callable[[int, int, float], None]
"""Called after each request with its concurrency, how many have ended there, and for how many seconds it has run."""

_SERVE = "import sys; from router_ml.harness import serve; serve(sys.argv[1])"
_LONGEST_PAUSE_S = 30.0
_MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt of the workload."""

    prompt_id: str
    task: str
    prompt: str


def tasks() -> list[Task]:
    """The packaged workload, from an installed wheel or a checkout."""
    package = Path(__file__).parent
    path = next(p for p in (package / "data", package.parent / "data") if p.is_dir()) / "workload.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Task(row["id"], row.get("task") or "unnamed", row["prompt"]) for row in rows]


@contextmanager
def simulated(catalog: Catalog, faults: Sequence[str] = (), *, latency_ms: float = 0.0) -> Iterator[Catalog]:
    """The catalog with each provider of the route turned to a loopback provider of its own, in another process that
    ends with this one. One fault strikes them all; several strike them in the route's order, "" none.

    Raises:
        InputError: an unknown fault, or more faults than providers.
        RouterError: the loopback providers do not start.
    """
    route = tuple(dict.fromkeys(catalog.settings.route))
    if len(faults) > len(route):
        raise InputError(f"{len(faults)} faults for {len(route)} providers: {', '.join(route)}")
    each = [*faults] * len(route) if len(faults) == 1 else [*faults, *[""] * (len(route) - len(faults))]
    try:
        for fault in each:
            Fault.parse(fault)
    except ValueError as exc:
        raise InputError(str(exc)) from None
    wanted = {"faults": each, "latency_s": latency_ms / 1_000, "tokens": catalog.settings.expected_output_tokens}
    command = [sys.executable, "-c", _SERVE, json.dumps(wanted)]
    # A session of its own: Ctrl-C is for us, and the end of its standard input for it.
    with Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True) as process:  # noqa: S603 - our own interpreter and code
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            if not said:
                raise RouterError("the loopback providers did not start")
            urls = dict(zip(route, json.loads(said), strict=True))
            providers = {
                name: replace(provider, base_url=urls.get(name, provider.base_url), key_env=None)
                for name, provider in catalog.providers.items()
            }
            yield replace(catalog, providers=providers)
        finally:
            process.stdin.close()


def serve(wanted: str) -> None:
    """The other process of ``simulated``: prints the base URLs, and ends with its standard input."""
    from router_ml.classifier import ComplexityClassifier
    from router_ml.demo import _tokenizer
    from router_ml.simulator import Simulator

    asked = json.loads(wanted)
    count = _tokenizer(ComplexityClassifier.load()).count
    common: dict[str, Any] = {"output_tokens": asked["tokens"], "latency_s": asked["latency_s"], "keep_requests": False}
    with ExitStack() as stack:
        servers = [stack.enter_context(Simulator(count, fault=fault, **common)) for fault in asked["faults"]]
        sys.stdout.write(json.dumps([server.base_url for server in servers]) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


def plan(catalog: Catalog, **asked: Any) -> Plan:
    """``asked`` are the other fields of Plan. Raises InputError for values that make no run."""
    offers = dict.fromkeys(str(offer) for tier in TIERS for offer in catalog.routed(tier))
    made = Plan(offers=tuple(offers), quality=catalog.settings.quality, **asked)
    if not made.concurrencies or any(concurrency < 1 for concurrency in made.concurrencies):
        raise InputError(f"concurrency is at least 1, not {list(made.concurrencies)}")
    if any(one == other for one, other in pairwise(sorted(made.concurrencies))):
        raise InputError(f"each concurrency is measured once, not {list(made.concurrencies)}")
    if (made.count is None) == (made.duration_s is None):
        raise InputError("a run has a count or a duration")
    if made.count is not None and made.count < 1:
        raise InputError(f"count = {made.count} is below 1")
    if not made.region.isprintable() or not 0 < len(made.region) <= 64:
        raise InputError("a region is a label of 1 to 64 printable characters")
    return made


def measure(
    catalog: Catalog, asked: Plan, opened: Callable[[], Journal], *, database: str | None = None, progress: Progress
) -> Run:
    """Do what is left of a run. ``opened`` is called once the router is ready, so that a missing key leaves no file.
    ``database`` is the ledger's URL: by default the configured one, for simulated requests one that is thrown away.

    Raises:
        InputError: not a journal.
        MissingKeyError: no provider of the route has its key.
        RouterError: the ledger cannot be opened, or the journal not written. A request's own failure is measured.
    """
    with ExitStack() as stack:
        if database is None and asked.simulated:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            database = f"sqlite:///{Path(folder).as_posix()}/harness.db"
        return asyncio.run(_measure(catalog, opened, database or catalog.settings.database, progress))


async def _measure(catalog: Catalog, opened: Callable[[], Journal], database: str, progress: Progress) -> Run:
    ledger = Ledger(database, prompts=catalog.settings.prompts)
    try:
        router = AsyncRouter(catalog, ledger=ledger)
    except BaseException:
        ledger.close()
        raise
    async with router:
        with opened() as journal:
            await _run(router, journal, progress)
            return journal.run


async def _run(router: AsyncRouter, journal: Journal, progress: Progress) -> None:
    for concurrency, level in journal.levels.items():
        bench = _Bench(router, journal, concurrency, level, progress)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(bench.work())
        except* RouterError as failures:  # of the journal: one says it all
            raise failures.exceptions[0] from None


class _Bench:
    """One concurrency of a run."""

    def __init__(
        self, router: AsyncRouter, journal: Journal, concurrency: int, level: Level, progress: Progress
    ) -> None:
        self._router, self._journal, self._concurrency, self._progress = router, journal, concurrency, progress
        self._plan = journal.run.plan
        self._numbers = level.numbers.left(self._plan.count)
        self._done = level.numbers.end - len(level.numbers.missing)
        self._tasks = tasks()
        self._began_s = time.perf_counter() - level.elapsed_s

    async def work(self) -> None:
        """What one of the concurrent callers does."""
        failed_in_a_row = 0
        while self._left_s() > 0:
            number = next(self._numbers, None)
            if number is None:
                return
            measured = await self._request(number)
            self._journal.append(measured)
            self._done += 1
            self._progress(self._concurrency, self._done, measured.elapsed_s)
            failed_in_a_row = 0 if measured.answered else failed_in_a_row + 1
            if self._plan.duration_s is not None and failed_in_a_row > 1:  # an outage is not to fill the disk
                pause_s = min(_LONGEST_PAUSE_S, 0.05 * 2.0 ** min(failed_in_a_row, 20))
                await asyncio.sleep(min(pause_s, self._left_s()))

    def _left_s(self) -> float:
        duration_s = self._plan.duration_s
        return math.inf if duration_s is None else duration_s - (time.perf_counter() - self._began_s)

    async def _request(self, number: int) -> Measurement:
        task = self._tasks[number % len(self._tasks)]
        started_s = time.perf_counter()
        call = self._streamed if self._plan.stream else self._whole
        facts = await call(task.prompt, started_s)
        ended_s = time.perf_counter()
        return Measurement(
            run_id=self._journal.run.run_id,
            simulated=self._plan.simulated,
            concurrency=self._concurrency,
            number=number,
            elapsed_s=round(ended_s - self._began_s, 3),
            ended_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            prompt_id=task.prompt_id,
            task=task.task,
            latency_ms=round((ended_s - started_s) * 1_000, 3),
            **facts,
        )

    async def _whole(self, prompt: str, _started_s: float) -> dict[str, Any]:
        try:
            reply = await self._router.complete(prompt)
        except RouterError as exc:
            return _failed(exc)
        return _facts(reply.request_id, reply.attempts)

    async def _streamed(self, prompt: str, started_s: float) -> dict[str, Any]:
        try:
            stream = await self._router.stream(prompt)
        except RouterError as exc:
            return _failed(exc)
        first_content_ms = round((time.perf_counter() - started_s) * 1_000, 3)
        error: RouterError | None = None
        async with stream:
            try:
                async for _ in stream:
                    pass
            except RouterError as exc:
                error = exc
        return _facts(stream.request_id, stream.router.attempts, error, first_content_ms)


def _failed(error: RouterError) -> dict[str, Any]:
    if isinstance(error, RequestFailed):
        return _facts(error.request_id, error.attempts, error)
    return _facts(None, (), error)


def _facts(
    request_id: str | None,
    attempts: Sequence[Attempt],
    error: RouterError | None = None,
    first_content_ms: float | None = None,
) -> dict[str, Any]:
    """What the attempts of a request say of it; the last is the one that counts."""
    last = attempts[-1] if attempts else None
    known = [attempt.cost.usd for attempt in attempts if attempt.cost.usd is not None]
    return {
        "request_id": request_id,
        "error": type(error).__name__ if error else None,
        "message": str(error)[:_MAX_MESSAGE_CHARS] if error else None,
        "first_content_ms": first_content_ms,
        "tier": last.offer.tier.value if last else "none",
        "provider": last.offer.provider if last else "none",
        "model": last.offer.model if last else "none",
        "attempts": len(attempts) or None,
        "failed_at": tuple((attempt.offer.provider, attempt.offer.model) for attempt in attempts if attempt.error),
        "input_tokens": last.usage.input_tokens if last and last.usage else None,
        "output_tokens": last.usage.output_tokens if last and last.usage else None,
        "cost_usd": sum(known, Decimal(0)) if last and last.cost.usd is not None else None,
        "cost_source": last.cost.source if last else None,
    }
