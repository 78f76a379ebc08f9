"""Text: a chat prompt, left-padded, with the answer slots behind it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.errors import UserError
from unmask.modalities.base import Completion, Modality, Prompt
from unmask.types import Canvas


class Text(Modality):
    """Text answers of a masked language model.

    Rows are `[pad ...] prompt [slot ...]`; pads are hidden from attention. Local ids are global ids, and k is the
    number of rows of the head. The mask id and the rows past the tokenizer are banned; end tokens are candidates.

    Attributes:
        hide_pads: False lets every token see the pads: only to compare with numbers of code that ignores padding.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        vocabulary: rows of the head.
        mask_id, pad_id: global ids.
        end_ids: ids that end an answer (eos, `<|eot_id|>` or `<|im_end|>`); the last one closes given answers.
        texts: ids from here on are no text (image codes) and banned, even if the tokenizer has them; None is all text.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        mask_id: int,
        pad_id: int,
        end_ids: Sequence[int],
        texts: int | None = None,
    ):
        self.tokenizer, self.mask_id, self.pad_id = tokenizer, mask_id, pad_id
        self.vocab = (0, vocabulary)
        self.end_ids, self.closing = torch.tensor(sorted(set(end_ids))), end_ids[-1]
        self.banned = torch.arange(vocabulary) >= min(len(tokenizer), vocabulary if texts is None else texts)
        self.banned[mask_id] = True
        self.hide_pads = True

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of one prompt under the chat template, ready for the answer to follow.

        A conversation that ends with the assistant's turn is not closed: the answer goes on behind that turn's text.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template: put a chat_template.jinja "
                "beside it, or use an instruction-tuned checkpoint"
            )
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._tokenize(text + begun)  # the template has written bos already

    def _tokenize(self, text: str) -> list[int]:
        return encoded(self.tokenizer, text)

    def encode(self, prompts: Sequence[Prompt], slots: int) -> Canvas:
        """Rows of the length of the longest prompt + `slots`; `blank` has every prompt token masked (LLaDA)."""
        encoded = [self.prompt_ids(prompt) for prompt in prompts]
        longest = max(map(len, encoded), default=0)
        ids = torch.full((len(encoded), longest + slots), self.mask_id)
        attend = torch.ones_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(encoded):
            pads = longest - len(tokens)
            ids[row, :pads], attend[row, :pads] = self.pad_id, False
            ids[row, pads:longest] = torch.tensor(tokens, dtype=ids.dtype)
        slot = torch.arange(longest, longest + slots).expand(len(encoded), slots)
        seen = attend if self.hide_pads and any(len(tokens) < longest for tokens in encoded) else None
        blank = Canvas(torch.where(attend, self.mask_id, ids), slot, seen)
        return Canvas(ids, slot, seen, blank=blank)

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
        raise UserError(f"the model's tokenizer cannot encode {text[:80]!r}: {error}") from error
