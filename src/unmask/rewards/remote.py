"""A reward on another machine, asked over HTTP; `unmask serve` is the other side."""

import base64
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4

from pydantic import ValidationError

from unmask.errors import UserError
from unmask.rewards.base import Reward, Row, Score
from unmask.rewards.http import Answer, Patience, Server, Unanswered
from unmask.rewards.protocol import (
    MOST_BODY,
    MOST_ITEMS,
    MOST_PIXELS,
    MOST_REPLY,
    TOKEN,
    EncodedPicture,
    ErrorReply,
    Item,
    ItemScore,
    PictureItem,
    Problem,
    ScoreReply,
    ScoreRequest,
    TextItem,
)
from unmask.rewards.text import END_TOKENS, MASK_TOKENS, Unreadable, visible_text
from unmask.rewards.user import UserRewardError

if TYPE_CHECKING:
    from PIL.Image import Image

_NEVER_SENT = ("prompt", "completion")  # columns: the first has a place of its own, the second is an answer to learn


@dataclass(frozen=True)
class Remote(Reward):
    """The reward that a server at `url` knows as `model` (`unmask serve`; protocol in `unmask.rewards.protocol`).

    It scores as the same reward would in this process. Texts are cut before their first end token; one that holds a
    mask token or is longer than 65,536 characters is invalid and not sent. Prompt and columns of the row travel, except
    `completion`, the answer to learn from. What the network or the server does wrong (no answer in time, an answer that
    is not as the protocol says, a wrong number of scores, one that is no number) makes the completions of that request
    infra errors, with a warning.

    Args:
        url: http://HOST:PORT, without the reward's name.
        model: the reward's name there.
        batch: completions of one request, at most 64.
        requests: under way at a time.
        patience: with a server that does not answer.

    Raises:
        UserError: the url is none. In `for_tokens`: the server is not ready in time, does not know the reward, or wants
            another token. On call: a row is too large for the protocol, or lacks what the reward needs.
        UserRewardError: on call: the reward failed on the server, as it would have here.
    """

    name: ClassVar[str] = "remote"

    url: str
    model: str
    batch: int = 16
    requests: int = 4
    patience: Patience = field(default_factory=Patience)
    end_tokens: tuple[str, ...] = END_TOKENS
    mask_tokens: tuple[str, ...] = MASK_TOKENS

    def __post_init__(self):
        if not 1 <= self.batch <= MOST_ITEMS or self.requests < 1 or not self.model:
            raise UserError(f"remote reward: batch must be in [1, {MOST_ITEMS}], requests at least 1, and model a name")
        if not self._server.url:
            raise UserError("remote reward: needs the url of its server")

    @classmethod
    def at(cls, address: str) -> Self:
        """The reward behind an address that `unmask serve` prints: http://HOST:PORT/NAME.

        Raises:
            UserError: it is none.
        """
        url, _, model = address.rpartition("/")
        if not model or not url or url.endswith("/"):
            raise UserError(f"{address!r} is no address of a reward; write it as remote:http://HOST:PORT/NAME")
        return cls(url, model)

    @property
    def label(self) -> str:
        return self.model

    @property
    def _server(self) -> Server:
        return Server(self.url.rstrip("/"), "/healthz", self.patience, self.requests, MOST_REPLY)

    @property
    def _where(self) -> str:
        return f"remote reward {self.model} at {self.url}"

    def for_tokens(self, end: Sequence[str], mask: Sequence[str] = ()) -> Self:
        self.check()  # a run asks for this at its start
        return replace(
            self,
            end_tokens=tuple(dict.fromkeys((*self.end_tokens, *filter(None, end)))),
            mask_tokens=tuple(dict.fromkeys((*self.mask_tokens, *filter(None, mask)))),
        )

    def check(self) -> None:
        """Waits for the server, and asks whether it would judge.

        Raises:
            UserError: it would not.
        """
        try:
            self._server.wait(_headers())
        except Unanswered as error:
            raise UserError(f"{self._where}: {error}; start it with `unmask serve`") from error
        (answer,) = self._scores([[]])
        if isinstance(answer, str):
            remedy = f"; set {TOKEN} to the token of the server" if answer.startswith("HTTP 401") else ""
            raise UserError(f"{self._where}: {answer}{remedy}")

    def __call__(self, completions: Sequence[Any], rows: Sequence[Row]) -> list[Score]:
        read = [self._item(completion, row) for completion, row in zip(completions, rows, strict=True)]
        sent = [
            (item, _pixels(one)) for item, one in zip(read, completions, strict=True) if not isinstance(item, Score)
        ]
        batches = list(self._batches(sent))
        judged: list[Score] = []
        for batch, answer in zip(batches, self._scores(batches), strict=True):
            judged += [Score.infra_error(answer)] * len(batch) if isinstance(answer, str) else answer
        arrived = iter(judged)
        scores = [one if isinstance(one, Score) else next(arrived) for one in read]
        failed = [score for score in scores if score.status == "infra_error"]
        if failed:
            warnings.warn(
                f"{self._where} did not judge {len(failed)} of {len(scores)} completions "
                f"({failed[0].details['reason']}); they are left out",
                stacklevel=2,
            )
        return scores

    def _item(self, completion: Any, row: Row) -> Item | Score:
        """What is sent, or the score of a text that is not."""
        columns: dict[str, Any] = {"prompt": row.get("prompt") or ""}
        columns["meta"] = {name: value for name, value in row.items() if name not in _NEVER_SENT}
        try:
            if not isinstance(completion, str):
                return PictureItem(image=encoded(completion), **columns)
            text = visible_text(completion, self.end_tokens, self.mask_tokens)
            text.encode()
            return TextItem(completion=text, **columns)
        except Unreadable as error:
            return Score.invalid(str(error))
        except UnicodeEncodeError:
            return Score.invalid("not Unicode text")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{self._where}: row {row.get('id', '?')} cannot be sent: {where}: {first['msg']}; keep only the "
                "columns that the reward reads"
            ) from error

    def _batches(self, sent: Sequence[tuple[Item, int]]) -> Iterator[list[Item]]:
        """Consecutive items, as many as the protocol allows at once."""
        batch: list[Item] = []
        size = pixels = 0
        for item, area in sent:
            more = len(item.model_dump_json())
            if batch and (len(batch) == self.batch or size + more > MOST_BODY // 2 or pixels + area > MOST_PIXELS):
                yield batch
                batch, size, pixels = [], 0, 0
            batch.append(item)
            size, pixels = size + more, pixels + area
        if batch:
            yield batch

    def _scores(self, batches: Sequence[Sequence[Item]]) -> list[list[Score] | str]:
        """Per batch its scores, or why there are none.

        Raises:
            UserError, UserRewardError: the reward raised one of them on the server.
        """
        requests = [ScoreRequest(model=self.model, request_id=uuid4(), items=list(batch)) for batch in batches]
        answers = self._server.post(
            "/v1/score", [request.model_dump_json().encode() for request in requests], _headers()
        )
        return [self._read(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _read(self, request: ScoreRequest, answer: Answer | Unanswered) -> list[Score] | str:
        if isinstance(answer, Unanswered):
            return str(answer)
        if answer.status != 200:
            problem = _problem(answer)
            if problem.type == "row":
                raise UserError(f"{self._where}: {problem.message}")
            if problem.type == "reward_failed":
                raise UserRewardError(f"{self._where}: {problem.message}")
            return f"HTTP {answer.status}: {problem.message}"
        try:
            reply = ScoreReply.model_validate_json(answer.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            return f"an answer that is not as the protocol says: {'.'.join(map(str, first['loc']))} {first['msg']}"
        if reply.request_id != request.request_id:
            return "an answer to another request"
        if len(reply.items) != len(request.items):
            return f"{len(reply.items)} scores for {len(request.items)} completions"
        return [_score(item) for item in reply.items]


def encoded(picture: "Image") -> EncodedPicture:
    """A picture for the way, without loss. WebP takes a third of the time of PNG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="WEBP", lossless=True, method=0)
    return EncodedPicture(b64=base64.b64encode(buffer.getvalue()).decode(), format="webp")


def _pixels(completion: Any) -> int:
    return 0 if isinstance(completion, str) else completion.width * completion.height


def _headers() -> dict[str, str]:
    token = os.environ.get(TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _problem(answer: Answer) -> Problem:
    try:
        problem = ErrorReply.model_validate_json(answer.content).error
    except ValidationError:
        return Problem(type="unknown", message="no reason is given")
    return Problem(type=problem.type, message=" ".join(problem.message.split())[:400])


def _score(item: ItemScore) -> Score:
    if item.status == "infra_error":
        return Score.infra_error(str(item.details.get("reason", "no reason is given"))[:400])
    if item.status == "not_applicable":
        return Score.not_applicable()
    return Score(0.0 if item.score is None else item.score, item.status, item.details)
