"""The backbone against recorded numbers of the original code, and its economical paths against its plain one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from unmask.models import Backbone, BackboneConfig, load
from unmask.models import backbone as module
from unmask.models.families import LLADA, Settings

DATA = Path(__file__).parent / "data"
FAMILY_FOLDERS = ("llada", "llada_gqa")

TINY = BackboneConfig(vocab=37, dim=16, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=24, eps=1e-5, theta=1e4)
VARIANTS = {
    "plain": {},
    "biases": {"bias": True},
    "qkv_bias": {"qkv_bias": True, "kv_heads": 4},
    "head_norm": {"qk_norm": "head"},
    "full_norm": {"qk_norm": "full"},
    "tied": {"tie": True},
    "scaled": {"scale_logits": True, "emb_scale": True},
    "shifted": {"shift": True},
    "rounded_rope": {"rope_fp32": False},
    "ungated": {"gated": False, "activation": "gelu"},
    "relu": {"activation": "relu"},
    "norm_biases": {"norm_bias": True},
    "output_bias": {"o_bias": True},
    "block_causal": {"block": 2, "count_real": True},
    "padding_row": {"padding_row": 5},
}


def reference(folder):
    path = DATA / folder
    return load_file(path / "reference.safetensors"), json.loads((path / "reference.json").read_text())


def tiny(seed=0, dtype=torch.float32, **changes):
    model = Backbone(replace(TINY, **changes)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(1 + 0.2 * noise if p.ndim == 1 else 0.4 * noise)
    return model


def tokens(b=3, l=7, vocab=37, seed=0):  # noqa: E741 (the alphabet of shapes)
    return torch.randint(vocab, (b, l), generator=torch.Generator().manual_seed(seed))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(a, b, relative):
    """Relative to the largest entry."""
    return (a - b).abs().max().item() <= relative * b.abs().max().item()


# ------------------------------------------------------------------------------------------------ recorded numbers


@pytest.mark.parametrize("folder", FAMILY_FOLDERS)
def test_logits_equal_the_original_code(folder):
    t, _ = reference(folder)
    model, ids, real = load(DATA / folder).backbone, t["input_ids"], t["attention_mask"].bool()
    with torch.no_grad():
        assert (model.logits(ids) - t["logits_nomask"]).abs().max() <= 1e-5
        for attend in (real, t["attention_mask"]):
            padded = model.logits(ids, attend)
            assert (padded - t["logits_padmask"]).abs().max() <= 1e-5
            assert (padded - t["logits_bias_outer"])[real].abs().max() <= 1e-5
            assert (padded - t["logits_attention_mask_causal_trap"]).abs().max() > 0.3


@pytest.mark.parametrize("folder", FAMILY_FOLDERS)
def test_bf16_logits_equal_the_original_code(folder):
    t, _ = reference(folder)
    with torch.no_grad():
        logits = load(DATA / folder, dtype="bfloat16").backbone.logits(t["input_ids"])
    assert logits.dtype == torch.float32
    assert (logits - t["logits_nomask_bf16"].float()).abs().max() <= 0.03


@pytest.mark.parametrize("folder", FAMILY_FOLDERS)
def test_hidden_states_equal_the_original_code(folder):
    t, _ = reference(folder)
    model, seen = load(DATA / folder).backbone, {}
    for name, part in (("hidden_0", model.emb), ("hidden_1", model.blocks[0]), ("hidden_last_normed", model.norm)):
        part.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad():
        model.logits(t["input_ids"])
    for name, value in seen.items():
        assert (value - t[name]).abs().max() <= 1e-5, name


@pytest.mark.parametrize("folder", FAMILY_FOLDERS)
@pytest.mark.parametrize("economical", [False, True])
def test_loss_and_gradients_equal_the_original_code(folder, economical):
    t, facts = reference(folder)
    model = load(DATA / folder).backbone
    masked, targets = t["masked"], t["targets"][t["masked"]]
    if economical:
        loss = -model(t["input_ids"], rows=masked.flatten().nonzero()[:, 0], targets=targets).mean()
    else:
        loss = F.cross_entropy(model.logits(t["input_ids"])[masked], targets)
    grads = gradients(model, loss)
    names = LLADA.names(model.config)
    assert loss.item() == pytest.approx(facts["loss_mean_ce_masked_nomask"], rel=1e-6)
    assert facts["grad_norms"].keys() == names.keys()
    for name, norm in facts["grad_norms"].items():
        assert float(grads[names[name]].norm()) == pytest.approx(norm, rel=1e-5), name
    stored = {name.removeprefix("grad."): value for name, value in t.items() if name.startswith("grad.")}
    assert stored
    for name, value in stored.items():
        assert close(grads[names[name]], value, 2e-6), name


def test_logits_equal_the_golden_model():
    data = dict(np.load(DATA / "golden_llada.npz"))
    ids, logits = (torch.from_numpy(data.pop(name)) for name in ("fwd_in", "fwd_logits"))
    shape = BackboneConfig(vocab=256, dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=128, eps=1e-5, theta=5e5)
    model, names = Backbone(shape), LLADA.names(shape)
    assert names.keys() == data.keys()
    model.load_state_dict({names[name]: torch.from_numpy(value) for name, value in data.items()})
    with torch.no_grad():
        assert (model.logits(ids) - logits).abs().max() <= 1e-5


def test_llada_8b_has_its_published_size():
    config = json.loads((DATA / "llada" / "config.json").read_text()) | {
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 32,
        "mlp_hidden_size": 12288,
        "vocab_size": 126_464,
        "embedding_size": None,
    }
    shape = LLADA.read(Settings(config, "config.json"))
    with torch.device("meta"):
        model = Backbone(shape)
    assert sum(p.numel() for p in model.parameters()) == 8_015_581_184
    names = LLADA.names(shape)
    assert len(names) == 291
    assert set(names.values()) == model.state_dict().keys()


# ------------------------------------------------------------------------------------- economical and plain paths


def plain_log_probabilities(model, ids, attend, rows, vocab, targets, banned, temperature):
    logits = model(ids, attend).flatten(0, 1)[rows][:, slice(*vocab)]
    if banned is not None:
        logits = logits.masked_fill(banned, -torch.inf)
    return (logits / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_and_vocabulary_slice_equal_the_full_form(variant):
    model, ids = tiny(dtype=torch.float64, **VARIANTS[variant]), tokens()
    attend = torch.ones_like(ids, dtype=torch.bool)
    attend[1, :3] = False
    rows = torch.tensor([20, 0, 7, 8, 13, 14, 1])
    banned = torch.zeros(20, dtype=torch.bool)
    banned[4] = True
    with torch.no_grad():
        full = model(ids, attend)
        assert torch.allclose(model(ids, attend, rows=rows), full.flatten(0, 1)[rows], rtol=0, atol=1e-12)
        part = model(ids, attend, rows=rows, vocab=(10, 30), banned=banned)
        assert torch.allclose(model(ids, attend, vocab=(10, 30)), full[..., 10:30], rtol=0, atol=1e-12)
    assert bool((part[:, 4] == -torch.inf).all())
    keep = ~banned
    assert torch.allclose(part[:, keep], full.flatten(0, 1)[rows][:, 10:30][:, keep], rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_log_probabilities_equal_the_plain_form(variant, temperature, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 20 + 1)  # two rows per chunk
    for dtype, relative in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        model, ids = tiny(dtype=dtype, **VARIANTS[variant]), tokens()
        rows, targets = torch.tensor([20, 0, 7, 8, 13]), torch.tensor([3, 0, 19, 19, 5])
        banned = torch.zeros(20, dtype=torch.bool)
        banned[[4, 11]] = True
        upstream = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7], dtype=dtype)
        arguments = {"rows": rows, "vocab": (10, 30), "targets": targets, "banned": banned, "temperature": temperature}
        got = model(ids, **arguments)
        expected = plain_log_probabilities(model, ids, None, **arguments)
        assert got.dtype == dtype
        assert close(got, expected, relative)
        mine, theirs = gradients(model, (got * upstream).sum()), gradients(model, (expected * upstream).sum())
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert close(mine[name], value, relative), name


def test_log_probabilities_of_all_positions_need_no_rows():
    model, ids = tiny(), tokens()
    expected = model(ids).log_softmax(-1).gather(2, ids[..., None]).flatten()
    assert torch.allclose(model(ids, targets=ids.flatten()), expected, atol=1e-5)


def test_log_probability_of_a_banned_target_is_minus_infinity_and_has_no_gradient():
    model, ids, banned = tiny(bias=True), tokens(), torch.zeros(37, dtype=torch.bool)
    banned[5] = True
    got = model(ids, rows=torch.tensor([0]), targets=torch.tensor([5]), banned=banned)
    assert got.item() == -torch.inf
    assert gradients(model, got.sum())["head.bias"][5] == 0


def test_chunked_gradient_passes_gradcheck(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 11)
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (9, 4), (9,)))
    hidden, weight, bias = (draw.requires_grad_() for draw in draws)
    targets, banned = torch.tensor([0, 3, 8, 3, 1]), torch.zeros(9, dtype=torch.bool)
    banned[2] = True

    def f(hidden, weight, bias):
        return module._TargetLogProbabilities.apply(hidden, weight, bias, targets, banned, 0.5, 1.3, torch.float64)

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


def test_chunked_path_keeps_no_matrix_of_logits(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 4 * 37)
    model, ids, saved = tiny(), tokens(8, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        model(ids, targets=ids.flatten())
    assert (128, 37) not in saved
    assert (128, 16) in saved


def test_frozen_head_gets_no_gradient_and_the_rest_the_same_one():
    ids = tokens()
    arguments = {"rows": torch.tensor([1, 9]), "targets": torch.tensor([3, 4])}
    model = tiny(dtype=torch.float64)
    full = gradients(model, model(ids, **arguments).sum())
    model.head.requires_grad_(False)
    frozen = gradients(model, model(ids, **arguments).sum())
    assert full.keys() - frozen.keys() == {"head.weight"}
    assert all(torch.equal(frozen[name], full[name]) for name in frozen)


def test_bf16_weight_gradient_is_accumulated_in_float32(monkeypatch):
    model = tiny().bfloat16()
    ids = tokens(64, 16)
    whole = gradients(model, model(ids, targets=ids.flatten()).sum())
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 37)  # one row per chunk: a bf16 sum of 1024 terms would be off by far
    single = gradients(model, model(ids, targets=ids.flatten()).sum())
    assert single["head.weight"].dtype == torch.bfloat16
    assert close(single["head.weight"], whole["head.weight"], 2**-7)


@pytest.mark.parametrize("shape", [{}, {"tie": True}])
def test_autocast_gives_float32_log_probabilities_and_gradients_in_the_parameters_dtype(shape):
    model, ids = tiny(**shape), tokens()
    arguments = {"rows": torch.tensor([1, 9]), "targets": torch.tensor([3, 4])}
    with torch.autocast("cpu", torch.bfloat16):
        got = model(ids, **arguments)
        plain = model(ids, rows=arguments["rows"]).log_softmax(-1).gather(1, arguments["targets"][:, None])[:, 0]
    assert got.dtype == torch.float32
    assert torch.allclose(got, plain, atol=1e-5)
    exact = gradients(model, model(ids, **arguments).sum())
    mixed = gradients(model, got.sum())
    assert all(g.dtype == torch.float32 for g in mixed.values())
    assert close(mixed["emb.weight"], exact["emb.weight"], 0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rows_at_all_still_run_backward(variant):
    model, ids, none = tiny(**VARIANTS[variant]), tokens(), torch.zeros(0, dtype=torch.long)
    assert model(ids, rows=none).shape == (0, 37)
    got = model(ids, rows=none, vocab=(3, 9), targets=none)
    assert got.shape == (0,)
    grads = gradients(model, got.sum())
    assert len(grads) == len(dict(model.named_parameters()))
    assert all(not g.any() for g in grads.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant):
    model, ids = tiny(dtype=torch.float64, **VARIANTS[variant]), tokens()
    arguments = {"rows": torch.tensor([1, 9]), "targets": torch.tensor([3, 4])}
    kept = gradients(model, model(ids, **arguments).sum())
    model.checkpointing = True
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))
    recomputed = gradients(model, model(ids, **arguments).sum())
    assert len(calls) == 2
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


# ------------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_pads_change_nothing_in_float64(variant):
    model, ids = tiny(dtype=torch.float64, **VARIANTS[variant]), tokens()
    padded = torch.cat([torch.full((3, 4), 5), ids], 1)
    attend = torch.arange(11).expand(3, 11) >= 4
    with torch.no_grad():
        alone, behind = model(ids), model(padded, attend)[:, 4:]
    first = 1 if model.config.shift else 0  # it re-uses its own output only where nothing stands before it
    assert (alone - behind)[:, first:].abs().max() <= 1e-9


def test_positions_act_through_their_differences():
    model, ids = tiny(dtype=torch.float64), tokens()
    start = torch.tensor([[0], [100], [2000]])
    with torch.no_grad():
        assert (model(ids) - model(ids, None, torch.arange(7) + start)).abs().max() <= 1e-9
        assert (model(ids) - model(ids, None, torch.arange(7) * 2 + start)).abs().max() > 1e-3


def test_block_causal_attention_sees_no_later_block():
    model, ids = tiny(dtype=torch.float64, block=3), tokens(2, 8)
    with torch.no_grad():
        whole = model(ids)
        for block in range(3):
            changed = ids.clone()
            changed[:, 3 * block :] = (changed[:, 3 * block :] + 1) % 37
            assert torch.equal(model(changed)[:, : 3 * block], whole[:, : 3 * block])
            within = (whole - model(changed))[:, 3 * block : 3 * block + 3].abs().amax(-1)
            assert bool((within > 1e-6).all())
        given = tiny(dtype=torch.float64)(ids, block=(torch.arange(8) // 3).expand(2, 8))
    assert torch.equal(given, whole)


def test_blocks_are_counted_from_the_first_visible_token():
    model, ids = tiny(dtype=torch.float64, block=4, count_real=True), tokens(2, 10)
    padded = torch.cat([torch.full((2, 3), 5), ids], 1)
    attend = torch.arange(13).expand(2, 13) >= 3
    with torch.no_grad():
        alone, behind = model(ids), model(padded, attend)
    assert bool(behind.isfinite().all())
    assert (alone - behind[:, 3:]).abs().max() <= 1e-9


def test_a_pad_that_sees_no_key_stays_finite():
    model, ids = tiny(dtype=torch.float64), tokens(1, 6)
    attend = torch.tensor([[False, False, True, True, True, True]])
    block = torch.tensor([[-1, -1, 0, 0, 1, 1]])
    with torch.no_grad():
        assert bool(model(ids, attend, block=block).isfinite().all())


def test_a_padding_row_gets_no_gradient_as_an_input():
    ids = torch.tensor([[5, 3, 5, 1]])
    plain, padded = (gradients(m, m(ids).square().mean()) for m in (tiny(), tiny(padding_row=5)))
    assert plain["emb.weight"][5].any()
    assert not padded["emb.weight"][5].any()
    assert torch.equal(plain["emb.weight"][3], padded["emb.weight"][3])


def test_shift_moves_logits_by_one_position():
    ids = tokens()
    with torch.no_grad():
        raw, aligned = tiny()(ids), tiny(shift=True)(ids)
    assert torch.equal(aligned[:, 0], raw[:, 0])
    assert torch.equal(aligned[:, 1:], raw[:, :-1])
