"""Providers, their offers and a router's settings, from the packaged catalog.toml and a router.toml laid over it.

Unknown keys are refused, with the nearest known one named: a misspelt ``qualty`` must not be a silent default.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from router_ml.errors import ConfigError
from router_ml.types import CAPABILITIES, TIERS, Offer, Provider, Tier

SECTIONS = ("router", "providers", "offers")
_POSITIVE = (
    "deadline_s",
    "attempt_timeout_s",
    "max_attempts",
    "stream_idle_s",
    "breaker_failures",
    "expected_output_tokens",
    "ceiling_output_tokens",
)
_NOT_NEGATIVE = ("breaker_cooldown_s", "session_ttl_s", "max_usd_per_day")  # 0 is a value: probe at once, spend nothing


@dataclass(frozen=True, slots=True)
class Settings:
    """How a router behaves; the ``[router]`` table of catalog.toml says what each value means."""

    route: tuple[str, ...]
    quality: float
    deadline_s: float
    attempt_timeout_s: float
    max_attempts: int
    stream_idle_s: float
    breaker_failures: int
    breaker_cooldown_s: float
    session_ttl_s: float
    fallback_tier: Tier
    step_up_below: float
    expected_output_tokens: int
    database: str
    prompts: Literal["full", "hash", "off"]
    baseline: str
    max_usd_per_day: Decimal | None = None
    on_ceiling: Literal["refuse", "step_down"] = "refuse"
    ceiling_output_tokens: int = 4_096


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that can be bought, and the settings. ``offers`` are those of all providers, in the file's order."""

    providers: Mapping[str, Provider]
    offers: tuple[Offer, ...]
    settings: Settings

    def routed(self, tier: Tier) -> tuple[Offer, ...]:
        """The tier's offers in the order of ``settings.route``."""
        return tuple(
            offer
            for name in self.settings.route
            for offer in self.offers
            if (offer.provider, offer.tier) == (name, tier)
        )

    @classmethod
    def load(cls, path: str | Path | None = None) -> Catalog:
        """The packaged catalog with ``path`` (a router.toml) laid over it; without a path, ./router.toml if it exists.

        Raises:
            ConfigError: no such file, not TOML, an unknown key, a bad value, a duplicate offer, a tier without offer.
        """
        packaged = resources.files("router_ml").joinpath("catalog.toml").read_text(encoding="utf-8")
        document = _parse(packaged, "catalog.toml")
        own = Path(path) if path is not None else Path("router.toml")
        if path is None and not own.is_file():
            return _build(document, "catalog.toml")
        try:
            text = own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{own} cannot be read: {exc}") from exc
        return _build(_overlay(document, _parse(text, str(own))), str(own))


def _parse(text: str, source: str) -> dict[str, Any]:
    """TOML -> the three sections, with each provider's ``models`` (with ``capabilities``) written out as offers."""
    try:
        document: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source} is not TOML: {exc}") from exc
    _refuse_unknown(document, SECTIONS, source)
    providers, offers = document.get("providers", {}), list(document.get("offers", ()))
    for name, table in providers.items():
        shared = {"capabilities": table.pop("capabilities")} if "capabilities" in table else {}
        for tier, model in table.pop("models", {}).items():
            offers.append({"provider": name, "model": model, "tier": tier, **shared})
    return {"router": document.get("router", {}), "providers": providers, "offers": offers}


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    replaced = {offer.get("provider") for offer in over["offers"]}
    providers = dict(under["providers"])
    for name, table in over["providers"].items():
        providers[name] = {**providers.get(name, {}), **table}
    return {
        "router": {**under["router"], **over["router"]},
        "providers": providers,
        "offers": [offer for offer in under["offers"] if offer["provider"] not in replaced] + over["offers"],
    }


def _build(document: dict[str, Any], source: str) -> Catalog:
    settings = _record(Settings, document["router"], f"{source} [router]")
    providers = {
        name: _record(Provider, {"name": name, **table}, f"{source} [providers.{name}]")
        for name, table in document["providers"].items()
    }
    offers = tuple(
        _record(Offer, table, f"{source} offer {table.get('provider')}/{table.get('model')}")
        for table in document["offers"]
    )
    catalog = Catalog(providers, offers, settings)
    _check(catalog, source)
    return catalog


def _check(catalog: Catalog, source: str) -> None:
    _check_offers(catalog, source)
    settings = catalog.settings
    if not settings.route:
        raise ConfigError(f"{source} [router]: route is empty, so nothing can be answered")
    for name in settings.route:
        if name not in catalog.providers:
            raise ConfigError(
                f"{source} [router]: unknown provider {name!r} in route{_nearest(name, catalog.providers)}"
            )
    for tier in TIERS:
        if not catalog.routed(tier):
            raise ConfigError(f"{source}: no provider in route {list(settings.route)} has an offer for tier {tier}")
    check_quality(settings.quality, f"{source} [router]: ")
    for name in _POSITIVE:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"{source} [router]: {name} = {getattr(settings, name)} must be above 0")
    for name in _NOT_NEGATIVE:
        value = getattr(settings, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"{source} [router]: {name} = {value} must not be negative")


def _check_offers(catalog: Catalog, source: str) -> None:
    seen = set[tuple[str, str, Tier]]()
    for offer in catalog.offers:
        key = (offer.provider, offer.model, offer.tier)
        if key in seen:
            raise ConfigError(f"{source}: {offer} is offered twice for tier {offer.tier}")
        seen.add(key)
        unknown = sorted(offer.capabilities - CAPABILITIES)
        if unknown:
            near = _nearest(unknown[0], CAPABILITIES)
            raise ConfigError(f"{source}: offer {offer} has the unknown capability {unknown[0]!r}{near}")
        if offer.provider not in catalog.providers:
            raise ConfigError(
                f"{source}: offer {offer} names an unknown provider{_nearest(offer.provider, catalog.providers)}"
            )


def check_quality(quality: float, where: str = "") -> float:
    """``quality`` if it lies in (0, 1]. Raises ConfigError with the value otherwise (NaN too)."""
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0.0 < quality <= 1.0:
        raise ConfigError(
            f"{where}quality = {quality!r} is outside (0, 1]: it is the share of premium's quality to keep"
        )
    return float(quality)


def _record(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """``table`` as a record, with every value checked against the record's types (by pydantic)."""
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(table, [field.name for field in fields(kind)], where)
    try:
        return TypeAdapter(kind).validate_python(dict(table))
    except ValidationError as exc:
        flaw = exc.errors(include_url=False)[0]
        key = ".".join(str(part) for part in flaw["loc"])
        given = f", not {flaw['input']!r}" if flaw["type"] != "missing" else ""
        raise ConfigError(f"{where}: {key}: {flaw['msg']}{given}") from None


def _refuse_unknown(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, known)}")


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
