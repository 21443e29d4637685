"""Every exception the library raises on purpose.

    RouterError
    |-- InputError              a prompt, message list, tier, quality or score that cannot be used (also a ValueError)
    |   |-- UnknownModel        neither "auto", nor a tier, nor a model of the catalog
    |   `-- NoCapableOffer      no offer of the route can serve such a request: too long, tools, images, json_schema
    |-- ConfigError             router.toml, the catalog or the environment is wrong (also a ValueError)
    |   `-- MissingKeyError     no API key; names the environment variable to set
    |-- ArtefactError           the classifier's files are missing, damaged or of another format
    |-- LedgerError             the ledger cannot be opened, or does not know the request
    |-- SpendCeilingReached     the day's spend ceiling leaves no room for this request; nothing was sent
    |-- ProviderError           one call to one provider failed
    |   |-- RequestRejected     the provider refuses the request itself; another provider would too
    |   |-- ProviderUnavailable anything else: another offer may answer
    |   `-- StreamInterrupted   a stream broke off after its first content; carries the text that arrived
    `-- RequestFailed           every attempt failed, or time ran out; carries the attempts

Messages carry no prompt, no answer and no key: they end up in logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from router_ml.types import Attempt


class RouterError(Exception):
    """Base of all of ours."""


class InputError(RouterError, ValueError):
    """The caller's prompt, tier, quality or score cannot be used."""


class UnknownModel(InputError):  # noqa: N818 - named for what happened
    """``model`` is neither "auto", nor a tier, nor a model of the catalog."""


class NoCapableOffer(InputError):  # noqa: N818 - named for what happened
    """No offer of the route can serve the request; the message says which need none of them meets."""


class ConfigError(RouterError, ValueError):
    """Configuration is wrong; the message names the file, the key and the value."""


class MissingKeyError(ConfigError):
    """No API key is set for any provider that could answer."""


class ArtefactError(RouterError):
    """The classifier's artefact is missing, damaged or of another format."""


class LedgerError(RouterError):
    """The ledger cannot be opened, or does not know the request."""


class SpendCeilingReached(RouterError):  # noqa: N818 - named for what happened
    """The request's worst case does not fit under the day's ceiling; nothing was sent.

    ``spent_usd`` is what the day's finished requests were charged, ``reserved_usd`` what those still open may cost;
    both are None where the ledger could not be read, and then nobody can say that the ceiling would hold.
    """

    def __init__(
        self, limit_usd: Decimal, spent_usd: Decimal | None, reserved_usd: Decimal | None, needed_usd: Decimal
    ) -> None:
        known = spent_usd is not None and reserved_usd is not None
        state = f"${spent_usd:f} spent and ${reserved_usd:f} reserved" if known else "the ledger cannot be read"
        super().__init__(f"the ceiling of ${limit_usd:f} a day leaves no room for ${needed_usd:f}: {state}")
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = reserved_usd
        self.needed_usd = needed_usd


class ProviderError(RouterError):
    """One call to one provider failed.

    ``status`` is the HTTP status, None where no answer came. ``detail`` is the provider's own message with the key
    removed; it can repeat the prompt, so it is not part of ``str(error)``. ``retry_after_s`` is what the provider
    asked for. ``billed`` is False where the work cannot have been done, None where nobody knows.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: str = "",
        retry_after_s: float | None = None,
        billed: bool | None = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.billed = billed


class RequestRejected(ProviderError):  # noqa: N818 - named for what happened
    """400, 413 or 422: the request itself is refused, so no other offer is tried."""


class ProviderUnavailable(ProviderError):  # noqa: N818 - named for what happened
    """The provider failed; ``retryable`` says whether the same offer is worth a second try."""

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = True,
        status: int | None = None,
        detail: str = "",
        retry_after_s: float | None = None,
        billed: bool | None = False,
    ) -> None:
        super().__init__(message, status=status, detail=detail, retry_after_s=retry_after_s, billed=billed)
        self.retryable = retryable


class StreamInterrupted(ProviderError):  # noqa: N818 - named for what happened
    """A stream broke off after its first content, so no other offer may go on with it. ``text`` is what arrived."""

    def __init__(self, message: str, *, text: str) -> None:
        super().__init__(message, billed=None)
        self.text = text


class RequestFailed(RouterError):  # noqa: N818 - named for what happened
    """No offer answered within the deadline. ``attempts`` lists every call that was made."""

    def __init__(self, message: str, *, request_id: str, attempts: Sequence[Attempt]) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.attempts = tuple(attempts)
