"""Protocols: how a published evaluation asks and decodes, so that numbers can be put side by side."""

from dataclasses import dataclass


class Usual(int):
    """Answer slots that nobody chose, the default of a task: they give way to those of the protocol."""


@dataclass(frozen=True)
class Protocol:
    """What an evaluation fixes besides the questions. The wording of instructions is our own in all of them.

    Args:
        prefill: how the assistant's turn begins; part of the prompt, so it is never judged.
        answer_length: answer slots; None: the task's own.
        tokens_per_step: of greedy low-confidence decoding.
        block: slots of a block; None: this protocol fixes no decoding, the model's own is used.
        tag: what encloses the steps of an answer, where a task asks for steps.
    """

    prefill: str = ""
    answer_length: int | None = None
    tokens_per_step: int = 1
    block: int | None = None
    tag: str = "reasoning"

    def tagged(self, text: str) -> str:
        """A text whose steps stand in `<reasoning>..</reasoning>`, with this protocol's tag instead."""
        return text.replace("reasoning>", f"{self.tag}>")

    def chat(self, instructions: str, question: str) -> list[dict[str, str]]:
        """A prompt: the instructions inside the user's turn, a blank line, the question; then the prefill."""
        turns = [{"role": "user", "content": f"{instructions}\n\n{question}"}]
        return [*turns, {"role": "assistant", "content": self.prefill}] if self.prefill else turns


UNMASK = Protocol()
"""Ours: a chat without a prefill, decoded as the model's own notes say."""
CHAT = Protocol(answer_length=256)
"""Ours for puzzles, whose own layout is bare: a chat without a prefill, decoded as the model's own notes say."""
D1 = Protocol(prefill="<reasoning>", answer_length=256, tokens_per_step=2, block=32)
"""d1 (arXiv 2504.12216), lengths 128, 256 and 512, two tokens per step."""
MASKGRPO = Protocol(prefill="<reasoning>", answer_length=512, block=64)
"""MaskGRPO (arXiv 2510.02880) on LLaDA, one token per step."""
MASKGRPO_MMADA = Protocol(prefill="<think>", answer_length=512, block=64, tag="think")
"""MaskGRPO on MMaDA, which was taught to think between these tags."""
MASKGRPO_CODE = Protocol(answer_length=256, block=32)
"""MaskGRPO on MBPP: no layout is asked for, hence no prefill."""
OF_MATHEMATICS = {"unmask": UNMASK, "d1": D1, "maskgrpo": MASKGRPO, "maskgrpo-mmada": MASKGRPO_MMADA}
"""How tasks that ask for steps and a result can be asked."""
