"""Greedy generation of the fixtures through the public path: chat prompt, canvas, sampler, tokens."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.random import Random
from unmask.samplers import Entropy, LowConfidence, Margin, TopProb
from unmask.samplers.base import dream_counts
from unmask.types import Canvas

DATA = Path(__file__).parent / "data"
TRACES = [
    (family, key)
    for family in ("llada", "llada_gqa")
    for key in load_file(DATA / family / "reference.safetensors")
    if key.startswith("gen_lowconf")
]


@pytest.mark.parametrize(("family", "key"), TRACES)
def test_low_confidence_traces_are_equal_token_for_token(family, key):
    reference = load_file(DATA / family / "reference.safetensors")
    found = re.fullmatch(r"gen_lowconf(?:_cfg(?P<w>[\d.]+))?_steps(?P<s>\d+)_len(?P<t>\d+)_block(?P<b>\d+)", key)
    assert found is not None
    model = unmask.load(DATA / family)
    sampler = LowConfidence(
        steps=int(found["s"]), block=int(found["b"]), temperature=0.0, guidance=float(found["w"] or 0)
    )
    canvas = model.modality.encode(["What is two plus two?"], int(found["t"]))
    assert torch.equal(canvas.ids[:, : reference["gen_prompt"].shape[1]], reference["gen_prompt"])
    answer = sampler(model.policy(ban=False), canvas, Random.root(0, "trace").fold(torch.arange(1)))
    assert torch.equal(answer.x, reference[key][:, reference["gen_prompt"].shape[1] :])


DREAM = {
    "gen_entropy_steps16_len16": Entropy(steps=16, temperature=0.0, counts="dream"),
    "gen_maskgit_plus_steps8_len16": TopProb(steps=8, temperature=0.0, counts="dream"),
    "gen_topk_margin_steps8_len16": Margin(steps=8, temperature=0.0, counts="dream"),
}


@pytest.mark.parametrize("key", DREAM)
def test_traces_of_dreams_orders_are_equal_token_for_token(key):
    reference = load_file(DATA / "dream" / "reference.safetensors")
    model, prompt = unmask.load(DATA / "dream"), reference["gen_prompt"]
    canvas = model.modality.encode(["What is two plus two?"], 16)
    assert torch.equal(canvas.ids[:, : prompt.shape[1]], prompt)
    answer = DREAM[key](model.policy(ban=False), canvas, Random.root(0, "trace").fold(torch.arange(1)))
    assert torch.equal(answer.x, reference[key][:, prompt.shape[1] :])


def test_dreams_counts_follow_its_rule():
    assert dream_counts(torch.tensor([16, 7, 0]), 8).tolist() == [
        [1, 2, 2, 2, 2, 2, 2, 3],
        [0, 0, 1, 1, 1, 1, 1, 2],
        [0] * 8,
    ]
    assert dream_counts(torch.tensor([5]), 1).tolist() == [[5]]


def one_block_after_the_other(model, prompt: list[int], slots: int, per_block: int) -> list[int]:
    """Greedy SDAR as its paper says (arXiv 2510.06303): blocks are counted from the start of the prompt; the one in
    which it ends is finished first; a block sees nothing after it. Slow, and without any of our samplers."""
    size = model.backbone.config.block
    ids = torch.tensor([[*prompt, *[model.ids.mask] * slots]])
    start = len(prompt) // size * size
    while start < ids.shape[1]:
        stop = start + size
        for step in range(per_block):
            count = size // per_block + (step < size % per_block)
            inside = ids[0, start:stop] == model.ids.mask
            probability, token = model.backbone.logits(ids[:, :stop])[0, start:stop].softmax(-1).max(-1)
            best = probability.masked_fill(~inside, -1).topk(min(count, int(inside.sum()))).indices
            ids[0, start + best] = token[best]
        start = stop
    return ids[0, len(prompt) :].tolist()


@torch.no_grad()
def test_sdar_finishes_the_block_in_which_the_prompt_ends_first():
    """For every remainder of the prompt's length, alone and in one batch with pads."""
    model = unmask.load(DATA / "sdar")
    size, per_block, random = model.backbone.config.block, 4, Random.root(0, "trace")
    prompts = ["a" * n for n in range(1, 2 * size + 1)]
    ids = [prompt for prompt, _ in model.modality.prompt_ids(prompts)]
    assert {len(one) % size for one in ids} == set(range(size))
    slots = 12
    sampler = LowConfidence(steps=slots // size * per_block, block=size, temperature=0.0)
    batch = sampler(model.policy(ban=False), model.modality.encode(prompts, slots), random.fold(torch.arange(2 * size)))
    for row, (prompt, known) in enumerate(zip(prompts, ids, strict=True)):
        expected = one_block_after_the_other(model, known, slots, per_block)
        alone = sampler(model.policy(ban=False), model.modality.encode([prompt], slots), random.fold(torch.arange(1)))
        assert alone.x[0].tolist() == expected == batch.x[row].tolist()
        blocks = (torch.arange(slots) + len(known) % size) // size
        for number in range(int(blocks.max())):
            assert alone.revealed_at[0][blocks == number].max() < alone.revealed_at[0][blocks == number + 1].min()


def test_the_text_trace_of_mmada_is_equal_token_for_token():
    reference = load_file(DATA / "mmada" / "reference.safetensors")
    model, prompt = unmask.load(DATA / "mmada", dtype="float32"), reference["mmu_prompt"]
    ids = torch.cat([prompt, torch.full((1, 16), model.ids.mask)], 1)
    canvas = Canvas(ids, torch.arange(prompt.shape[1], ids.shape[1])[None])
    sampler = LowConfidence(steps=8, block=8, temperature=0.0)
    answer = sampler(model.policy(ban=False), canvas, Random.root(0, "trace").fold(torch.arange(1)))
    assert torch.equal(answer.x, reference["mmu_greedy_new16_steps8_block8"][:, prompt.shape[1] :])


@pytest.mark.parametrize("folder", ["llada", "mmada", "dream", "sdar"])
def test_every_text_family_answers_a_batch_as_it_answers_alone(folder):
    model = unmask.load(DATA / folder, dtype="float32")
    prompts = ["What is two plus two?", "Hi", "Name three primes."]
    sampler = LowConfidence(steps=8, block=4, temperature=0.0)
    canvas = model.modality.encode(prompts, 8)
    together = sampler(model.policy(), canvas, Random.root(0, "pad").fold(torch.arange(3)))
    for row, prompt in enumerate(prompts):
        one = model.modality.encode([prompt], 8)
        alone = sampler(model.policy(), one, Random.root(0, "pad").fold(torch.arange(1)))
        assert torch.equal(alone.x[0], together.x[row])
    assert not bool(model.modality.banned[together.x].any())


def test_prompts_of_different_length_do_not_see_each_others_padding():
    model = unmask.load(DATA / "llada")
    prompts = ["What is two plus two?", "Hi", "Name three prime numbers, please."]
    sampler = LowConfidence(steps=8, temperature=0.0)
    together = sampler(model.policy(), model.modality.encode(prompts, 16), Random.root(0, "pad").fold(torch.arange(3)))
    for row, prompt in enumerate(prompts):
        alone = sampler(
            model.policy(), model.modality.encode([prompt], 16), Random.root(0, "pad").fold(torch.arange(1))
        )
        assert torch.equal(alone.x[0], together.x[row])


@torch.no_grad()
def test_pads_are_seen_only_if_asked():
    model = unmask.load(DATA / "llada")
    hidden = model.modality.encode(["What is two plus two?", "Hi"], 4)
    model.modality.hide_pads = False
    seen = model.modality.encode(["What is two plus two?", "Hi"], 4)
    assert torch.equal(seen.ids, hidden.ids)
    assert seen.attend is None and hidden.attend is not None
    at, x = torch.tensor([[0, 0], [1, 0]]), torch.full((2, 4), model.vocab)
    difference = (model.policy(ban=False)(seen, x, at) - model.policy(ban=False)(hidden, x, at)).abs().amax(1)
    assert difference[0] < 1e-5 < 0.1 < difference[1]


def test_banned_ids_are_never_answers_and_end_tokens_can_be():
    model = unmask.load(DATA / "llada")
    canvas = model.modality.encode(["Hi"] * 50, 16)
    answer = LowConfidence(steps=4)(model.policy(), canvas, Random.root(0, "ban").fold(torch.arange(50)))
    assert not bool(model.modality.banned[answer.x].any())
    assert not bool(model.modality.banned[model.modality.end_ids].any())
    assert bool(model.modality.banned[model.ids.mask]) and bool(model.modality.banned[len(model.tokenizer) :].all())


def test_valid_slots_end_with_the_first_end_token():
    modality = unmask.load(DATA / "llada").modality
    eos, eot = 281, 305
    x = torch.tensor([[5, eot, 7, eos], [5, 6, 7, 8], [eos, eos, 1, 2]])
    assert modality.valid(x).tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert [text.strip() for text in modality.visible(x)][2] == ""


def test_given_answers_are_closed_and_filled():
    modality = unmask.load(DATA / "llada").modality
    x, filled = modality.encode_answers(["hello"], 12)
    length = int(filled.sum())
    assert x[0, length - 1] == 305 and bool((x[0, length:] == 281).all())
    assert modality.visible(x) == ["hello"]
