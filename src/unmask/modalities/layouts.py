"""What surrounds the image codes in the sequence of a family that reads and writes pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SLOT = -1
"""Stands for an image code in a frame."""


@dataclass(frozen=True)
class Layout(ABC):
    """A row is a prompt and a frame with the codes, with pads on the left.

    Args:
        tokenize: ids of a text, without special tokens added.
        roles: framing tokens by role, see `ImageIds`.
        bos, eos, pad: ids of the tokenizer.
    """

    tokenize: Callable[[str], list[int]]
    roles: Mapping[str, int]
    bos: int | None
    eos: int
    pad: int

    @property
    @abstractmethod
    def filler(self) -> int:
        """Id of the pads."""

    @abstractmethod
    def prompt(self, text: str | None) -> list[int]:
        """Ids of a caption; None is the unconditional prompt."""

    @abstractmethod
    def frame(self, height: int, width: int) -> list[int]:
        """Ids of everything after the prompt, `SLOT` where a code goes, row by row."""


class MMaDA(Layout):
    """`[iPAD].. <|t2i|> bos text eos <|soi|> codes <|eoi|>` (arXiv 2505.15809); unconditional: an empty text."""

    @property
    def filler(self) -> int:
        return self.roles["pad"]

    def prompt(self, text):
        return [self.roles["t2i"], *([] if self.bos is None else [self.bos]), *self.tokenize(text or ""), self.eos]

    def frame(self, height, width):
        return [self.roles["soi"], *[SLOT] * (height * width), self.roles["eoi"]]


@dataclass(frozen=True)
class DiMOO(Layout):
    """Lumina-DiMOO: an instruction and the caption, then the picture with a mark at the end of each row of codes.

    `<system>..</system><user>text</user> <answer> <IMAGE> (row, row end) * height </IMAGE> </answer>`.

    Args:
        instruction: the system's text.
    """

    instruction: str = "Generate an image according to the text prompt."

    @property
    def filler(self) -> int:
        return self.pad

    def prompt(self, text):
        if text is not None:
            return self.tokenize(f"<system>{self.instruction}</system><user>{text}</user>")
        before, after = (self.tokenize(part) for part in (f"<system>{self.instruction}</system><user>", "</user>"))
        return [*before, self.roles["unconditional"], *after]

    def frame(self, height, width):
        rows = [*[SLOT] * width, self.roles["row_end"]] * height
        start, end = (self.roles["answer"], self.roles["image"]), (self.roles["image_end"], self.roles["answer_end"])
        return [*start, *rows, *end]


def left_padded(rows: Sequence[Sequence[int]], filler: int, length: int) -> tuple[list[list[int]], list[int]]:
    """The rows at this length with pads on the left, and how many pads each has."""
    pads = [length - len(row) for row in rows]
    return [[*[filler] * n, *row] for n, row in zip(pads, rows, strict=True)], pads
