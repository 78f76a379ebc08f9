"""Pictures: a caption, and a grid of image codes behind it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.modalities.base import Completion, Modality, Prompt
from unmask.modalities.codes import Codes
from unmask.modalities.layouts import SLOT, Layout, left_padded
from unmask.pictures import StoredPicture, to_uri
from unmask.types import Canvas

_DECODED_AT_ONCE = 32  # pictures


class Image(Modality):
    """Picture answers of a masked model of text and image codes.

    The local ids of an answer are the image codes, and k is the size of the codebook: nothing has to be banned. Rows
    are as long as the longest prompt needs. `blank` has the unconditional prompts, at the same length.

    Attributes:
        hide_pads: False lets every token see the pads: only to compare with numbers of code that ignores padding.
        text_part: ids of every prompt, pads included; None: as many as the longest prompt of a batch has.
        cut: captions that are too long are cut before their last id, as MMaDA's code does; otherwise they are refused.
        longest: ids of a prompt, at most. MMaDA is trained with 256 and one for the task.

    Args:
        layout: of the family.
        vocab: rows [start, stop) of the head that are image codes.
        mask_id: global id.
        grid: (height, width) in codes; None is a square of as many codes as are asked for.
        codes: through the image tokenizer.
    """

    greedy = False

    def __init__(
        self,
        layout: Layout,
        vocab: tuple[int, int],
        mask_id: int,
        grid: tuple[int, int] | None,
        codes: Codes,
    ):
        self.layout, self.vocab, self.mask_id, self.grid, self.codes = layout, vocab, mask_id, grid, codes
        self.banned = torch.zeros(vocab[1] - vocab[0], dtype=torch.bool)
        self.hide_pads, self.cut = True, False
        self.text_part: int | None = None
        self.longest = 257

    def shape(self, slots: int) -> tuple[int, int]:
        """Height and width of a picture of so many codes, in codes.

        Raises:
            UserError: they make neither the model's grid nor a square.
        """
        if self.grid is not None and math.prod(self.grid) == slots:
            return self.grid
        side = math.isqrt(slots)
        if side * side != slots:
            raise UserError(f"answer_length {slots} is no square grid of image codes: choose e.g. {side * side}")
        return side, side

    def prompt_ids(self, prompt: Prompt | None) -> list[int]:
        """Ids of one prompt, without pads; None is the unconditional one."""
        if prompt is not None and not isinstance(prompt, str):
            raise UserError("a prompt for pictures is one text, not a conversation")
        most = self.longest if self.text_part is None else self.text_part
        ids = self.layout.prompt(prompt)
        if len(ids) > most and self.cut:
            return [*ids[: most - 1], ids[-1]]
        if len(ids) > most:
            raise UserError(f"caption of {len(ids)} tokens, at most {most} are possible: shorten {str(prompt)[:60]!r}")
        return ids

    def encode(self, prompts: Sequence[Prompt], slots: int) -> Canvas:
        """Rows `[pad ...] prompt frame`; slots are in the order of the codes, row by row."""
        frame = self.layout.frame(*self.shape(slots))
        rows, empty = [self.prompt_ids(prompt) for prompt in prompts], self.prompt_ids(None)
        length = self.text_part or max(map(len, [*rows, empty]))
        blank = self._canvas([empty] * len(rows), frame, length, None)
        return self._canvas(rows, frame, length, blank)

    def _canvas(self, rows: list[list[int]], frame: list[int], length: int, blank: Canvas | None) -> Canvas:
        prompts, pads = left_padded(rows, self.layout.filler, length)
        tail = torch.tensor(frame, dtype=torch.int64)
        slots = (tail == SLOT).nonzero()[:, 0] + length
        ids = torch.cat(
            [
                torch.tensor(prompts, dtype=torch.int64).view(len(rows), length),
                tail.where(tail != SLOT, self.mask_id).expand(len(rows), len(frame)),
            ],
            1,
        )
        attend = torch.arange(ids.shape[1]) >= torch.tensor(pads, dtype=torch.int64).view(-1, 1)
        hidden = self.hide_pads and any(pads)
        return Canvas(ids, slots.repeat(len(rows), 1), attend if hidden else None, blank=blank)

    def encode_answers(
        self, completions: Sequence[Completion], slots: int
    ) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Codes of pictures (PIL, or stored), scaled and cut to the size of the grid."""
        x = self.codes(completions, self.shape(slots)).flatten(1)
        return x, torch.ones_like(x, dtype=torch.bool)

    def given(self, picture: Completion, mask: Completion, slots: int) -> Int[Tensor, "t"]:
        """Codes of a picture, and MASK where `mask` is light: what is to be painted anew.

        Raises:
            UserError: one of them is not of the size of the model's pictures.
        """
        factor = self.codes.tokenizer.factor
        height, width = self.shape(slots)
        for name, one in (("picture", picture), ("mask", mask)):
            if one.size != (width * factor, height * factor):
                raise UserError(
                    f"the {name} is {one.width} x {one.height} pixels, but the model's are {width * factor} x "
                    f"{height * factor}: scale it"
                )
        light = torch.from_numpy(np.array(mask.convert("L"))) > 127
        anew = light.view(height, factor, width, factor).any(3).any(1).flatten()
        return self.encode_answers([picture], slots)[0][0].masked_fill(anew, self.vocab[1] - self.vocab[0])

    def valid(self, x: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Every code of a picture counts."""
        return torch.ones_like(x, dtype=torch.bool)

    def decode(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        """PIL pictures."""
        tokenizer, grid = self.codes.tokenizer, self.shape(x.shape[1])
        return [
            picture
            for part in x.split(_DECODED_AT_ONCE)
            for picture in tokenizer.to_pictures(tokenizer.decode(part.to(tokenizer.device).unflatten(1, grid)))
        ]

    def visible(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        return self.decode(x)

    def stored(self, completion: Completion) -> str:
        """A PNG as a `data:` URI."""
        return to_uri(completion.open() if isinstance(completion, StoredPicture) else completion)

    def pieces(self, x: Int[Tensor, "t"]) -> list[str]:
        """The codes as numbers."""
        return [str(code) for code in x.tolist()]
