"""The mean of a digit in a model's reply, under the probabilities that the model gave to each digit there."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

ALTERNATIVES = 20
"""Tokens per place that are asked for: the most that OpenAI's protocol allows."""


class NoLogProbabilities(Exception):
    """The endpoint gave none."""


class _Token(BaseModel):
    token: str
    logprob: FiniteFloat
    raw: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(default=None, alias="bytes")

    @property
    def content(self) -> bytes:
        return self.token.encode(errors="replace") if self.raw is None else bytes(self.raw)


class _Place(_Token):
    top_logprobs: list[_Token]


class _LogProbabilities(BaseModel):
    content: list[_Place]


def places(said: Any) -> list[_Place]:
    """The tokens of a reply with their alternatives, from `logprobs` of a choice.

    Raises:
        NoLogProbabilities: there are none.
        ValueError: they are not as OpenAI's protocol has them.
    """
    if said is None or (isinstance(said, dict) and not said.get("content")):
        raise NoLogProbabilities
    try:
        read = _LogProbabilities.model_validate(said).content
    except ValidationError as error:
        raise ValueError("log-probabilities in another form") from error
    if not any(place.top_logprobs for place in read):
        raise NoLogProbabilities
    return read


def expected(
    said: Any, find: Callable[[str], re.Match[str] | None], score: float, lowest: float, highest: float
) -> tuple[float, float]:
    """Mean of the digit `score`, the first group of what `find` finds, over the digits in [lowest, highest] there.

    Probabilities of other tokens, and of digits that are not among the alternatives, count nothing; the rest is
    normalised. A digit with and without a blank before it is one digit.

    Returns:
        The mean, and the share of probability that all these digits have together.

    Raises:
        NoLogProbabilities: there are none.
        ValueError: the tokens do not hold a digit where it should be; the message is the reason.
    """
    read = places(said)
    text = b"".join(place.content for place in read).decode(errors="surrogateescape")
    match = find(text)
    if match is None:
        raise ValueError("no score in the tokens")
    before, at = len(text[: match.start(1)].encode(errors="surrogateescape")), 0
    for place in read:
        at += len(place.content)
        if at > before:
            break
    else:
        raise ValueError("no score in the tokens")
    if place.content.strip() != match[1].encode() or not re.fullmatch("[0-9]", match[1]):
        raise ValueError(f"the score {match[1][:20]!r} is not a digit and a token of its own")
    if float(match[1]) != score:
        raise ValueError("the tokens hold another score than the reply")
    tokens = {one.content: one.logprob for one in [place, *place.top_logprobs]}
    weights = [
        (int(content), math.exp(min(logprob, 0.0)))
        for content, logprob in tokens.items()
        if re.fullmatch(rb"\s*[0-9]\s*", content) and lowest <= int(content) <= highest
    ]
    share = sum(weight for _, weight in weights)
    if share <= 0:
        raise ValueError("no digit of the scale has a probability")
    return sum(digit * weight for digit, weight in weights) / share, min(share, 1.0)
