"""Every family against recorded numbers of its authors' code, and every key of its configuration."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models import Backbone, load
from unmask.models.families import FAMILIES, family_of

DATA = Path(__file__).parent / "data"
FOLDERS = ("llada", "llada_gqa", "mmada", "dimoo", "dream", "sdar")
NOT_READ = ("reference.json", "reference.safetensors")


def reference(folder):
    path = DATA / folder
    return load_file(path / "reference.safetensors"), json.loads((path / "reference.json").read_text())


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


def shifted(raw):
    return torch.cat([raw[:, :1], raw[:, :-1]], 1)


def copy_of(folder, tmp_path, config=None, weights=None):
    """A copy of a fixture with other values in its config and other tensors."""
    copy = tmp_path / folder
    shutil.copytree(DATA / folder, copy, ignore=shutil.ignore_patterns(*NOT_READ))
    settings = json.loads((copy / "config.json").read_text()) | (config or {})
    (copy / "config.json").write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    if weights is not None:
        save_file(weights, copy / "model.safetensors")
    return copy


def error_of(folder):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ recorded numbers


@torch.no_grad()
def test_dream_logits_equal_the_original_code_and_are_aligned():
    t, _ = reference("dream")
    model, ids, real = load(DATA / "dream").backbone, t["input_ids"], t["attention_mask"].bool()
    assert difference(model.logits(ids), t["logits_shifted_full"]) <= 1e-5
    assert difference(model.logits(ids), shifted(t["logits_raw_full"])) <= 1e-5
    for attend in (real, t["attention_mask"]):
        padded = model.logits(ids, attend)
        assert difference(padded, shifted(t["logits_raw_keypad_cumsum_pos"])) <= 1e-5
        known = real & real.roll(1, 1)  # the recorded rows of pads are meaningless, and the shift brings one of them in
        for name in ("logits_raw_4d_cumsum_pos", "logits_raw_4d_default_pos"):
            assert difference(padded[known], shifted(t[name])[known]) <= 1e-5
    given = model(ids, real, t["position_ids"])
    assert torch.equal(given, model.logits(ids, real))


@torch.no_grad()
def test_dream_bf16_logits_equal_the_original_code():
    t, _ = reference("dream")
    logits = load(DATA / "dream", dtype="bfloat16").backbone.logits(t["input_ids"])
    assert difference(logits, shifted(t["logits_raw_full_bf16"])) <= 0.03


@torch.no_grad()
def test_sdar_logits_equal_the_original_code():
    t, facts = reference("sdar")
    model, ids = load(DATA / "sdar").backbone, t["input_ids"]
    assert model.config.block == facts["block_size"]
    assert difference(model.logits(ids), t["logits_block"]) <= 1e-5
    block = torch.arange(ids.shape[1]) // facts["block_size"]
    assert torch.equal(block[:, None] >= block, t["block_mask"][0, 0])
    one = torch.zeros_like(ids)
    assert difference(model(ids, block=one), t["logits_full"]) <= 1e-5


@torch.no_grad()
def test_mmada_logits_equal_the_original_code():
    t, facts = reference("mmada")
    model = load(DATA / "mmada", dtype="float32")
    assert model.images is not None
    start, stop = model.images.vocab
    ids, attend = t["input_ids"], t["attention_mask"]
    logits, text = model.backbone.logits(ids, attend), facts["llm_vocab_size"]
    assert difference(logits[:, -17:-1, start:stop], t["logits_image_slice"]) <= 1e-5
    assert difference(logits[..., :text], t["logits_text_slice_all_positions"]) <= 1e-5
    assert difference(model.backbone.logits(ids)[..., :text], t["logits_nomask_text_slice"]) <= 1e-5


@torch.no_grad()
def test_dimoo_logits_equal_the_original_code():
    t, facts = reference("dimoo")
    model = load(DATA / "dimoo", dtype="float32")
    ids, offset = t["input_ids"], facts["image_token_offset"]
    logits = model.backbone.logits(ids)
    assert difference(logits[..., :offset], t["logits_text_slice"]) <= 1e-5
    masked = ids[0] == model.ids.mask
    assert difference(logits[0, masked, offset:], t["logits_image_slice_masked_positions"]) <= 1e-5


@pytest.mark.parametrize(
    ("folder", "loss_name"),
    [("dream", "loss_mean_ce_masked_shifted_full"), ("mmada", "loss_mean_ce_masked_with_outer_bias")],
)
@pytest.mark.parametrize("economical", [False, True])
def test_loss_and_gradients_equal_the_original_code(folder, loss_name, economical):
    t, facts = reference(folder)
    loaded = load(DATA / folder, dtype="float32")
    model, masked, targets = loaded.backbone, t["masked"], t["targets"][t["masked"]]
    attend = t["attention_mask"].bool() if folder == "mmada" else None
    if economical:
        loss = -model(t["input_ids"], attend, rows=masked.flatten().nonzero()[:, 0], targets=targets).mean()
    else:
        loss = F.cross_entropy(model.logits(t["input_ids"], attend)[masked], targets)
    loss.backward()
    grads = {theirs: model.get_parameter(ours).grad for theirs, (ours,) in loaded.names.items()}
    assert loss.item() == pytest.approx(facts[loss_name], rel=1e-6)
    assert facts["grad_norms"].keys() == grads.keys()
    for name, norm in facts["grad_norms"].items():
        assert float(grads[name].norm()) == pytest.approx(norm, rel=1e-5), name
    stored = {name.removeprefix("grad."): value for name, value in t.items() if name.startswith("grad.")}
    assert stored
    for name, value in stored.items():
        assert difference(grads[name], value) <= 2e-6 * value.abs().max(), name


# ------------------------------------------------------------------------------------------------ reading and writing


@pytest.mark.parametrize("folder", FOLDERS)
def test_saving_gives_back_what_was_loaded(folder, tmp_path):
    source, out = DATA / folder, tmp_path / "out"
    load(source).save(out)
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    files = {file.name for file in source.iterdir()} - set(NOT_READ) - {"model.safetensors"}
    for name in files:
        assert (source / name).read_bytes() == (out / name).read_bytes()
    notes = {"unmask.json"} if folder in ("mmada", "dimoo") else set()
    assert {file.name for file in out.iterdir()} == files | {"model.safetensors"} | notes


@pytest.mark.parametrize("folder", FOLDERS)
def test_special_ids_are_those_of_the_tokenizer(folder):
    _, facts = reference(folder)
    model, named = load(DATA / folder), facts["special_ids"]
    mask = next(named[name] for name in ("<|mdm_mask|>", "<|mask|>", "<|MASK|>") if name in named)
    assert model.ids.mask == mask
    assert model.ids.eos == model.ids.pad == named["<|endoftext|>"]
    assert model.ids.end_of_turn == named.get("<|eot_id|>", named.get("<|im_end|>"))
    fills = folder == "dimoo"  # its answers are closed with what fills them up
    assert model.modality.closing == (named["<|reserved_token_254|>"] if fills else model.ids.end_of_turn)
    assert bool(model.modality.banned[mask])
    assert bool(model.modality.banned[len(model.tokenizer) :].all())
    assert int(model.modality.banned.sum()) == model.vocab - len(model.tokenizer) + 1


def test_image_ids_follow_from_the_tokenizer():
    _, facts = reference("mmada")
    images = load(DATA / "mmada").images
    assert images is not None
    assert images.vocab == (facts["image_token_offset"], facts["image_token_offset"] + facts["codebook_size"])
    named = {"[iPAD]": "pad"}
    assert images.roles == {named.get(name, name.strip("<|>")): number for name, number in facts["role_ids"].items()}
    _, facts = reference("dimoo")
    images = load(DATA / "dimoo").images
    assert images is not None
    assert images.vocab == (facts["image_token_offset"], facts["vocab_size"])
    assert images.roles["row_end"] == facts["newline_id"]
    assert load(DATA / "llada").images is None


def test_a_moved_image_offset_is_noticed(tmp_path):
    folder = copy_of("mmada", tmp_path)
    load(folder).save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "unmask.json").read_text()) == {"image_offset": 306}
    (tmp_path / "out" / "unmask.json").write_text('{"image_offset": 305}')
    message = error_of(tmp_path / "out")
    assert "305" in message
    assert "306" in message
    assert load(tmp_path / "out", image_offset=305).images.offset == 305
    assert "8500" in error_of(copy_of("mmada", tmp_path / "small", {"codebook_size": 8500, "embedding_size": None}))


def test_the_family_follows_from_type_and_architecture():
    for folder, name in zip(FOLDERS, ("llada", "llada", "mmada", "lumina-dimoo", "dream", "sdar"), strict=True):
        assert load(DATA / folder).family.name == name
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    with pytest.raises(UserError) as caught:
        family_of({"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]}, "config.json")
    message = str(caught.value)
    for word in ("sdar_moe", "SDARMoeForCausalLM", *(family.model_type for family in FAMILIES)):
        assert word in message
    published = {"model_type": "mmada", "architectures": ["LLaDAModelLM"]}
    assert family_of(published, "config.json").name == "mmada"


def test_a_qwen_tokenizer_without_its_python_class_is_read(tmp_path):
    folder = copy_of("dream", tmp_path)
    fast = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(fast["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in fast["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_dream.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    slow, original = load(folder), load(DATA / "dream")
    assert slow.ids == original.ids
    assert slow.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    prompt = "What is two plus\n two, or 1234?"
    assert slow.modality.prompt_ids([prompt]) == original.modality.prompt_ids([prompt])
    slow.save(tmp_path / "out")
    assert (tmp_path / "out" / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()


# ----------------------------------------------------------------------------------------------- keys of the configs


def official(folder, change=None, config=None):
    """A config with changes and random tensors that fit it, under official names."""
    settings = json.loads((DATA / folder / "config.json").read_text()) | (config or {})
    family = family_of(settings, "config.json")
    from unmask.models.families import unfused
    from unmask.models.settings import Settings

    shape = family.read(Settings(settings, "config.json"))
    with torch.device("meta"):
        module = Backbone(shape)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for theirs, ours in family.names(shape, settings).items():
        parts = [module.get_parameter(name).shape for name in unfused(ours)]
        size = (sum(part[0] for part in parts), *parts[0][1:])
        noise = torch.randn(size, generator=generator)
        norm = (
            theirs.split(".")[-2] in ("attn_norm", "ff_norm", "ln_f", "q_norm", "k_norm", "norm")
            or "layernorm" in theirs
        )
        scale = 0.3 if len(size) == 1 else size[-1] ** -0.5
        tensors[theirs] = scale * noise + (1.0 if norm and theirs.endswith("weight") else 0.0)
    return settings, tensors


def rms(x, t, name, eps):
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * t[f"{name}.weight"]
    return y + t.get(f"{name}.bias", 0)


def linear(x, t, name):
    return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))


def attention(q, k, v, heads, theta, mask=None):
    """[b l d] projections, rotated pair by pair as complex numbers; key heads are repeated one after the other."""
    length, width = q.shape[1], q.shape[-1] // heads
    angle = torch.arange(length)[:, None] * theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turn = torch.polar(torch.ones_like(angle), angle)

    def split(x):
        return x.unflatten(-1, (-1, width)).transpose(1, 2)

    def rotated(x):
        x = split(x)
        y = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    q, k, v = rotated(q), rotated(k), split(v)
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / width**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def plain_llada(c, t, ids):
    """The formulas of LLaDA's configuration, written once more and plainly, in float64."""
    t = {name.removeprefix("model.transformer."): value.double() for name, value in t.items()}
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "swiglu": None}[c["activation_type"]]
    x = t["wte.weight"][ids] * (c["d_model"] ** 0.5 if c["input_emb_norm"] else 1)
    width = c["d_model"] // c["n_heads"]
    kv = width * (c["n_kv_heads"] or (1 if c["multi_query_attention"] else c["n_heads"]))
    for layer in range(c["n_layers"]):
        size = c["block_group_size"]
        at = f"blocks.{layer}." if size == 1 else f"block_groups.{layer // size}.{layer % size}."
        h = rms(x, t, at + "attn_norm", c["rms_norm_eps"])
        if c["block_type"] == "sequential":
            q, k, v = linear(h, t, at + "att_proj").split([c["d_model"], kv, kv], -1)
        else:
            q, k, v = (linear(h, t, f"{at}{one}_proj") for one in "qkv")
        if c["attention_layer_norm"]:
            q, k = rms(q, t, at + "q_norm", c["rms_norm_eps"]), rms(k, t, at + "k_norm", c["rms_norm_eps"])
        x = x + linear(attention(q, k, v, c["n_heads"], c["rope_theta"]), t, at + "attn_out")
        h = linear(h := rms(x, t, at + "ff_norm", c["rms_norm_eps"]), t, at + "ff_proj")
        if act is None:
            value, gate = h.chunk(2, -1)
            h = F.silu(gate) * value
        elif c["block_type"] == "sequential":
            h = act(h)
        else:
            h = act(h) * linear(rms(x, t, at + "ff_norm", c["rms_norm_eps"]), t, at + "up_proj")
        x = x + linear(h, t, at + "ff_out")
    x = rms(x, t, "ln_f", c["rms_norm_eps"])
    logits = x @ t["wte.weight"].T if c["weight_tying"] else linear(x, t, "ff_out")
    return logits * (c["d_model"] ** -0.5 if c["scale_logits"] else 1)


LLADA_KEYS = {
    "all biases": {"include_bias": True},
    "biases but for the norms": {"include_bias": True, "bias_for_layer_norm": False},
    "biases of the norms only": {"bias_for_layer_norm": True},
    "implied biases of the norms": {"include_bias": True, "bias_for_layer_norm": None},
    "biases of q, k and v": {"include_qkv_bias": True},
    "norms of q and k": {"attention_layer_norm": True, "n_kv_heads": 2},
    "tied": {"weight_tying": True},
    "tied with biases": {"weight_tying": True, "include_bias": True},
    "scaled": {"scale_logits": True, "input_emb_norm": True},
    "rotation in the activations' dtype": {"rope_full_precision": False},
    "other constants": {"rope_theta": 10_000, "rms_norm_eps": 1e-3},
    "one key head": {"n_kv_heads": None, "multi_query_attention": True},
    "key heads by default": {"n_kv_heads": None, "embedding_size": None},
    "padded vocabulary": {"vocab_size": 306, "embedding_size": 384},
    "mlp ratio": {"mlp_hidden_size": None, "mlp_ratio": 2},
    "gelu": {"activation_type": "gelu"},
    "relu": {"activation_type": "relu"},
    "groups": {"block_group_size": 3},
    "sequential": {"block_type": "sequential"},
    "sequential gelu": {"block_type": "sequential", "activation_type": "gelu", "include_bias": True},
    "sequential swiglu": {"block_type": "sequential", "activation_type": "swiglu", "n_kv_heads": 2},
    "everything": {
        **{"block_type": "sequential", "activation_type": "swiglu", "n_kv_heads": 1, "block_group_size": 3},
        **{"include_bias": True, "bias_for_layer_norm": None, "attention_layer_norm": True, "weight_tying": True},
        **{"scale_logits": True, "input_emb_norm": True},
    },
}


@pytest.mark.parametrize("case", LLADA_KEYS)
@pytest.mark.parametrize("folder", ["llada", "mmada"])
def test_every_key_of_llada_is_honoured(folder, case, tmp_path):
    changes = dict(LLADA_KEYS[case])
    if folder == "mmada" and "block_group_size" in changes:
        changes["block_group_size"] = 2
    if folder == "mmada" and "vocab_size" in changes:
        changes |= {"embedding_size": 8576}
    config, tensors = official(folder, config=changes)
    source = copy_of(folder, tmp_path, config, tensors)
    model = load(source)
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = load(source, dtype="float64").backbone.logits(ids)
    assert logits.std() > 0.02
    assert difference(logits, plain_llada(config, tensors, ids)) <= 1e-9
    model.save(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensors[name]) for name in saved)


def plain_qwen(c, t, ids, block=None):
    """Dream's and SDAR's formulas, plainly, in float64; raw logits."""
    t = {name.removeprefix("model."): value.double() for name, value in t.items()}
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[c["hidden_act"]]
    mask = None if block is None else block[:, None] >= block
    x = t["embed_tokens.weight"][ids]
    for layer in range(c["num_hidden_layers"]):
        at = f"layers.{layer}."
        h = rms(x, t, at + "input_layernorm", c["rms_norm_eps"])
        q, k, v = (linear(h, t, f"{at}self_attn.{one}_proj") for one in "qkv")
        if "head_dim" in c:
            q, k = (
                rms(y.unflatten(-1, (-1, c["head_dim"])), t, f"{at}self_attn.{one}_norm", c["rms_norm_eps"]).flatten(2)
                for one, y in (("q", q), ("k", k))
            )
        attended = attention(q, k, v, c["num_attention_heads"], c["rope_theta"], mask)
        x = x + linear(attended, t, at + "self_attn.o_proj")
        h = rms(x, t, at + "post_attention_layernorm", c["rms_norm_eps"])
        x = x + linear(
            act(linear(h, t, at + "mlp.gate_proj")) * linear(h, t, at + "mlp.up_proj"), t, at + "mlp.down_proj"
        )
    x = rms(x, t, "norm", c["rms_norm_eps"])
    return x @ t["embed_tokens.weight"].T if c["tie_word_embeddings"] else linear(x, t, "lm_head")


QWEN_KEYS = {
    "as it is": {},
    "tied": {"tie_word_embeddings": True},
    "other constants": {"rope_theta": 10_000.0, "rms_norm_eps": 1e-3},
    "no pad": {"pad_token_id": None},
    "gelu": {"hidden_act": "gelu"},
    "default scaling": {"rope_scaling": {"rope_type": "default"}},
    "wide": {"intermediate_size": 40, "num_hidden_layers": 2},
}
OWN_KEYS = {
    "dream": {"all key heads": {"num_key_value_heads": 7}, "null key heads": {"num_key_value_heads": None}},
    "sdar": {
        "biases": {"attention_bias": True},
        "one key head": {"num_key_value_heads": 1},
        "head width": {"head_dim": 10},
        "block of 8": {"block_size": 8},
        "block of 1": {"block_size": 1},
        "large block": {"block_size": 64},
    },
}


@pytest.mark.parametrize(
    ("folder", "changes"),
    [pytest.param(f, c, id=f"{f}: {n}") for f, own in OWN_KEYS.items() for n, c in (QWEN_KEYS | own).items()],
)
def test_every_key_of_dream_and_sdar_is_honoured(folder, changes, tmp_path):
    config, tensors = official(folder, config=changes)
    source = copy_of(folder, tmp_path, config, tensors)
    ids = torch.randint(280, (2, 10), generator=torch.Generator().manual_seed(1))
    block = torch.arange(10) // config["block_size"] if folder == "sdar" else None
    raw = plain_qwen(config, tensors, ids, block)
    with torch.no_grad():
        logits = load(source, dtype="float64").backbone.logits(ids)
    assert difference(logits, shifted(raw) if folder == "dream" else raw) <= 1e-9
    load(source).save(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensors[name]) for name in saved)


def test_rotation_settings_of_transformers_5_are_read(tmp_path):
    new = {"rope_theta": ..., "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}}
    new_style, old_style = load(copy_of("dream", tmp_path, new)), load(DATA / "dream")
    assert new_style.backbone.config == old_style.backbone.config


@pytest.mark.parametrize(
    ("folder", "tie", "emb", "head"),
    [
        ("llada", "weight_tying", "model.transformer.wte.weight", "model.transformer.ff_out.weight"),
        ("dream", "tie_word_embeddings", "model.embed_tokens.weight", "lm_head.weight"),
    ],
)
def test_a_tied_head_may_be_stored_again_or_alone(folder, tie, emb, head, tmp_path):
    config, tensors = official(folder, config={tie: True})
    ids = torch.arange(12).view(2, 6)
    expected = load(copy_of(folder, tmp_path / "plain", config, tensors)).backbone.logits(ids)
    again = tensors | {head: tensors[emb].clone()}
    alone = {name: value for name, value in again.items() if name != emb}
    for name, content in (("again", again), ("alone", alone)):
        model = load(copy_of(folder, tmp_path / name, config, content))
        assert torch.equal(model.backbone.logits(ids), expected)
        model.save(tmp_path / name / "out")
        saved = load_file(tmp_path / name / "out" / "model.safetensors")
        assert saved.keys() == content.keys()
        assert all(torch.equal(saved[one], content[one]) for one in saved)
    stale = copy_of(folder, tmp_path / "stale", config, tensors | {head: torch.zeros_like(tensors[emb])})
    if folder == "dream":  # the original ignores it
        assert torch.equal(load(stale).backbone.logits(ids), expected)
    else:
        assert "differ" in error_of(stale)


REFUSED = {
    ("dream", "rope_scaling"): ({"rope_type": "yarn", "factor": 4.0}, ["rope_scaling", "scaled"]),
    ("dream", "use_sliding_window"): (True, ["use_sliding_window"]),
    ("dream", "hidden_act"): ("swish2", ["hidden_act", "'silu'"]),
    ("dream", "num_attention_heads"): (9, ["num_attention_heads", "56"]),
    ("dream", "num_key_value_heads"): (2, ["num_key_value_heads", "7"]),
    ("dream", "head_dim"): (16, ["head_dim", "16"]),
    ("dream", "pad_token_id"): (320, ["pad_token_id", "320"]),
    ("dream", "mask_token_id"): (320, ["mask_token_id", "320", "319"]),
    ("dream", "hidden_size"): (..., ["hidden_size", "missing"]),
    ("dream", "attention_dropout"): (0.1, ["attention_dropout"]),
    ("dream", "vocab_size"): (290, ["291", "290"]),
    ("sdar", "head_dim"): (..., ["head_dim", "missing"]),
    ("sdar", "block_size"): (..., ["block_size", "missing"]),
    ("sdar", "attention_bias"): ("yes", ["attention_bias"]),
    ("sdar", "model_type"): ("qwen3", ["'qwen3'", "sdar"]),
    ("sdar", "mask_token_id"): (284, ["284", "285", "<|MASK|>"]),
    ("mmada", "new_vocab_size"): (8575, ["new_vocab_size", "8576"]),
    ("mmada", "codebook_size"): (..., ["codebook_size", "missing"]),
    ("mmada", "w_clip_vit"): (True, ["w_clip_vit"]),
    ("mmada", "tie_word_embeddings"): (True, ["tie_word_embeddings"]),
    ("mmada", "embedding_size"): (300, ["new_vocab_size", "8576", "300"]),
    ("dimoo", "alibi"): (True, ["alibi"]),
    ("dimoo", "embedding_size"): (8507, ["8192", "316", "8507"]),
    ("dimoo", "architectures"): (["LLaDAMoEModelLM"], ["LLaDAMoEModelLM", "LLaDAForMultiModalGeneration"]),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(case))
def test_a_config_that_cannot_be_honoured_is_refused(case, tmp_path):
    folder, key = case
    value, words = REFUSED[case]
    message = error_of(copy_of(folder, tmp_path, {key: value}))
    for word in words:
        assert word in message


@pytest.mark.parametrize("folder", FOLDERS)
def test_defects_of_the_weights_are_named(folder, tmp_path):
    whole = load_file(DATA / folder / "model.safetensors")
    name = next(iter(whole))
    lacking = {key: value for key, value in whole.items() if key != name}
    assert name in error_of(copy_of(folder, tmp_path / "1", weights=lacking))
    assert "surprise" in error_of(copy_of(folder, tmp_path / "2", weights=whole | {"surprise": torch.ones(1)}))
    message = error_of(copy_of(folder, tmp_path / "3", weights=whole | {name: whole[name][:-1].clone()}))
    assert name in message
    assert str(list(whole[name].shape)) in message
    broken = copy_of(folder, tmp_path / "4")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-7])
    assert "truncated" in error_of(broken)
    broken = copy_of(folder, tmp_path / "5", {"mask_token_id": ...})
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (broken / file).is_file():
            text = (broken / file).read_text()
            for mask in ("<|mdm_mask|>", "<|mask|>", "<|MASK|>"):
                text = text.replace(f'"{mask}"', '"<|other|>"')
            settings = json.loads(text)
            settings = {key: value for key, value in settings.items() if not key.startswith("mask_token")}
            (broken / file).write_text(json.dumps(settings))
    message = error_of(broken)
    assert "no mask token" in message
    assert "mask_token_id" in message


def test_a_model_on_the_meta_device_has_everything_but_weights():
    model = load(DATA / "mmada", device="meta")
    real = load(DATA / "mmada")
    assert all(p.is_meta for p in model.backbone.parameters())
    assert replace(model.backbone.config) == real.backbone.config
    assert model.ids == real.ids
    assert model.images == real.images
