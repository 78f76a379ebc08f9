"""Greedy generation of the LLaDA fixtures through the public path: chat prompt, canvas, sampler, tokens."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.random import Random
from unmask.samplers import LowConfidence

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
