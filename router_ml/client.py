"""The drop-in client: ``router.openai.chat.completions.create(model="auto", ...)``, with the SDK's own types back.

What was decided rides on the response as ``response.router`` (a ``Routed``, with the request_id for feedback). It is
an attribute beside the SDK's fields: dumping and comparing responses does not see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload

from router_ml.types import Completion, Routed

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from openai.types.chat import ChatCompletion

    from router_ml.stream import AsyncRoutedStream, RoutedStream

    class RoutedCompletion(ChatCompletion):
        """For type checkers only: a ChatCompletion with what the router adds."""

        router: Routed


class _Answers(Protocol):
    def complete(self, prompt: Any, **kwargs: Any) -> Completion: ...
    def stream(self, prompt: Any, **kwargs: Any) -> RoutedStream: ...


class _AsyncAnswers(Protocol):
    def complete(self, prompt: Any, **kwargs: Any) -> Awaitable[Completion]: ...
    def stream(self, prompt: Any, **kwargs: Any) -> Awaitable[AsyncRoutedStream]: ...


class Completions:
    def __init__(self, router: _Answers) -> None:
        self._router = router

    @overload
    def create(self, *, messages: Any, model: str = ..., stream: Literal[True], **params: Any) -> RoutedStream: ...
    @overload
    def create(
        self, *, messages: Any, model: str = ..., stream: Literal[False] | None = ..., **params: Any
    ) -> RoutedCompletion: ...
    def create(
        self, *, messages: Any, model: str = "auto", stream: bool | None = False, **params: Any
    ) -> RoutedCompletion | RoutedStream:
        """``chat.completions.create``. ``model``: "auto" routes; a tier, "provider/model" or a model's id pins.

        Takes what the SDK takes, and ``session`` and ``quality`` as ``Router.complete`` does. ``timeout`` is the
        deadline in seconds of the whole request. Raises as ``Router.complete``, and UnknownModel.
        """
        if stream is True:
            return self._router.stream(messages, model=model, **params)
        return _routed(self._router.complete(messages, model=model, **params))


class AsyncCompletions:
    """``Completions``, awaitable."""

    def __init__(self, router: _AsyncAnswers) -> None:
        self._router = router

    @overload
    async def create(
        self, *, messages: Any, model: str = ..., stream: Literal[True], **params: Any
    ) -> AsyncRoutedStream: ...
    @overload
    async def create(
        self, *, messages: Any, model: str = ..., stream: Literal[False] | None = ..., **params: Any
    ) -> RoutedCompletion: ...
    async def create(
        self, *, messages: Any, model: str = "auto", stream: bool | None = False, **params: Any
    ) -> RoutedCompletion | AsyncRoutedStream:
        if stream is True:
            return await self._router.stream(messages, model=model, **params)
        return _routed(await self._router.complete(messages, model=model, **params))


class Chat:
    def __init__(self, router: _Answers) -> None:
        self.completions = Completions(router)


class AsyncChat:
    def __init__(self, router: _AsyncAnswers) -> None:
        self.completions = AsyncCompletions(router)


class Client:
    """Stands where an ``openai.OpenAI()`` stood, for chat completions."""

    def __init__(self, router: _Answers) -> None:
        self.chat = Chat(router)


class AsyncClient:
    """Stands where an ``openai.AsyncOpenAI()`` stood, for chat completions."""

    def __init__(self, router: _AsyncAnswers) -> None:
        self.chat = AsyncChat(router)


def _routed(completion: Completion) -> RoutedCompletion:
    routed = Routed(completion.request_id, completion.decision, completion.attempts)
    object.__setattr__(completion.response, "router", routed)  # past pydantic, which would take it for a field
    return cast("RoutedCompletion", completion.response)
