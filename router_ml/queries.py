"""What is asked of a ledger's tables, as SQLAlchemy statements; whoever holds a connection executes them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from router_ml.schema import ATTEMPTS, OUTCOMES, REQUESTS, SPEND


def recent(limit: int) -> sa.Select[Any]:
    """The latest requests, newest first, each with its last attempt and its mean score."""
    latest = sa.select(REQUESTS).order_by(REQUESTS.c.started_at.desc()).limit(limit).subquery()
    ids = sa.select(latest.c.request_id)
    last = (
        sa.select(ATTEMPTS.c.request_id, sa.func.max(ATTEMPTS.c.number).label("number"))
        .where(ATTEMPTS.c.request_id.in_(ids))
        .group_by(ATTEMPTS.c.request_id)
        .subquery()
    )
    score = (
        sa.select(OUTCOMES.c.request_id, sa.func.avg(OUTCOMES.c.score).label("score"))
        .where(OUTCOMES.c.request_id.in_(ids))
        .group_by(OUTCOMES.c.request_id)
        .subquery()
    )
    a = ATTEMPTS
    of_last = (a.c.provider, a.c.model, a.c.input_tokens, a.c.output_tokens, a.c.first_content_ms, a.c.error)
    return (
        sa.select(latest, *of_last, last.c.number.label("attempts"), score.c.score)
        .outerjoin(last, last.c.request_id == latest.c.request_id)
        .outerjoin(a, (a.c.request_id == latest.c.request_id) & (a.c.number == last.c.number))
        .outerjoin(score, score.c.request_id == latest.c.request_id)
        .order_by(latest.c.started_at.desc())
    )


def judged() -> sa.Select[Any]:
    """Answered requests whose text was kept, a row for each of their outcomes, oldest request first."""
    a, o, r = ATTEMPTS.c, OUTCOMES.c, REQUESTS.c
    return (
        sa.select(r.request_id, r.prompt, a.tier, o.score, o.source, o.noted_at)
        .join(OUTCOMES, o.request_id == r.request_id)
        .join(ATTEMPTS, (a.request_id == r.request_id) & a.error.is_(None))
        .where(r.prompt.is_not(None))
        .order_by(r.started_at)
    )


def charged(day: str) -> sa.Select[Any]:
    """The nano-USD that count against ``day`` (YYYY-MM-DD): 0 where there are none."""
    return sa.select(sa.func.coalesce(sa.func.sum(SPEND.c.charged_nanousd), 0)).where(SPEND.c.day == day)
