"""Numbers of the released MaskGRPO code on a tiny random LLaDA, where that code is sound.

The recordings ignore padding (their prompts attend to their pads) and ban no id, so these tests do the same.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.models import Backbone, BackboneConfig
from unmask.models.families import LLADA
from unmask.models.policy import BackbonePolicy
from unmask.objectives import K3, Clip, SignClip, accumulate_gradient
from unmask.objectives.gradient import MicroBatch
from unmask.random import Random
from unmask.samplers import LowConfidence
from unmask.samplers.base import transfer_counts
from unmask.types import Answer, Canvas, Rollouts, View
from unmask.views import score

DATA = Path(__file__).parent / "data/golden"
MASK = 250
CONFIG = BackboneConfig(
    vocab=256, dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=128, eps=1e-5, theta=500_000.0
)
SAMPLED = np.load(DATA / "02_samplers_text.npz")
SCORED = np.load(DATA / "03_logps_text.npz")
GENERATE = {
    0: {"steps": 8, "block": 16},
    1: {"steps": 16, "block": 8},
    2: {"steps": 8, "block": 4},
    3: {"steps": 8, "block": 8, "guidance": 1.5},
    4: {"steps": 6, "block": 16},
    6: {"steps": 3, "block": 4},
}


def backbone(name: str) -> Backbone:
    model = Backbone(CONFIG)
    weights = np.load(DATA / f"tiny_llada{name}_weights.npz")
    names = LLADA.names(CONFIG)
    model.load_state_dict({names[key]: torch.tensor(weights[key]) for key in weights.files})
    return model


def policy(model: Backbone) -> BackbonePolicy:
    return BackbonePolicy(model, (0, CONFIG.vocab), MASK)


def canvas_of(prompt: torch.Tensor, t: int) -> Canvas:
    rows, length = prompt.shape
    ids = torch.cat([prompt, torch.full((rows, t), MASK)], 1)
    slots = torch.arange(length, length + t).expand(rows, t).contiguous()
    return Canvas(ids, slots, blank=Canvas(torch.full_like(ids, MASK), slots))


@pytest.mark.parametrize("case", GENERATE)
def test_low_confidence_decoding_gives_the_released_tokens(case):
    """Also where steps do not divide the tokens, and where there are fewer steps than blocks."""
    prompt = torch.tensor(SAMPLED["prompt"])
    sampler = LowConfidence(temperature=0.0, **GENERATE[case])
    random = Random.root(0, "golden").fold(torch.arange(len(prompt)))
    answer = sampler(policy(backbone("")), canvas_of(prompt, 16), random)
    assert torch.equal(answer.x, torch.tensor(SAMPLED[f"generate_{case}"])[:, prompt.shape[1] :])


@pytest.mark.parametrize(
    ("key", "guidance"), [("gen_eval_0", 0.0), ("gen_eval_1", 1.5), ("mmu_generate", 0.0), ("mmu_generate_fast", 0.0)]
)
def test_the_evaluation_samplers_of_the_release_are_the_same_sampler(key, guidance):
    prompt = torch.tensor(SAMPLED["prompt"])
    random = Random.root(0, "golden").fold(torch.arange(len(prompt)))
    sampler = LowConfidence(temperature=0.0, steps=8, block=8, guidance=guidance)
    answer = sampler(policy(backbone("")), canvas_of(prompt, 16), random)
    assert torch.equal(answer.x, torch.tensor(SAMPLED[key])[:, prompt.shape[1] :])


def test_transfer_counts_match_the_release():
    golden = json.loads((DATA / "01_schedules.json").read_text())["transfer_counts"]
    for case in golden:
        n, steps = case["n"], case["steps"]
        assert transfer_counts(torch.tensor([n, n - n // 2]), steps).tolist() == case["counts"]


def views_of(tag: str) -> list[View]:
    """The masks of every iteration: recorded, or (d1) everything, with prompt tokens hidden where R < 0.3."""
    eos = torch.tensor(SCORED["eos_mask"]).bool()
    views = []
    for iteration, seed in enumerate(SCORED["seeds"]):
        draws = torch.rand((4, 21), generator=torch.Generator().manual_seed(int(seed)))
        if tag == "d1_low_confidence":
            hide = torch.zeros(4, 21, dtype=torch.bool)
            hide[:, :5] = draws[:, :5] < 0.3
            views.append(View(torch.ones(4, 16, dtype=torch.bool), eos.float(), hide))
        else:
            mask = torch.tensor(SCORED[f"{tag}_completion_mask"])[iteration].bool()
            views.append(View(mask, mask.float()))
    return views


def rollouts() -> Rollouts:
    x = torch.tensor(SCORED["comp"])
    advantage = torch.tensor(SCORED["adv"])
    answer = Answer(x, torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool))
    keep = torch.ones(4, dtype=torch.bool)
    return Rollouts(
        canvas_of(torch.tensor(SCORED["prompt"]), 16), answer, torch.zeros_like(keep).long(), advantage, keep, advantage
    )


TAGS = ["uni_arlike", "uni_random", "d1_low_confidence"]


def test_uniform_masks_follow_from_the_recorded_draws():
    for iteration, seed in enumerate(SCORED["seeds"]):
        draws = torch.rand((4, 21), generator=torch.Generator().manual_seed(int(seed)))
        ratio = min(0.6 + 0.4 * (iteration + 1) / 4, 0.999)
        recorded = torch.tensor(SCORED["uni_random_completion_mask"])[iteration].bool()
        assert torch.equal(draws[:, 5:] < ratio, recorded)


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_log_probabilities_match_at_every_hidden_token(tag):
    """Everywhere, and not only where they count: the recordings hold visible tokens too."""
    batch = rollouts()
    current, old, reference = (policy(backbone(name)) for name in ("_cur", "", "_ref"))
    for iteration, view in enumerate(views_of(tag)):
        everywhere = View(view.mask, torch.ones_like(view.weight), view.hide)
        for model, golden in (
            (current, SCORED[f"{tag}_cur_logps_it{iteration}"]),
            (old, SCORED[f"{tag}_old_logps"][iteration]),
            (reference, SCORED[f"{tag}_ref_logps"][iteration]),
        ):
            found = score(model, batch.canvas, batch.answer.x, everywhere)
            assert float((found - torch.tensor(golden)).abs().max()) < 1e-4


CASES = json.loads((DATA / "03_intended.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['tag']}-{c['mean_method']}-{c['beta']}-{c['iteration']}")
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_intended_losses_gradients_clip_fractions_and_divergences_match(case, micro_batch):
    batch, view = rollouts(), views_of(case["tag"])[case["iteration"]]
    current = backbone("_cur")
    kl = K3(case["beta"]) if case["beta"] else None
    objective = (Clip if case["mean_method"] == "grpo" else SignClip)(epsilon=case["epsilon"], kl=kl)
    with torch.no_grad():
        old, ref = (score(policy(backbone(name)), batch.canvas, batch.answer.x, view)[None] for name in ("", "_ref"))
    keep, valid = batch.keep, batch.answer.valid
    denominator = objective.denominator(view.weight[None], valid, keep)
    batches = [
        MicroBatch(batch[rows], [view[rows]], old[:, rows], ref[:, rows]) for rows in torch.arange(4).split(micro_batch)
    ]
    stats = accumulate_gradient(
        objective,
        lambda rows, view: score(policy(current), rows.canvas, rows.answer.x, view),
        batches,
        denominator,
        lambda loss: loss.backward(),
    )
    norm = torch.stack([p.grad.norm() for p in current.parameters() if p.grad is not None]).norm()
    assert float(stats["loss"] / denominator) == pytest.approx(case["loss"], abs=1e-4)
    assert float(norm) == pytest.approx(case["grad_norm"], rel=1e-4)
    assert float(stats["clip_fraction"] / denominator) == pytest.approx(case["clip_fraction"], abs=1e-6)
    if case["kl"] is not None:
        assert float(stats["kl"] / denominator) == pytest.approx(case["kl"], abs=1e-4)
