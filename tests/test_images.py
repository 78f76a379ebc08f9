"""Prompts for pictures, generation of the fixtures, and the samplers of pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from safetensors.torch import load_file

import unmask
from toys import Table, answer_number, chi_square
from unmask.errors import UserError
from unmask.modalities import Image
from unmask.models import Model
from unmask.models.scratch import Scratch
from unmask.random import Random
from unmask.samplers import Ancestral, MaskGIT
from unmask.samplers.base import Drawn, State
from unmask.schedules import Cosine, Linear, Power
from unmask.tasks import Shapes

DATA = Path(__file__).parent / "data"


def places(rows: int, seed: int = 0) -> Random:
    return Random.root(seed, "test").fold(torch.arange(rows))


def fixture(name: str, tokenizer: str | None = None) -> Model:
    folder = None if tokenizer is None else DATA / tokenizer
    return unmask.load(DATA / name, dtype="float32", image_tokenizer=folder).answering("image")


def modality(model: Model) -> Image:
    assert isinstance(model.modality, Image)
    return model.modality


@pytest.fixture(scope="module")
def tiny() -> Model:
    task = Shapes()
    scratch = Scratch(dim=16, layers=2, heads=2, ffn=32, dtype="float32")
    return scratch.build(task.alphabet, 0, task.image_tokenizer, task.answer_length).answering("image")


# ---------------------------------------------------------------------------------------------------------- prompts


def test_mmadas_prompts_have_the_ids_of_the_fixture():
    reference = load_file(DATA / "mmada" / "reference.safetensors")
    canvas = modality(fixture("mmada")).encode(["a red cat"], 16)
    assert torch.equal(canvas.ids, reference["t2i_gen_input_ids"])
    assert canvas.blank is not None and torch.equal(canvas.blank.ids, reference["uncond_input_ids"])
    assert canvas.blank.attend is not None
    assert torch.equal(canvas.blank.attend.long(), reference["uncond_attention_mask"])
    assert torch.equal(canvas.slots[0], torch.arange(10, 26))


def dimoo() -> Model:
    model = fixture("dimoo", "dimoo_vqvae")
    image = modality(model)
    image.layout = replace(image.layout, instruction="Generate an image.")
    return model


def test_dimoos_prompts_have_row_ends_between_the_codes():
    reference, model = load_file(DATA / "dimoo" / "reference.safetensors"), dimoo()
    canvas = modality(model).encode(["a red cat"], 9)
    assert torch.equal(canvas.ids, reference["t2i_prompt_ids"])
    assert canvas.slots.tolist() == [[48, 49, 50, 52, 53, 54, 56, 57, 58]]
    blank = canvas.blank
    assert blank is not None and blank.attend is not None
    assert torch.equal(blank.ids[blank.attend][None, :41], reference["uncond_ids"])
    assert torch.equal(blank.ids[:, -16:], canvas.ids[:, -16:]) and torch.equal(blank.slots, canvas.slots)


def test_rows_of_a_batch_do_not_see_each_others_pads(tiny):
    captions = ["a circle", "a red circle left of a blue square"]
    policy, image, x = tiny.policy(), modality(tiny), torch.full((2, 64), 512)
    at = torch.tensor([[0, 0], [0, 63]])
    both = policy(image.encode(captions, 64), x, at)
    alone = policy(image.encode(captions[:1], 64), x[:1], at)
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)


def test_grids_come_from_the_model_or_are_square(tiny):
    image = modality(tiny)
    assert image.shape(64) == (8, 8)
    with pytest.raises(UserError, match=r"answer_length 60 is no square grid"):
        image.shape(60)
    tall = tiny.answering("text")
    tall.metadata = {"image_grid": [4, 15]}
    tall = tall.answering("image")
    assert modality(tall).shape(60) == (4, 15) and tall.slots == 60 and tiny.slots == 64
    picture = modality(tall).decode(torch.zeros(1, 60, dtype=torch.int64))[0]
    assert picture.size == (60, 16)


def test_captions_that_are_too_long_or_unknown_are_refused_in_one_line(tiny):
    for prompt, said in (("a " * 300, "caption of 303 tokens"), ("a hexagon", "cannot encode"), ([], "one text")):
        with pytest.raises(UserError, match=said) as raised:
            modality(tiny).encode([prompt], 64)
        assert "\n" not in str(raised.value)


def test_models_without_an_image_side_say_so():
    with pytest.raises(UserError, match="makes no pictures"):
        unmask.load(DATA / "llada").answering("image")
    with pytest.raises(UserError, match="no image tokenizer"):
        modality(fixture("mmada")).decode(torch.zeros(1, 16, dtype=torch.int64))


def test_models_that_make_pictures_are_saved_with_what_they_need(tiny, tmp_path):
    tiny.save(tmp_path / "model")
    again = unmask.load(tmp_path / "model").answering("image")
    codes = torch.arange(64)[None]
    before, after = (np.asarray(modality(one).decode(codes)[0]) for one in (tiny, again))
    assert (before == after).all() and again.slots == 64 and again.family.name == "mmada"


# ------------------------------------------------------------------------------------------------------- generation


class MMaDAFed(State):
    """Draws as the recorded code does: torch.multinomial over all slots, then one uniform number per slot."""

    generator = torch.Generator()

    def draw(self, logits, at, step):
        noise = torch.empty(self.x.numel(), logits.shape[1]).exponential_(1, generator=self.generator)
        return Drawn((logits.softmax(-1) / noise[at[:, 1]]).argmax(-1), None, None)


class MMaDAFedSampler(MaskGIT):
    def gumbel(self, state, at, step):
        u = torch.rand(state.x.shape, generator=MMaDAFed.generator).clamp(min=1e-20)
        return -(-u.log()).clamp(min=1e-20).log()[at[:, 0], at[:, 1]]


@pytest.mark.parametrize("annealing", ["linear", "compounded"])
@pytest.mark.parametrize("guidance", ["0", "1.5"])
def test_mmadas_traces_are_equal_code_for_code_and_can_be_seen(guidance, annealing, monkeypatch):
    reference = load_file(DATA / "mmada" / "reference.safetensors")
    model = fixture("mmada", "magvitv2")
    MMaDAFed.generator.manual_seed(11)
    monkeypatch.setattr("unmask.samplers.base.State", MMaDAFed)
    sampler = MMaDAFedSampler(steps=4, guidance=float(guidance), annealing=annealing)
    answer = sampler(model.policy(), modality(model).encode(["a red cat"], 16), places(1))
    assert torch.equal(answer.x, reference[f"t2i_codes_cfg{guidance}_steps4_seed11"])
    assert modality(model).decode(answer.x)[0].size == (64, 64)


class DiMOOFed(State):
    """Draws as the recorded code does: uniform numbers for the codes of the open slots, then for their confidences."""

    generator = torch.Generator()

    def draw(self, logits, at, step):
        u = torch.rand(1, *logits.shape, generator=self.generator)[0]
        return Drawn((logits - (-(u + 1e-20).log() + 1e-20).log()).argmax(-1), None, None)


class DiMOOFedSampler(MaskGIT):
    def gumbel(self, state, at, step):
        u = torch.rand(1, len(at), generator=DiMOOFed.generator)[0]
        return -(-(u + 1e-20).log() + 1e-20).log()


@pytest.mark.parametrize("guidance", ["0.0", "4.0"])
def test_dimoos_traces_are_equal_code_for_code_and_can_be_seen(guidance, monkeypatch):
    reference, model = load_file(DATA / "dimoo" / "reference.safetensors"), dimoo()
    DiMOOFed.generator.manual_seed(13)
    monkeypatch.setattr("unmask.samplers.base.State", DiMOOFed)
    sampler = DiMOOFedSampler(steps=4, guidance=float(guidance), annealing="none")
    answer = sampler(model.policy(), modality(model).encode(["a red cat"], 9), places(1))
    assert torch.equal(answer.x + 316, reference[f"t2i_codes_plus_offset_cfg{guidance}_steps4_seed13"])
    assert modality(model).decode(answer.x)[0].size == (48, 48)


SAMPLERS = [
    *(Ancestral(steps=5, schedule=one) for one in (Cosine(), Linear(), Power())),
    *(
        Ancestral(steps=7, exact_count=True),
        MaskGIT(steps=5),
        MaskGIT(steps=3, schedule=Linear(), annealing="compounded"),
    ),
    *(Ancestral(steps=1), MaskGIT(steps=1), MaskGIT(steps=100), Ancestral(steps=100)),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: f"{type(one).__name__}{one.steps}")
def test_in_painting_keeps_every_given_code_and_fills_the_rest(sampler, tiny):
    canvas = modality(tiny).encode(["a red circle", "two squares", "a circle"], 64)
    given = torch.randint(0, 512, (3, 64), generator=torch.Generator().manual_seed(0))
    given[0, 10:40], given[1] = 512, 512
    answer = sampler(tiny.policy(), canvas, places(3), given=given)
    assert torch.equal(answer.x[given < 512], given[given < 512])
    assert int(answer.x.max()) < 512 and bool((answer.revealed_at[given < 512] == -1).all())
    assert bool((answer.revealed_at[given == 512] >= 0).all())
    assert int(answer.revealed_at.max()) < sampler.steps


@pytest.mark.parametrize("sampler", [Ancestral(steps=4), MaskGIT(steps=4)])
def test_guidance_of_scale_zero_is_no_guidance_and_any_other_is_some(sampler, tiny):
    canvas = modality(tiny).encode(["a red circle"], 64)
    bare = replace(canvas, blank=None)  # would be asked for
    first, second = (sampler(tiny.policy(), one, places(1)).x for one in (canvas, bare))
    assert torch.equal(first, second)
    assert not torch.equal(first, replace(sampler, guidance=50.0)(tiny.policy(), canvas, places(1)).x)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Power(3.0)], ids=["cosine", "linear", "power"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_emerge_has_exactly_the_law_of_its_transitions(schedule, steps):
    """Against the chain over all states: each masked slot stays with a(n+1)/a(n), else a token of the softmax."""
    k, t, rows = 2, 3, 40_000
    toy = Table(k, t, seed=1)
    law = {(k,) * t: 1.0}
    for step in range(steps):
        reveal, after = schedule.reveal(1 - step / steps, 1 - (step + 1) / steps), {}
        for state, probability in law.items():
            tokens = toy.logits[toy.state(torch.tensor([state]))[0]].softmax(-1).tolist()
            options: list[tuple[tuple[int, ...], float]] = [((), probability)]
            for slot in range(t):
                ways = [(state[slot], 1.0)]
                if state[slot] == k:
                    ways = [(k, 1 - reveal), *((v, reveal * tokens[slot][v]) for v in range(k))]
                options = [((*head, v), p * q) for head, p in options for v, q in ways if q > 0]
            for state_after, p in options:
                after[state_after] = after.get(state_after, 0.0) + p
        law = after
    expected = torch.zeros(k**t, dtype=torch.float64)
    for state, probability in law.items():
        expected[answer_number(torch.tensor([state]), k)] += probability
    answer = Ancestral(steps=steps, schedule=schedule)(toy, toy.canvas(rows), places(rows, seed=10 + steps))
    counts = torch.bincount(answer_number(answer.x, k), minlength=k**t)
    assert abs(chi_square(counts, rows * expected)) < 3.5


def test_emerge_asks_logits_for_the_slots_it_opens_only(tiny):
    policy, asked = tiny.policy(), []

    class Counting(type(policy)):
        def __call__(self, canvas, x, at):
            asked.append(len(at))
            return policy(canvas, x, at)

    counting = Counting(policy.forward, policy.vocab, policy.mask_id)
    answer = Ancestral(steps=16)(counting, modality(tiny).encode(["a circle"] * 2, 64), places(2))
    assert sum(asked) == 128 and asked == torch.bincount(answer.revealed_at.flatten())[-len(asked) :].tolist()


def test_pictures_go_to_codes_and_back(tiny):
    rows = [Shapes().rows("train")[i] for i in range(40)]
    x, filled = modality(tiny).encode_answers([row["completion"] for row in rows], 64)
    assert bool(filled.all()) and bool(modality(tiny).valid(x).all())
    for row, picture in zip(rows, modality(tiny).decode(x), strict=True):
        assert (np.asarray(picture) == np.asarray(row["completion"])).all()
    large = rows[0]["completion"].resize((100, 64), Pictures.Resampling.NEAREST)
    assert modality(tiny).encode_answers([large], 64)[0].shape == (1, 64)
