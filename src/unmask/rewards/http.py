"""Asking a server from within a training step: bounded in time, tries and size, whatever the server does."""

import asyncio
import logging
import random
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from unmask.errors import UserError
from unmask.rewards.protocol import is_loopback

T = TypeVar("T")
_Request = tuple[str, str, bytes | None]  # method, path, body

_PASSING = (429, 502, 503, 504)
"""Answers that another try may change."""
_LONGEST_PAUSE = 30.0
_CHANCE = random.SystemRandom()  # of pauses; no draw of the training is touched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a client waits for a server, in seconds.

    After a failed try it waits until the server says that it is ready, so that a restart costs one try.

    Args:
        connect: for a connection.
        read: for the next bytes of an answer.
        tries: of one request.
        total: for all requests of a batch; what is not answered by then is given up.
        ready: for the server to be ready at the start of a run.
    """

    connect: float = 5.0
    read: float = 120.0
    tries: int = 3
    total: float = 300.0
    ready: float = 120.0

    def __post_init__(self):
        if min(self.connect, self.read, self.total, self.ready) <= 0 or self.tries < 1:
            raise UserError("patience: connect, read, total and ready must be positive, tries at least 1")


@dataclass(frozen=True)
class Answer:
    """What a server said: status and body."""

    status: int
    content: bytes


class Unanswered(Exception):
    """No answer within the given patience; the message is the reason."""


class _TooLarge(Exception):
    pass


@dataclass(frozen=True)
class Server:
    """A server that answers requests in JSON.

    Args:
        url: in front of all addresses.
        ready: address that answers with an error of 5xx or not at all while the server is not ready.
        patience: see there.
        at_once: requests under way at a time.
        most: bytes of an answer that are read.
    """

    url: str
    ready: str
    patience: Patience
    at_once: int
    most: int

    def __post_init__(self):
        parts = urlsplit(self.url)
        try:
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UserError(f"{self.url!r} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
            raise UserError(f"{self.url!r} is no address of a server; write it as http://HOST:PORT")

    def wait(self, headers: Mapping[str, str]) -> None:
        """Until the server is ready.

        Raises:
            Unanswered: it is not within `patience.ready` seconds.
        """

        async def waited() -> None:
            async with self._client(headers) as client:
                try:
                    async with asyncio.timeout(self.patience.ready):
                        if not await self._is_ready(client):
                            log.warning("waiting up to %g s for %s", self.patience.ready, self.url)
                            await self._until_ready(client)
                except TimeoutError:
                    raise Unanswered(f"{self.url} is not ready after {self.patience.ready:g} s") from None

        _run(waited())

    def get(self, path: str, headers: Mapping[str, str]) -> Answer | Unanswered:
        """The answer to a GET."""
        return self._ask_all([("GET", path, None)], headers)[0]

    def post(self, path: str, bodies: Sequence[bytes], headers: Mapping[str, str]) -> list[Answer | Unanswered]:
        """The answers to these bodies, in their order, all within `patience.total` seconds."""
        return self._ask_all([("POST", path, body) for body in bodies], headers)

    def _ask_all(self, requests: Sequence[_Request], headers: Mapping[str, str]) -> list[Answer | Unanswered]:
        async def asked() -> list[Answer | Unanswered]:
            gate = asyncio.Semaphore(self.at_once)
            until = asyncio.get_running_loop().time() + self.patience.total
            async with self._client(headers) as client:
                return await asyncio.gather(*[self._ask(client, gate, until, request) for request in requests])

        return _run(asked())

    def _client(self, headers: Mapping[str, str]) -> httpx.AsyncClient:
        patience = self.patience
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Accept-Encoding": "identity", **headers},
            timeout=httpx.Timeout(patience.read, connect=patience.connect, pool=None),
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
        )

    async def _ask(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, until: float, request: _Request
    ) -> Answer | Unanswered:
        reason = "it was busy with other requests"
        try:
            async with asyncio.timeout_at(until), gate:
                for number in range(self.patience.tries):
                    pause = _CHANCE.uniform(0.5, 1) * 2**number
                    try:
                        answer, retry_after = await self._once(client, request)
                    except httpx.TransportError as error:
                        reason = f"{type(error).__name__} {error}".strip()
                    else:
                        if answer.status not in _PASSING:
                            return answer
                        reason = f"HTTP {answer.status}"
                        pause = max(pause, retry_after)
                    if number + 1 < self.patience.tries:
                        await asyncio.sleep(pause)
                        await self._until_ready(client)
                return Unanswered(f"{self.url}: {reason}, {self.patience.tries} times")
        except TimeoutError:
            return Unanswered(f"{self.url}: no answer within {self.patience.total:g} s; last: {reason}")
        except _TooLarge:
            return Unanswered(f"{self.url}: an answer of more than {self.most} bytes")

    async def _once(self, client: httpx.AsyncClient, request: _Request) -> tuple[Answer, float]:
        """An answer, and the seconds after which its server wants to be asked again."""
        method, path, body = request
        headers = {} if body is None else {"Content-Type": "application/json"}
        async with client.stream(method, path, content=body, headers=headers) as reply:
            parts, size = [], 0
            async for part in reply.aiter_raw():
                size += len(part)
                if size > self.most:
                    raise _TooLarge
                parts.append(part)
            wait = reply.headers.get("retry-after", "")
            seconds = float(wait[:6]) if wait.isascii() and wait.isdecimal() else 0.0
            return Answer(reply.status_code, b"".join(parts)), min(seconds, _LONGEST_PAUSE)

    async def _until_ready(self, client: httpx.AsyncClient) -> None:
        while not await self._is_ready(client):
            await asyncio.sleep(_CHANCE.uniform(0.5, 1))

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        try:
            async with client.stream("GET", self.ready, timeout=self.patience.connect) as reply:
                return reply.status_code < 500
        except httpx.TransportError:
            return False


def _run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns.

    It runs in a thread of its own: the caller may have a running loop (a notebook), and Ctrl-C must not wait for it.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()
