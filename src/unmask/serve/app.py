"""The HTTP side of the reward server."""

import asyncio
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from unmask.errors import UserError
from unmask.rewards.base import Reward, Row, Score
from unmask.rewards.protocol import (
    MOST_BODY,
    MOST_PIXELS,
    ErrorReply,
    Health,
    Item,
    ItemScore,
    PictureItem,
    Problem,
    ScoreReply,
    ScoreRequest,
)
from unmask.serve.images import content_of, picture_of, pixels_of
from unmask.serve.worker import Busy, Worker

REMEMBERED = 512
"""Replies that are kept for requests that are sent again."""
BODY_SECONDS = 60
"""That a client may take to send a request."""
RETRY_AFTER = "1"
_READING_AT_ONCE = 2  # requests whose pictures are decoded

_REFUSALS = {
    400: "the request is not as the schema says",
    401: "the bearer token is missing or wrong",
    404: "no such reward, or no such address",
    408: "the request did not arrive in time",
    413: "the request is too large",
    415: "the request is not application/json",
    422: "no picture can be read, or the columns in `meta` are not those that the reward needs",
    429: "too many requests are waiting; see Retry-After",
    500: "the reward failed",
    503: "rewards are still loading; see Retry-After",
}


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, kind: str, message: str):
        self.status, self.kind, self.message = status, kind, message


class RewardApp:
    """Rewards by name behind a FastAPI application, `app`.

    Args:
        rewards: what is served, each under its name.
        token: what clients must send; None: nothing.
    """

    def __init__(self, rewards: Mapping[str, Reward], token: str | None):
        self.workers = {name: Worker(reward) for name, reward in rewards.items()}
        self._token = None if token is None else token.encode()
        self._readers = ThreadPoolExecutor(_READING_AT_ONCE)
        self._replies: OrderedDict[bytes, asyncio.Task[bytes]] = OrderedDict()
        self.app = FastAPI(title="unmask reward server", version=version("unmask"), docs_url=None, redoc_url=None)
        self.app.add_exception_handler(Refusal, _refused)
        self.app.add_exception_handler(HTTPException, _no_such_address)
        self.app.add_exception_handler(Exception, _failed)
        self.app.add_api_route(
            "/healthz", self._healthz, response_model=Health, responses={503: {"model": Health}}, methods=["GET"]
        )
        refusals: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorReply, "description": text} for status, text in _REFUSALS.items()
        }
        self.app.add_api_route(
            "/v1/score", self._score, response_model=ScoreReply, responses=refusals, methods=["POST"]
        )
        self.app.openapi = self._openapi

    async def _healthz(self) -> Response:
        ready = all(worker.ready for worker in self.workers.values())
        states: dict[str, Any] = {name: "ready" if worker.ready else "loading" for name, worker in self.workers.items()}
        return _json(Health(ready=ready, models=states), 200 if ready else 503)

    async def _score(self, request: Request) -> Response:
        self._admit(request)
        body = await _body(request)
        key = hashlib.sha256(body).digest()
        task = self._replies.pop(key, None)
        if task is None:
            task = asyncio.create_task(self._reply(body))
            task.add_done_callback(lambda done: self._forget(key, done))
        self._replies[key] = task
        while len(self._replies) > REMEMBERED:
            self._replies.popitem(last=False)
        content = await asyncio.shield(task)  # who has hung up may come back for it
        return Response(content, media_type="application/json")

    def _forget(self, key: bytes, done: asyncio.Task[bytes]) -> None:
        """A failure is not remembered, nor is the request, which its traceback holds."""
        if (done.cancelled() or done.exception() is not None) and self._replies.get(key) is done:
            del self._replies[key]

    def _admit(self, request: Request) -> None:
        """Before anything of the body is read."""
        given = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Refusal(401, "token", "the bearer token is missing or wrong")
        if not all(worker.ready for worker in self.workers.values()):
            raise Refusal(503, "loading", "rewards are still loading")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "content_type", "a request must be application/json")

    async def _reply(self, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        asked, answers = await loop.run_in_executor(self._readers, self._read, body)
        items = [one if isinstance(one, ItemScore) else None for one in answers]
        places = [place for place, item in enumerate(items) if item is None]
        for place, score in zip(places, await self._judged(asked, answers, places), strict=True):
            items[place] = _on_the_wire(score)
        reply = ScoreReply(
            model_version=f"{asked.model} of unmask {version('unmask')}",
            request_id=asked.request_id,
            items=[item for item in items if item is not None],
        )
        return reply.model_dump_json().encode()

    def _read(self, body: bytes) -> tuple[ScoreRequest, list[Any]]:
        """The request, and per item its completion, or the score of one whose picture is broken."""
        try:
            asked = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            raise Refusal(400, "schema", _first_of(error)) from error
        if asked.model not in self.workers:
            known = ", ".join(self.workers)
            raise Refusal(404, "unknown_model", f"there is no reward {asked.model!r}; this server has {known}")
        answers = _completions(asked.items)
        broken = [one for one in answers if isinstance(one, ItemScore)]
        if broken and len(broken) == len(answers):
            raise Refusal(422, "bad_image", str(broken[0].details["reason"]))
        return asked, answers

    async def _judged(self, asked: ScoreRequest, answers: list[Any], places: Sequence[int]) -> list[Score]:
        if not places:
            return []
        rows: list[Row] = [{**asked.items[place].meta, "prompt": asked.items[place].prompt} for place in places]
        try:
            waiting = self.workers[asked.model].submit([answers[place] for place in places], rows)
            return await asyncio.wrap_future(waiting)
        except Busy as error:
            raise Refusal(429, "busy", str(error)) from error
        except UserError as error:
            raise Refusal(422, "row", str(error)) from error
        except Exception as error:
            cause = error.__cause__ or error
            message = f"reward {asked.model} failed ({type(cause).__name__}: {cause}); the server's log says where"
            raise Refusal(500, "reward_failed", message) from error

    def _openapi(self) -> dict[str, Any]:
        """The description, with the request, which is read by hand: limits hold before it is parsed."""
        if self.app.openapi_schema is None:
            schema = get_openapi(title=self.app.title, version=self.app.version, routes=self.app.routes)
            request = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= request.pop("$defs") | {"ScoreRequest": request}
            request["properties"]["model"]["enum"] = list(self.workers)
            content = {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}}
            post = schema["paths"]["/v1/score"]["post"]
            post["requestBody"] = {"required": True, "content": content}
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            post["security"] = [{"token": []}] if self._token is not None else []
            self.app.openapi_schema = schema
        return self.app.openapi_schema


async def _body(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    too_large = Refusal(413, "too_large", f"a request has at most {MOST_BODY} bytes")
    if length.isdecimal() and int(length[:20]) > MOST_BODY:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise Refusal(408, "late", f"the request did not arrive within {BODY_SECONDS} s") from error
    return b"".join(parts)


def _completions(items: Sequence[Item]) -> list[Any]:
    """Texts, pictures, and scores for pictures that are broken; all headers are read before a picture is decoded."""
    contents: list[Any] = []
    pixels = 0
    for item in items:
        if not isinstance(item, PictureItem):
            contents.append(item.completion)
            continue
        try:
            content = content_of(item.image)
            pixels += pixels_of(content, item.image.format)
            contents.append(content)
        except ValueError as error:
            contents.append(_broken(error))
    if pixels > MOST_PIXELS:
        raise Refusal(413, "too_large", f"the pictures of a request have at most {MOST_PIXELS} pixels, not {pixels}")
    return [_opened(item, content) for item, content in zip(items, contents, strict=True)]


def _opened(item: Item, content: Any) -> Any:
    if not isinstance(item, PictureItem) or isinstance(content, ItemScore):
        return content
    try:
        return picture_of(content, item.image.format)
    except ValueError as error:
        return _broken(error)


def _broken(error: ValueError) -> ItemScore:
    """A picture that does not arrive is a failure of the machinery: no model paints broken files."""
    return ItemScore(score=None, status="infra_error", details={"reason": f"bad image: {error}"})


def _on_the_wire(score: Score) -> ItemScore:
    return ItemScore(
        score=score.value if score.status == "ok" else None, status=score.status, details=dict(score.details)
    )


def _first_of(error: ValidationError) -> str:
    """Where a request is wrong, and how, without what it holds."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _json(content: BaseModel, status: int) -> Response:
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(content.model_dump_json(), status, headers, "application/json")


_PATH = re.compile(r"(?<![\w.:/])~?(?:/[\w.+-]+){2,}")


def _problem(status: int, kind: str, message: str) -> Response:
    text = _PATH.sub("[path]", " ".join(message.split()))[:400]
    return _json(ErrorReply(error=Problem(type=kind, message=text)), status)


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refusal)
    return _problem(error.status, error.kind, error.message)


async def _no_such_address(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    answer = _problem(error.status_code, "address", str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    del request, error  # the server logs it
    return _problem(500, "internal", "the server failed; its log says where")
