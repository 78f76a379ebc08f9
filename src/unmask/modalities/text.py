"""Text: a chat prompt, left-padded, with the answer slots behind it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.modalities.base import Completion, Modality, Prompt
from unmask.modalities.layouts import Chat
from unmask.modalities.reading import PictureReader
from unmask.pictures import parted
from unmask.types import Canvas


class Text(Modality):
    """Text answers of a masked language model, to prompts that may hold pictures.

    Rows are `[pad ...] prompt [slot ...] tail`, where only prompts with pictures may have a tail; pads are hidden from
    attention. Local ids are global ids, and k is the number of rows of the head. The mask id and the rows past the
    tokenizer are banned; end tokens are candidates.

    Attributes:
        hide_pads: False lets every token see the pads: only to compare with numbers of code that ignores padding.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        vocabulary: rows of the head.
        mask_id, pad_id: global ids.
        end_ids: ids that end an answer (eos, `<|eot_id|>` or `<|im_end|>`); the last one closes given answers.
        texts: ids from here on are no text (image codes) and banned, even if the tokenizer has them; None is all text.
        reader: of pictures in prompts; None where the model reads none.
        block: positions per block of a block-causal model, counted from the first visible token; 0: full attention.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        mask_id: int,
        pad_id: int,
        end_ids: Sequence[int],
        texts: int | None = None,
        reader: PictureReader | None = None,
        block: int = 0,
    ):
        self.tokenizer, self.mask_id, self.pad_id = tokenizer, mask_id, pad_id
        self.vocab = (0, vocabulary)
        self.end_ids, self.closing = torch.tensor(sorted(set(end_ids))), end_ids[-1]
        self.banned = torch.arange(vocabulary) >= min(len(tokenizer), vocabulary if texts is None else texts)
        self.banned[mask_id] = True
        self.hide_pads = True
        self.reader, self.block = reader, block

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[tuple[list[int], list[int]]]:
        """Ids of prompts, ready for the answer to follow, and what stands behind the answer.

        Raises:
            UserError: no chat template; pictures that cannot be read, or that this model does not read.
        """
        chats = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
        split = [parted(chat) for chat in chats]
        shown = [source for _, sources in split for source in sources]
        if not shown:
            return [(self._chat_ids(chat), []) for chat, _ in split]
        if self.reader is None:
            raise UserError("the model reads no pictures: leave them out, or take MMaDA or Lumina-DiMOO")
        pictures, layout, rows = iter(self.reader(shown)), self.reader.layout, []
        for chat, sources in split:
            own = [next(pictures) for _ in sources]
            rows.append(
                (layout.question(own, chat, self._chat_ids), layout.tail) if own else (self._chat_ids(chat), [])
            )
        return rows

    def _chat_ids(self, chat: Chat) -> list[int]:
        """Ids of a conversation under the chat template.

        One that ends with the assistant's turn is not closed: the answer goes on behind that turn's text.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template: put a chat_template.jinja "
                "beside it, or use an instruction-tuned checkpoint"
            )
        messages = list(chat)
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._tokenize(text + begun)  # the template has written bos already

    def _tokenize(self, text: str) -> list[int]:
        return encoded(self.tokenizer, text)

    def encode(self, prompts: Sequence[Prompt], slots: int) -> Canvas:
        """Rows of the length of the longest prompt + `slots`; `blank` has everything masked (LLaDA)."""
        rows = self.prompt_ids(prompts)
        length = max((len(prompt) + len(tail) for prompt, tail in rows), default=0) + slots
        ids = torch.full((len(rows), length), self.mask_id)
        attend = torch.ones_like(ids, dtype=torch.bool)
        slot = torch.arange(slots).repeat(len(rows), 1)
        for row, (prompt, tail) in enumerate(rows):
            pads = length - len(prompt) - slots - len(tail)
            start, stop = pads + len(prompt), length - len(tail)
            ids[row, :pads], attend[row, :pads] = self.pad_id, False
            ids[row, pads:start] = torch.tensor(prompt, dtype=ids.dtype)
            ids[row, stop:] = torch.tensor(tail, dtype=ids.dtype)
            slot[row] += start
        padded = attend if self.hide_pads and not bool(attend.all()) else None
        block = self._blocks(ids, padded)
        blank = Canvas(ids.masked_fill(attend, self.mask_id), slot, padded, block=block)
        return Canvas(ids, slot, padded, block=block, blank=blank)

    def _blocks(self, ids: Int[Tensor, "b l"], attend: Bool[Tensor, "b l"] | None) -> Int[Tensor, "b l"] | None:
        """Block of every position, as the backbone counts them; pads are in the first one."""
        if not self.block:
            return None
        seen = torch.ones_like(ids) if attend is None else attend.long()
        return (seen.cumsum(1) - 1).clamp(min=0) // self.block

    def encode_answers(self, completions, slots):
        """Each answer is closed with the end token and filled up with pads; slots behind the end are not counted."""
        x = torch.full((len(completions), slots), self.pad_id)
        filled = torch.zeros_like(x, dtype=torch.bool)
        for row, completion in enumerate(completions):
            tokens = self._tokenize(completion)
            if len(tokens) > slots:
                raise UserError(f"answer of {len(tokens)} tokens does not fit {slots} slots: {completion[:60]!r}")
            tokens = [*tokens, self.closing][:slots]
            x[row, : len(tokens)] = torch.tensor(tokens, dtype=x.dtype)
            filled[row, : len(tokens)] = True
        return x, filled

    def valid(self, x: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """True up to and including the first end token."""
        end = torch.isin(x, self.end_ids.to(x.device))
        return end.cumsum(1) - end.long() == 0

    def decode(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        """Text with special tokens kept, so that rewards can cut at the first end token."""
        return self.tokenizer.batch_decode(x.tolist(), skip_special_tokens=False)

    def visible(self, x: Int[Tensor, "b t"]) -> list[Completion]:
        """Text up to the first end token, without special tokens."""
        ends = self.valid(x).sum(1).tolist()
        rows = [row[:end] for row, end in zip(x.tolist(), ends, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def stored(self, completion: Completion) -> str:
        return completion

    def pieces(self, x: Int[Tensor, "t"]) -> list[str]:
        return [self.tokenizer.decode([token]) for token in x.tolist()]


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, without special tokens added.

    Raises:
        UserError: the tokenizer does not know some of it.
    """
    try:
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UserError(
            f"the model's tokenizer cannot encode {text[:80]!r} ({error}): use words that it knows"
        ) from error
