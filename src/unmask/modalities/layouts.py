"""What surrounds the image codes in the sequence of a family that reads and writes pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.errors import UserError

Chat = Sequence[Mapping[str, Any]]
"""A conversation of `{"role", "content"}` with texts only."""

SLOT = -1
"""Stands for an image code in a frame."""


@dataclass(frozen=True)
class Layout(ABC):
    """Where pictures stand in a sequence: behind a caption, as the answer, or in a question that a text answers.

    A row that asks for a picture is a prompt and a frame with the codes, with pads on the left.

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
    def picture(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """Ids of a picture with its marks, from the ids of its codes, row by row."""

    @abstractmethod
    def frame(self, height: int, width: int) -> list[int]:
        """Ids of everything after the prompt for a picture, `SLOT` where a code goes, row by row."""

    @abstractmethod
    def question(self, pictures: Sequence[list[int]], chat: Chat, template: Callable[[Chat], list[int]]) -> list[int]:
        """Ids of a prompt with pictures, up to the text that answers it.

        Args:
            pictures: as `picture` makes them.
            chat: what is said about them.
            template: ids of a conversation under the tokenizer's chat template.

        Raises:
            UserError: a conversation that cannot be laid out.
        """

    @property
    def tail(self) -> list[int]:
        """Ids behind the answer to such a prompt."""
        return []


class MMaDA(Layout):
    """MMaDA (arXiv 2505.15809): the unconditional prompt is an empty text.

    `[iPAD].. <|t2i|> bos text eos <|soi|> codes <|eoi|>`, and for questions `<|mmu|> <|soi|> codes <|eoi|> chat`, where
    further pictures stand behind the first one (MMaDA was trained with one).
    """

    @property
    def filler(self) -> int:
        return self.roles["pad"]

    def prompt(self, text):
        return [self.roles["t2i"], *([] if self.bos is None else [self.bos]), *self.tokenize(text or ""), self.eos]

    def picture(self, codes):
        return [self.roles["soi"], *(code for row in codes for code in row), self.roles["eoi"]]

    def frame(self, height, width):
        return self.picture([[SLOT] * width] * height)

    def question(self, pictures, chat, template):
        return [self.roles["mmu"], *(one for picture in pictures for one in picture), *template(chat)]


@dataclass(frozen=True)
class DiMOO(Layout):
    """Lumina-DiMOO (arXiv 2510.06308): an instruction and the user's text; a mark at the end of each row of codes.

    `<system>..</system><user>text</user> <answer> <IMAGE> (row, row end) * height </IMAGE> </answer>`; in questions the
    pictures stand before the last id of `</user>`, and the answer between `<answer>` and `</answer>`.

    Args:
        instruction: the system's text, for pictures.
        understanding: the system's text for questions about pictures, if the conversation has none of its own.
    """

    instruction: str = "Generate an image according to the text prompt."
    understanding: str = (
        "You are a multimodal model that can process both text and images. Answer the following question based on the "
        "provided images. Analyze each image and combine relevant details to answer."
    )

    @property
    def filler(self) -> int:
        return self.pad

    def prompt(self, text):
        if text is not None:
            return self.tokenize(f"<system>{self.instruction}</system><user>{text}</user>")
        before, after = (self.tokenize(part) for part in (f"<system>{self.instruction}</system><user>", "</user>"))
        return [*before, self.roles["unconditional"], *after]

    def picture(self, codes):
        rows = (code for row in codes for code in (*row, self.roles["row_end"]))
        return [self.roles["image"], *rows, self.roles["image_end"]]

    def frame(self, height, width):
        return [self.roles["answer"], *self.picture([[SLOT] * width] * height), self.roles["answer_end"]]

    def question(self, pictures, chat, template):
        del template
        roles = [turn["role"] for turn in chat]
        if roles not in (["user"], ["system", "user"]):
            raise UserError(
                f"a question about pictures is one turn of the user, after one of the system if need be, not "
                f"{', '.join(map(str, roles))[:60]}"
            )
        system = chat[0]["content"] if len(chat) == 2 else self.understanding
        ids = self.tokenize(f"<system>{system}</system><user>{chat[-1]['content']}</user>")
        return [*ids[:-1], *(one for picture in pictures for one in picture), ids[-1], self.roles["answer"]]

    @property
    def tail(self) -> list[int]:
        return [self.roles["answer_end"]]


def left_padded(rows: Sequence[Sequence[int]], filler: int, length: int) -> tuple[list[list[int]], list[int]]:
    """The rows at this length with pads on the left, and how many pads each has."""
    pads = [length - len(row) for row in rows]
    return [[*[filler] * n, *row] for n, row in zip(pads, rows, strict=True)], pads
