"""MaskGRPO on one page: a masked diffusion model learns to copy, from nothing but a reward.

    python examples/minimal_loop.py            # about half a minute on one core

The loop is `unmask.rl` without processes, files and options. Shapes: b rows = p prompts x g answers, t answer slots.
"""

import argparse
import time

import torch

from unmask.advantages import Standardized
from unmask.models.scratch import new_model
from unmask.objectives import Clip
from unmask.random import Random
from unmask.samplers import TopProb
from unmask.types import Policy, Scored
from unmask.views import FadingOut, Masked, Ramp, score

ALPHABET, LENGTH = "abcd", 4


def prompts_of(step: int, count: int, seed: int) -> list[str]:
    """Random words; which ones depends on (seed, step, number) alone."""
    letters = Random.root(seed, "prompts", step).fold(torch.arange(count)).uniform(LENGTH) * len(ALPHABET)
    return ["".join(ALPHABET[int(letter)] for letter in row) for row in letters]


def reward_of(word: str, answer: str) -> float:
    """Share of letters that are copied."""
    return sum(a == b for a, b in zip(word, answer, strict=False)) / LENGTH


def train(steps: int, prompts: int, answers: int, epochs: int, seed: int) -> list[float]:
    """Mean reward of every step."""
    model = new_model(ALPHABET, dim=32, layers=2, heads=2, ffn=64, max_length=16, seed=seed)
    policy: Policy = model.policy()
    optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=1.5e-3, weight_decay=0.0)

    sampler = TopProb(steps=LENGTH, temperature=1.0)  # which slot: the surest; which token: drawn from its law
    likelihood = Masked(levels=Ramp(gamma=0.6), support=FadingOut())  # masked views, more of them towards the end
    advantage, objective = Standardized(), Clip(epsilon=0.2)
    history = []

    for step in range(steps):
        # Roll out: g answers to each prompt, without gradient. Every draw is a hash of (seed, step, prompt, copy, ...).
        words = [word for word in prompts_of(step, prompts, seed) for _ in range(answers)]
        prompt = torch.arange(prompts).repeat_interleave(answers)
        copy = torch.arange(answers).repeat(prompts)
        canvas = model.modality.encode(words, slots=LENGTH)
        answer = sampler(policy, canvas, Random.root(seed, "rollout", step).fold(prompt).fold(copy))

        # Judge: a reward for each answer, compared with those of its siblings.
        reward = torch.tensor([reward_of(w, a) for w, a in zip(words, model.modality.visible(answer.x), strict=True)])
        keep = torch.ones(prompts, answers, dtype=torch.bool)
        gain = advantage(reward.view(prompts, answers), keep).flatten()

        # Fix what is scored: masked views are data. The old policy is scored on the very views the new one will see.
        views = likelihood.draw(canvas, answer, epochs, Random.root(seed, "views", step).fold(prompt).fold(copy))
        with torch.no_grad():
            old = [score(policy, canvas, answer.x, view) for (view,) in views]

        # Improve: one update per epoch on the clipped importance ratio of the hidden tokens.
        for (view,), before in zip(views, old, strict=True):
            new = score(policy, canvas, answer.x, view)
            terms = objective(
                Scored(
                    new=new[None],
                    old=before[None],
                    ref=None,
                    weight=view.weight[None],
                    advantage=gain,
                    valid=answer.valid,
                    group=prompt,
                    keep=keep.flatten(),
                )
            )
            loss = terms.numerator / view.weight.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.backbone.parameters(), 1.0)
            optimizer.step()

        # Log.
        history.append(float(reward.mean()))
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}  reward {history[-1]:.3f}  {words[0]} -> {model.modality.visible(answer.x[:1])[0]}")
    return history


def main() -> None:
    """Trains and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    history = train(**vars(options))
    tail = history[-10:]
    print(
        f"mean reward: first step {history[0]:.3f}, last steps {sum(tail) / len(tail):.3f}, "
        f"{time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
