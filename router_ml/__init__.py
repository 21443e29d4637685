"""router_ml: the cheapest model that answers a prompt acceptably, and honest books on what that saved.

Nothing heavy happens at import: each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_ml.catalog import Catalog
    from router_ml.classifier import ComplexityClassifier
    from router_ml.errors import (
        ArtefactError,
        ConfigError,
        InputError,
        LedgerError,
        MissingKeyError,
        NoCapableOffer,
        ProviderError,
        ProviderUnavailable,
        RequestFailed,
        RequestRejected,
        RouterError,
        SpendCeilingReached,
        StreamInterrupted,
        UnknownModel,
    )
    from router_ml.ledger import Ledger
    from router_ml.router import AsyncRouter, Router, classify_and_complete
    from router_ml.types import (
        Attempt,
        Completion,
        Complexity,
        Cost,
        Decision,
        Offer,
        Outcome,
        Provider,
        Routed,
        Tier,
        Usage,
    )

_HOME = {
    "catalog": ("Catalog",),
    "classifier": ("ComplexityClassifier",),
    "errors": (
        "ArtefactError",
        "ConfigError",
        "InputError",
        "LedgerError",
        "MissingKeyError",
        "NoCapableOffer",
        "ProviderError",
        "ProviderUnavailable",
        "RequestFailed",
        "RequestRejected",
        "RouterError",
        "SpendCeilingReached",
        "StreamInterrupted",
        "UnknownModel",
    ),
    "ledger": ("Ledger",),
    "router": ("AsyncRouter", "Router", "classify_and_complete"),
    "types": (
        "Attempt",
        "Completion",
        "Complexity",
        "Cost",
        "Decision",
        "Offer",
        "Outcome",
        "Provider",
        "Routed",
        "Tier",
        "Usage",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ArtefactError",
    "AsyncRouter",
    "Attempt",
    "Catalog",
    "Completion",
    "Complexity",
    "ComplexityClassifier",
    "ConfigError",
    "Cost",
    "Decision",
    "InputError",
    "Ledger",
    "LedgerError",
    "MissingKeyError",
    "NoCapableOffer",
    "Offer",
    "Outcome",
    "Provider",
    "ProviderError",
    "ProviderUnavailable",
    "RequestFailed",
    "RequestRejected",
    "Routed",
    "Router",
    "RouterError",
    "SpendCeilingReached",
    "StreamInterrupted",
    "Tier",
    "UnknownModel",
    "Usage",
    "classify_and_complete",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'router_ml' has no attribute {name!r}")
    return getattr(import_module(f"router_ml.{_MODULE_OF[name]}"), name)
