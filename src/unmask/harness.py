"""Models of `unmask` in lm-evaluation-harness (the extra `lm-eval`), under the model name `unmask`.

    python -m unmask.harness --model unmask --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k

Importing this module registers the model; run as a module it is the harness's own command line. A context of the
harness is what the user says, under the model's chat template, so few-shot examples stand inside that turn, and
`--apply_chat_template` is refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

from unmask.errors import UserError
from unmask.modalities.text import encoded
from unmask.models import load
from unmask.random import Random
from unmask.runtime import Compute, Runtime
from unmask.samplers import LowConfidence
from unmask.types import View
from unmask.views.score import score

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]


@register_model("unmask")
class Harness(LM):
    """A masked diffusion model as the harness sees it.

    Args:
        pretrained: a directory in Hugging Face layout, a run directory, a hub id, or builtin:NAME.
        answer_length: answer slots of generated texts, in tokens.
        steps: denoising steps; default: one per token.
        block: slots per block, filled from left to right; 0 is one block. Must divide `answer_length`.
        samples: masks per log-likelihood.
        seed: of every random number.
        batch_size: rows per forward.
        max_batch_size: of the harness's search for a batch size, which is not done here.
        device: cpu or cuda; default: what there is.
        dtype: of the weights; default: float32 on a CPU, as stored on a GPU.
        revision: of a hub id.

    Raises:
        UserError: the model cannot be read, or a number is out of range.
    """

    def __init__(
        self,
        pretrained: str,
        answer_length: int = 256,
        steps: int | None = None,
        block: int = 32,
        samples: int = 128,
        seed: int = 0,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
    ):
        super().__init__()
        del max_batch_size
        if min(answer_length, samples) < 1 or not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError("answer_length, samples and batch_size must be whole numbers from 1")
        runtime = Runtime(Compute(device="auto" if device is None else device.partition(":")[0]))
        dtype = dtype or ("float32" if runtime.device.type == "cpu" else None)
        self.model = load(pretrained, device=str(runtime.device), dtype=dtype, revision=revision).answering("text")
        self.policy = self.model.policy(autocast=runtime.autocast)
        self.sampler = LowConfidence(steps=steps or answer_length, temperature=0.0, block=block)
        self.sampler.layout(answer_length)
        self.answer_length, self.samples, self.batch = answer_length, samples, int(batch_size)
        self.random = Random.root(seed, "harness", device=runtime.device)

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        """Refused: the template is applied to every context already."""
        del chat_history, add_generation_prompt
        raise UserError("model unmask puts every context into the user's turn already: leave --apply_chat_template out")

    @torch.no_grad()
    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first end token or stop text; greedy unless the task asks for a temperature."""
        del disable_tqdm
        modality, texts = self.model.modality, []
        for temperature, part in self._batches(requests):
            contexts = [requests[index].args[0] for index in part]
            canvas = modality.encode(contexts, self.answer_length).to(self.model.device)
            places = torch.tensor(part, device=self.model.device)
            sampler = replace(self.sampler, temperature=temperature)
            answer = sampler(self.policy, canvas, self.random.fold(0).fold(places))
            for index, text in zip(part, modality.visible(answer.x.cpu()), strict=True):
                texts.append(_cut(text, requests[index].args[1].get("until") or []))
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[-1])
        return texts

    def _batches(self, requests: "Sequence[Instance]") -> Iterator[tuple[float, list[int]]]:
        """Places of consecutive requests of one temperature."""
        for temperature, group in groupby(range(len(requests)), lambda i: _temperature(requests[i].args[1])):
            yield from ((temperature, list(part)) for part in batched(group, self.batch))

    @torch.no_grad()
    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """An estimate of a lower bound of log p(continuation | context), and whether greedy decoding gives it.

        The bound is LLaDA's (arXiv 2502.09992, equation 6): the mean, over `samples` masks with l of the n tokens
        hidden, l uniform on 1 .. n, of n / l times the log-probabilities of what is hidden. For one token it is exact.
        Greedy decoding takes one step per token.
        """
        del disable_tqdm
        found = []
        for index, request in enumerate(requests):
            context, continuation = request.args
            found.append(self._loglikelihood(context, continuation, self.random.fold(1).fold(index)))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def _loglikelihood(self, context: str, continuation: str, random: Random) -> tuple[float, bool]:
        modality = self.model.modality
        n = len(encoded(self.model.tokenizer, continuation))
        if n == 0:
            return 0.0, True
        x = modality.encode_answers([continuation], n)[0].to(self.model.device)
        total = 0.0
        for part in batched(range(self.samples), self.batch):
            canvas = modality.encode([context] * len(part), n).to(self.model.device)
            rows = x.expand(len(part), n)
            # Strata: sample j takes its l from the j-th of `samples` equal parts, which lowers the variance only.
            level = (torch.tensor(part) + random.fold(0).uniform(1).cpu()) / self.samples
            count = (1 + (level * n).long()).clamp(max=n).to(self.model.device)
            order = random.fold(1).fold(torch.tensor(part, device=self.model.device)).uniform(n).argsort(1).argsort(1)
            mask = order < count[:, None]
            logp = score(self.policy, canvas, rows, View(mask, mask.float(), None))
            total += float((logp.sum(1) * n / count).sum())
        canvas = modality.encode([context], n).to(self.model.device)
        place = random.fold(torch.tensor([2], device=self.model.device))
        greedy = LowConfidence(steps=n, temperature=0.0)(self.policy, canvas, place)
        return total / self.samples, bool((greedy.x == x).all())

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Refused: rolling windows read a text from left to right, which a masked diffusion model does not."""
        raise NotImplementedError("model unmask has no rolling log-likelihood (perplexity): choose tasks without it")


def _temperature(options: Mapping[str, Any]) -> float:
    return float(options.get("temperature") or 1.0) if options.get("do_sample") else 0.0


def _cut(text: str, stops: str | Sequence[str]) -> str:
    """What stands before the first stop text."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text


def batched(places: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Tuples of `size` places, the last one shorter."""
    left = iter(places)
    while part := tuple(islice(left, size)):
        yield part


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
