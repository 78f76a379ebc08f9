"""What a reward server and its clients say to each other: JSON over HTTP, one schema for both sides.

`POST /v1/score` takes a `ScoreRequest` and gives a `ScoreReply`; every other answer is an `ErrorReply`. Nothing in a
request is a name of a file or an address, so that there is nothing to fetch.
"""

import ipaddress
import json
import math
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from unmask.rewards.text import LONGEST

TOKEN = "UNMASK_REWARD_TOKEN"
"""Environment variable with the bearer token, on both sides."""
MOST_BODY = 64 * 2**20
"""Bytes of a request, at most."""
MOST_ITEMS = 64
"""Of a request, at most."""
MOST_PIXELS = 64 * 1024 * 1024
"""Of all pictures of a request together, at most; of one picture see `unmask.pictures`."""
MOST_REPLY = 16 * 2**20
"""Bytes of a reply that a client reads, at most."""
LONGEST_PROMPT = 8192
LARGEST_META = 16 * 2**10
DEEPEST = 8

Picture = Literal["png", "webp"]


def is_loopback(host: str) -> bool:
    """Whether only this machine is meant: no token is needed, no proxy is asked."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(value: JsonValue) -> JsonValue:
    """Refuses what is nested too deeply, and numbers that JSON cannot write."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, dict | list):
            if depth == DEEPEST:
                raise ValueError(f"is nested more than {DEEPEST} deep")
            waiting += [(item, depth + 1) for item in (one.values() if isinstance(one, dict) else one)]
        elif isinstance(one, float) and not math.isfinite(one):
            raise ValueError("holds a number that is not finite")
    return value


def _of_size(most: int, unit: str):
    def check(value: Any) -> Any:
        size = len(value) if isinstance(value, str) else len(json.dumps(value, ensure_ascii=False).encode())
        if size > most:
            raise ValueError(f"has {size} {unit}, at most {most} are allowed")
        return value

    return AfterValidator(check)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EncodedPicture(_Message):
    """The bytes of a PNG or WebP file, as base64. Lossless, please: rewards see artefacts."""

    b64: str
    format: Picture


Columns = Annotated[dict[str, JsonValue], AfterValidator(_plain), _of_size(LARGEST_META, "bytes")]
Chat = Annotated[list[dict[str, JsonValue]], AfterValidator(_plain)]


class _Item(_Message):
    prompt: Annotated[str | Chat, _of_size(LONGEST_PROMPT, "characters")] = ""
    meta: Columns = {}


class TextItem(_Item):
    """A text to be judged.

    Args:
        prompt: a text, or a chat: a list of {role, content}.
        meta: the other columns of the row that was asked about, as far as a reward may know them.
        completion: what a model answered, up to its first end token.
    """

    completion: Annotated[str, Field(max_length=LONGEST)]


class PictureItem(_Item):
    """A picture to be judged; `prompt` and `meta` as for texts."""

    image: EncodedPicture


def _kind(item: Any) -> str:
    return "picture" if isinstance(item, PictureItem) or (isinstance(item, dict) and "image" in item) else "text"


Item = Annotated[
    Annotated[TextItem, Tag("text")] | Annotated[PictureItem, Tag("picture")],
    Discriminator(_kind),
]


class ScoreRequest(_Message):
    """A batch for one reward. The same bytes sent again are not judged again: that makes a retry safe."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    request_id: UUID
    items: Annotated[list[Item], Field(max_length=MOST_ITEMS)]


class ItemScore(BaseModel):
    """The judgement of one item; see `unmask.rewards.Score`. `score` is null unless `status` is ok."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    score: float | None
    status: Literal["ok", "invalid", "infra_error", "not_applicable"]
    details: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _score_if_ok(self) -> Self:
        if (self.score is None) == (self.status == "ok"):
            raise ValueError("score must be a number if status is ok, and null otherwise")
        return self


class ScoreReply(BaseModel):
    """As many scores as there were items, in their order."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    model_version: str
    request_id: UUID
    items: list[ItemScore]


class Problem(BaseModel):
    """Why there is no reply; neither traceback nor paths."""

    type: str
    message: str


class ErrorReply(BaseModel):
    """Every answer but 200."""

    error: Problem


class Health(BaseModel):
    """Whether a server can judge, and with what."""

    ready: bool
    models: dict[str, Literal["loading", "ready"]]
