"""Whether a ledger's rows are what the library promises: every invariant as a query for the rows that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from router_ml.database import Database
from router_ml.process import Writer
from router_ml.recovery import abandoned, dead_writers
from router_ml.schema import ATTEMPTS, OUTCOMES, REQUESTS, SPEND
from router_ml.statements import reason
from router_ml.types import TIERS

_EXAMPLES = 5
_INTEGRITY = "the SQLite file is intact"
_STATUSES = ("started", "answered", "failed", "interrupted")


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: how many rows break it, and a few of their ids (of a request, or a day)."""

    invariant: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What ``verify`` found; ``checked`` names every invariant it looked at."""

    requests: int
    attempts: int
    outcomes: int
    checked: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def sound(self) -> bool:
        return not self.violations


def verify(database: Database) -> Audit:
    """Check everything in one snapshot, so that requests under way are no violations. Where the file itself is damaged,
    nothing else is asked of it. Raises LedgerError."""
    with database.reading() as connection:
        damage = _damage(connection) if database.path is not None else []
        if damage:
            return Audit(0, 0, 0, (_INTEGRITY,), (Violation(_INTEGRITY, len(damage), tuple(damage[:_EXAMPLES])),))
        queries = _queries(dead_writers(connection, Writer.here()), sqlite=database.path is not None)
        found = tuple(v for name, query in queries.items() if (v := _violation(connection, name, query)) is not None)
        checked = (*queries, _INTEGRITY) if database.path is not None else tuple(queries)
        requests, attempts, outcomes = (
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (REQUESTS, ATTEMPTS, OUTCOMES)
        )
    return Audit(requests, attempts, outcomes, checked, found)


def _damage(connection: sa.Connection) -> list[str]:
    try:
        said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(100)")]
    except sa.exc.DatabaseError as exc:  # too damaged to be checked
        return [reason(exc)]
    return [] if said == ["ok"] else said


def _violation(connection: sa.Connection, invariant: str, query: sa.Select[Any]) -> Violation | None:
    examples = tuple(str(row[0]) for row in connection.execute(query.limit(_EXAMPLES)))
    if not examples:
        return None
    count = connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
    return Violation(invariant, count, examples)


def _queries(dead: list[str], *, sqlite: bool) -> dict[str, sa.Select[Any]]:
    """Each invariant with the rows that break it."""
    r, a, o = REQUESTS.c, ATTEMPTS.c, OUTCOMES.c
    of_request = a.request_id == r.request_id
    answers = _count(sa.select(sa.func.count()).where(of_request, a.error.is_(None)))
    known_sum = _count(sa.select(sa.func.sum(a.cost_nanousd)).where(of_request))
    attempts = _count(sa.select(sa.func.count()).where(of_request))
    last = _count(sa.select(sa.func.max(a.number)).where(of_request))
    ids = sa.select(r.request_id)
    return {
        "a status is started, answered, failed or interrupted": ids.where(r.status.not_in(_STATUSES)),
        "an answered request has one answered attempt": ids.where(r.status == "answered", answers != 1),
        "a failed request has no answered attempt": ids.where(r.status == "failed", answers != 0),
        "attempts are numbered from 1 without gaps": ids.where(attempts != sa.func.coalesce(last, 0)),
        "a request's cost is the sum of its attempts' known costs": ids.where(
            r.cost_nanousd.is_not(None), r.cost_nanousd != sa.func.coalesce(known_sum, 0)
        ),
        "a request has a cost where its answer has one": ids.where(
            r.status == "answered",
            r.cost_nanousd.is_(None),
            sa.exists().where(of_request, a.error.is_(None), a.cost_nanousd.is_not(None)),
        ),
        "no cost is negative": ids.where(
            (r.cost_nanousd < 0) | (r.charged_nanousd < 0) | sa.exists().where(of_request, a.cost_nanousd < 0)
        ),
        "a request is charged at least its cost": ids.where(r.charged_nanousd < r.cost_nanousd),
        "every attempt has its request": sa.select(a.request_id).where(a.request_id.not_in(ids)),
        "every outcome has its request": sa.select(o.request_id).where(o.request_id.not_in(ids)),
        "a score lies in 0..1": sa.select(o.request_id).where((o.score < 0) | (o.score > 1)),
        "a tier is a known one": ids.where(r.tier.not_in(TIERS) | sa.exists().where(of_request, a.tier.not_in(TIERS))),
        "a request ends after it starts": ids.where(r.finished_at < r.started_at),
        "an attempt starts no earlier than its request": ids.where(
            sa.exists().where(of_request, a.started_at < r.started_at)
        ),
        "a request that has ended says when": ids.where(r.status.in_(("answered", "failed")), r.finished_at.is_(None)),
        "no request is open whose writer is dead": ids.where(abandoned(dead)),
        "a day's spend is the sum of its requests' charges": _wrong_days(sqlite=sqlite),
    }


def _wrong_days(*, sqlite: bool) -> sa.Select[Any]:
    """Days whose requests' charges and whose spend differ."""
    r, s = REQUESTS.c, SPEND.c
    day = sa.func.strftime("%Y-%m-%d", r.started_at) if sqlite else sa.func.to_char(r.started_at, "YYYY-MM-DD")
    both = sa.union_all(
        sa.select(day.label("day"), r.charged_nanousd.label("charged")),
        sa.select(s.day, -s.charged_nanousd),
    ).subquery()
    return sa.select(both.c.day).group_by(both.c.day).having(sa.func.sum(both.c.charged) != 0)


def _count(query: sa.Select[Any]) -> sa.ScalarSelect[Any]:
    return query.correlate(REQUESTS).scalar_subquery()
