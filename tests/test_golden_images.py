"""Numbers of the released MaskGRPO and MMaDA code for pictures, where that code is sound.

The recordings ignore padding, so these tests do the same. Their draws are fed in.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.modalities import Image
from unmask.modalities.codes import Codes
from unmask.modalities.layouts import MMaDA
from unmask.models import Backbone, BackboneConfig
from unmask.models.families import LLADA
from unmask.models.policy import BackbonePolicy
from unmask.random import Random
from unmask.samplers import Ancestral, Guided, MaskGIT
from unmask.samplers.base import Drawn, State
from unmask.samplers.maskgit import maskgit_counts
from unmask.schedules import Cosine, Linear
from unmask.types import Canvas, View
from unmask.views import Bernoulli, ExactCounts, Ramp, score

DATA = Path(__file__).parent / "data/golden"
SAMPLED = np.load(DATA / "02_samplers_image.npz")
CASES = json.loads((DATA / "02_samplers_image.json").read_text())["t2i"]
PROMPTS = np.load(DATA / "05_prompt_sft_image.npz")
ABOUT = json.loads((DATA / "05_prompt_sft.json").read_text())
SCHEDULES = {"cosine": Cosine(), "linear": Linear()}
MASK, OFFSET, CODES = 250, 256, 64


def backbone() -> Backbone:
    config = BackboneConfig(
        vocab=320, dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=128, eps=1e-5, theta=500_000.0
    )
    model, names = Backbone(config), LLADA.names(config)
    weights = np.load(DATA / "tiny_mmada_weights.npz")
    model.load_state_dict({names[key]: torch.tensor(weights[key]) for key in weights.files})
    return model


def canvas() -> Canvas:
    """The recorded prompts with their unconditional twins."""
    both = []
    for name in ("img_cond", "img_unc"):
        ids = torch.tensor(SAMPLED[name])
        slots = torch.arange(ids.shape[1] - 17, ids.shape[1] - 1).repeat(len(ids), 1)
        both.append(Canvas(ids, slots))
    return Canvas(both[0].ids, both[0].slots, blank=both[1])


POLICY = BackbonePolicy(backbone(), (OFFSET, OFFSET + CODES), MASK)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
@torch.no_grad()
def test_emerge_has_the_recorded_transition_probabilities_at_every_step(case):
    steps, schedule, c = case["T"], SCHEDULES[case["schedule"]], case["case"]
    denoiser, shown = Guided.of(POLICY, case["cfg"]), canvas()
    x, plan, written = torch.full((2, 16), CODES), torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, 16).long()
    for step in range(steps):
        expected = torch.tensor(SAMPLED[f"emerge_{c}_p{step}"])
        drawn = torch.tensor(SAMPLED[f"emerge_{c}_d{step}"])
        at = (x == CODES).nonzero()
        reveal = schedule.reveal(1 - step / steps, 1 - (step + 1) / steps)
        found = reveal * denoiser(shown, x, at).softmax(-1)
        if step < steps - 1:
            found = torch.cat([found, torch.full((len(at), 1), 1 - reveal)], 1)
        torch.testing.assert_close(found, expected[at[:, 0], at[:, 1]], atol=1e-5, rtol=0)
        new = (x == CODES) & (drawn < CODES)
        x, plan, written = drawn.where(new, x), torch.where(new, step, plan), drawn.where(new, written)

    class Planned(Ancestral):
        def plan(self, among, steps, random):
            return plan

    class Fed(State):
        def draw(self, logits, at, step):
            return Drawn(written[at[:, 0], at[:, 1]], None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmask.samplers.base.State", Fed)
        sampler = Planned(steps=steps, guidance=case["cfg"], schedule=schedule)
        answer = sampler(POLICY, shown, Random.root(0, "golden").fold(torch.arange(2)))
    assert torch.equal(answer.x + OFFSET, torch.tensor(SAMPLED[f"emerge_{c}"])[:, -17:-1])
    assert torch.equal(answer.revealed_at, plan)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_maskgit_gives_the_recorded_codes_with_the_compounded_noise(case):
    generator = torch.Generator().manual_seed(case["seed"])

    class Fed(MaskGIT):
        def gumbel(self, state, at, step):
            u = torch.rand(2, 16, generator=generator).clamp(min=1e-20)
            return -(-u.log()).clamp(min=1e-20).log()[at[:, 0], at[:, 1]]

    class Multinomial(State):
        """Draws as torch.multinomial does, which wants noise for every slot, known ones too."""

        def draw(self, logits, at, step):
            noise = torch.empty(32, CODES).exponential_(1, generator=generator).view(2, 16, CODES)
            return Drawn((logits.softmax(-1) / noise[at[:, 0], at[:, 1]]).argmax(-1), None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmask.samplers.base.State", Multinomial)
        sampler = Fed(
            steps=case["T"], guidance=case["cfg"], schedule=SCHEDULES[case["schedule"]], annealing="compounded"
        )
        answer = sampler(POLICY, canvas(), Random.root(0, "golden").fold(torch.arange(2)))
    assert torch.equal(answer.x, torch.tensor(SAMPLED[f"maskgit_model_{case['case']}"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_maskgit_writes_as_many_codes_per_step_as_recorded(case):
    counts = maskgit_counts(torch.tensor([16, 16]), case["T"], SCHEDULES[case["schedule"]])
    stay = 16 - counts.cumsum(1)
    stay[:, -1] = 1  # the recorded code leaves one mask behind in the sequence, though not in the codes it returns
    assert stay.T.tolist() == case["maskgit_mask_len"]
    ours, parity = (MaskGIT(steps=case["T"], annealing=one) for one in ("linear", "compounded"))
    assert [parity.tau(n, case["T"]) for n in range(case["T"])] == pytest.approx(case["maskgit_temperatures"])
    assert [ours.tau(n, case["T"]) for n in range(case["T"])] == pytest.approx(
        [1 - (n + 1) / case["T"] for n in range(case["T"])]
    )


def layout() -> MMaDA:
    ids = dict(zip(ABOUT["texts"], ABOUT["text_ids"], strict=True))
    roles = {"pad": "[iPAD]", "t2i": "<|t2i|>", "soi": "<|soi|>", "eoi": "<|eoi|>"}
    found = {role: ABOUT["reserved"][token] for role, token in roles.items()}
    return MMaDA(ids.__getitem__, found, ABOUT["tok"]["bos"], ABOUT["tok"]["eos"], 0)


def test_prompts_of_mmada_have_the_recorded_ids():
    mask = ABOUT["reserved"]["<|soi|>"] + 252
    image = Image(layout(), (mask + 13, mask + 13 + 8192), mask, None, Codes(lambda: None))
    image.text_part, image.cut = ABOUT["tok"]["max_text_len_attr"], True
    made = image.encode(ABOUT["texts"], 4)
    expected = torch.tensor(PROMPTS["gen_ids"])
    ids = made.ids.scatter(1, made.slots, expected[:, -5:-1])  # the recording has some codes filled in
    assert torch.equal(ids, expected)
    assert made.attend is not None and torch.equal(made.attend.long(), torch.tensor(PROMPTS["gen_mask"]))
    assert torch.equal(expected.gather(1, made.slots), torch.tensor(PROMPTS["t2i_img"]))
    assert made.blank is not None and torch.equal(made.blank.ids[0, :10], expected[1, :10])
    assert torch.equal(made.blank.slots, made.slots)


def test_rows_without_their_prompt_have_the_recorded_ids():
    from unmask.supervised import without_prompts

    class Fed:
        def uniform(self, n):
            return torch.tensor(PROMPTS["t2i_drop_u"])[:, None]

    mask = ABOUT["reserved"]["<|soi|>"] + 252
    image = Image(layout(), (mask + 13, mask + 13 + 8192), mask, None, Codes(lambda: None))
    image.text_part, image.cut = ABOUT["tok"]["max_text_len_attr"], True
    made = without_prompts(image.encode(ABOUT["texts"], 4), 0.5, Fed())
    expected = torch.tensor(PROMPTS["t2i_drop_ids"])
    assert torch.equal(made.ids.scatter(1, made.slots, expected[:, -5:-1]), expected)


@pytest.mark.parametrize(("number", "schedule"), list(enumerate(ABOUT["sft_mask"]["schedules"])))
def test_masks_of_fine_tuning_are_the_recorded_ones(number, schedule):
    u, noise, codes, shown, labels, share = (
        torch.tensor(PROMPTS[f"sft{number}_{name}"]) for name in ("u", "r", "codes", "in", "labels", "maskprob")
    )
    counts = ExactCounts(SCHEDULES[schedule], lowest=ABOUT["sft_mask"]["min_masking_rate"])
    torch.testing.assert_close(counts.share(u), share)
    mask = counts.mask(u, noise)
    assert torch.equal(mask, labels != -100)
    assert torch.equal(codes[~mask], shown[~mask]) and torch.equal(codes[mask], labels[mask])


@torch.no_grad()
def test_the_loss_of_fine_tuning_is_the_mean_over_masked_codes():
    ids, labels, mask = (torch.tensor(PROMPTS[name])[:2] for name in ("loss_inp", "loss_lab", "loss_img_mask"))
    slots = torch.arange(10, 26).repeat(2, 1)
    policy = BackbonePolicy(backbone(), (0, 320), MASK)  # the recording has its softmax over all ids
    x = labels.gather(1, slots)
    x = torch.where(x < 0, ids.gather(1, slots), x)
    logp = score(policy, Canvas(ids, slots), x, View(mask, mask.float()))
    assert float(-logp.sum() / mask.sum()) == pytest.approx(ABOUT["losses"]["recomputed"]["t2i_masked_only"], rel=1e-5)


@torch.no_grad()
def test_pictures_are_scored_over_the_codebook_on_uniform_masks():
    stored = np.load(DATA / "03_logps_image.npz")
    config = BackboneConfig(
        vocab=134656, dim=16, layers=2, heads=2, kv_heads=2, head_dim=8, ffn=32, eps=1e-5, theta=500_000.0, tie=True
    )
    state = {}
    for theirs, ours in LLADA.names(config).items():
        shape = tuple(Backbone(config).get_parameter(ours).shape) if ours != "emb.weight" else (134656, 16)
        weight = np.random.default_rng([2, zlib.crc32(theirs.encode())]).standard_normal(shape).astype(np.float32)
        scale = 1.0 if "wte" in theirs else 0.12
        norm = "norm" in theirs or "ln_f" in theirs
        state[ours] = torch.from_numpy(1 + 0.1 * weight if norm else scale * weight)
    model = Backbone(config)
    model.load_state_dict(state, strict=False)
    full, masks = torch.tensor(stored["img_full"]), torch.tensor(stored["img_masks"])
    first = 126349
    slots = torch.arange(10, 26).repeat(3, 1)
    policy = BackbonePolicy(model, (first, first + 8192), 126336)
    ratios = Ramp(gamma=0.8, cap=0.999).draw(2, Random.root(0, "golden").fold(torch.arange(3)))
    for epoch, seed in enumerate(stored["img_seeds"].tolist()):
        noise = torch.rand(3, 27, generator=torch.Generator().manual_seed(seed))[:, -17:-1]

        class Fed:
            def uniform(self, n, noise=noise):
                return noise

        mask = Bernoulli().draw(ratios[epoch], masks[epoch], Fed())
        assert torch.equal(mask, masks[epoch])
        logp = score(policy, Canvas(full, slots), full.gather(1, slots) - first, View(mask, torch.ones_like(noise)))
        torch.testing.assert_close(logp, torch.tensor(stored["img_old_logps"])[epoch], atol=1e-4, rtol=0)
