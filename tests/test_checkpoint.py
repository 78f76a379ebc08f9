"""Checkpoints: read and written under official names, and every defect told in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file

from unmask.errors import UserError
from unmask.models import SpecialIds, checkpoint, load, weights
from unmask.models.backbone import Backbone
from unmask.models.checkpoint import outline
from unmask.models.location import locate
from unmask.models.lora import add_lora, merged_state
from unmask.models.scratch import SPECIAL_TOKENS, new_model, small_tokenizer

DATA = Path(__file__).parent / "data"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny LLaDA checkpoint that may be broken."""
    copy = tmp_path / "model"
    copy.mkdir()
    for name in FILES:
        shutil.copyfile(DATA / "llada" / name, copy / name)
    return copy


def edit_json(file, **changes):
    content = json.loads(file.read_text())
    for key, value in changes.items():
        if value is ...:
            content.pop(key)
        else:
            content[key] = value
    file.write_text(json.dumps(content))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def split(folder, monkeypatch):
    """The same checkpoint in shards of at most 200 kB."""
    monkeypatch.setattr(weights, "SHARD_BYTES", 200_000)
    load(folder).save(folder.parent / "sharded")
    return folder.parent / "sharded"


def error_of(*arguments, **keywords):
    with pytest.raises(UserError) as caught:
        load(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ["llada", "llada_gqa"])
def test_saving_gives_back_what_was_loaded(name, tmp_path):
    source = DATA / name
    load(source).save(tmp_path / "out")
    assert equal(load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors"))
    for file in set(FILES) - {"model.safetensors"}:
        assert (source / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(FILES)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    again = load(tmp_path / "out")
    assert equal(again.backbone.state_dict(), load(source).backbone.state_dict())


def test_files_that_belong_to_a_checkpoint_are_copied(folder, tmp_path):
    extra = {"generation_config.json": '{"bos_token_id":  280}', "modeling_llada.py": "#\n", "chat_template.jinja": "x"}
    for name, text in extra.items():
        (folder / name).write_text(text)
    (folder / "notes.txt").write_text("not a part of it")
    load(folder).save(tmp_path / "out")
    for name, text in extra.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_shards_load_like_one_file(folder, monkeypatch):
    sharded = split(folder, monkeypatch)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert all(file.stat().st_size < 210_000 for file in files)
    assert equal(load(sharded).backbone.state_dict(), load(folder).backbone.state_dict())


def test_saving_again_replaces_the_model_and_spares_strangers(folder, monkeypatch):
    sharded = split(folder, monkeypatch)
    (sharded / "README.md").write_text("mine")
    monkeypatch.undo()
    load(sharded).save(sharded)
    assert {file.name for file in sharded.iterdir()} == {*FILES, "README.md"}
    assert {path.name for path in folder.parent.iterdir()} == {"model", "sharded"}


def test_weights_are_saved_in_the_dtype_they_came_in(folder, tmp_path):
    load(folder).save(tmp_path / "half", dtype="bfloat16")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    model = load(tmp_path / "half", dtype="float32")
    assert model.dtype == torch.float32
    model.save(tmp_path / "again")
    assert equal(load_file(tmp_path / "again" / "model.safetensors"), tensors)


def test_only_a_dtype_that_the_config_names_is_changed_in_it(folder, tmp_path):
    edit_json(folder / "config.json", torch_dtype="float32", mystery=[1, {"a": None}])
    before = json.loads((folder / "config.json").read_text())
    load(folder).save(tmp_path / "out", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before | {"torch_dtype": "bfloat16"}


def test_metadata_has_a_file_of_its_own(folder, tmp_path):
    assert outline(folder).metadata == {}
    model = load(folder)
    model.metadata["answer_length"] = 16
    model.save(tmp_path / "out")
    assert load(tmp_path / "out").metadata == outline(tmp_path / "out").metadata == {"answer_length": 16}
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_saving_never_touches_what_is_no_model(folder, tmp_path):
    model = load(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="name"):
            model.save(out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_interrupted_save_leaves_nothing(folder, tmp_path, monkeypatch):
    model = load(folder)
    monkeypatch.setattr(checkpoint, "_replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_loaded_model_does_not_depend_on_its_files(folder):
    model = load(folder)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    file = folder / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert all(torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())
    assert all(p.requires_grad for p in model.backbone.parameters())
    shutil.rmtree(folder)
    model.save(folder)
    assert equal(load_file(file), load_file(DATA / "llada" / "model.safetensors"))
    for name in set(FILES) - {"model.safetensors"}:
        assert (folder / name).read_bytes() == (DATA / "llada" / name).read_bytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_prefixes_of_wrappers_are_stripped(folder, prefix, tmp_path):
    plain = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in plain.items()}, folder / "model.safetensors")
    load(folder).save(tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), plain)


def test_a_run_directory_stands_for_its_model(folder):
    (folder.parent / "config.yaml").write_text("task: x\n")
    assert load(str(folder.parent)).source == folder


# ------------------------------------------------------------------------------------------------------- special ids


def test_special_ids_come_from_the_checkpoint(folder):
    assert load(folder).ids == SpecialIds(mask=296, eos=281, pad=281, bos=280, end_of_turn=305)
    edit_json(folder / "config.json", mask_token_id=..., pad_token_id=...)
    generation = {"bos_token_id": 282, "pad_token_id": 283, "eos_token_id": [281, 305]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load(folder).ids == SpecialIds(mask=296, eos=281, pad=283, bos=282, end_of_turn=305)


def test_contradicting_mask_ids_are_refused(folder):
    edit_json(folder / "config.json", mask_token_id=297)
    message = error_of(folder)
    assert "297" in message
    assert "296" in message
    assert "<|mdm_mask|>" in message


# ------------------------------------------------------------------------------------------------------- user errors

CONFIG_ERRORS = {
    "unknown model_type": ({"model_type": "gpt2"}, ["'gpt2'", "LLaDAModelLM", "supported"]),
    "unknown architecture": ({"architectures": ["LLaDAMoE"]}, ["LLaDAMoE", "LLaDAForMultiModalGeneration"]),
    "mask id outside": ({"mask_token_id": 384}, ["mask_token_id", "384", "383"]),
    "negative mask id": ({"mask_token_id": -1}, ["mask_token_id", "-1"]),
    "eos id outside": ({"eos_token_id": 9999}, ["eos_token_id", "9999"]),
    "missing key": ({"rope_theta": ...}, ["rope_theta", "missing"]),
    "unknown blocks": ({"block_type": "parallel"}, ["block_type", "'parallel'", "'llama'", "'sequential'"]),
    "sequential blocks": ({"block_type": "sequential"}, ["missing", "model.transformer.blocks.0.att_proj.weight"]),
    "uneven block groups": ({"block_group_size": 2}, ["block_group_size", "2", "n_layers", "3"]),
    "block groups": ({"block_group_size": 3}, ["missing", "model.transformer.block_groups.0.0.attn_norm.weight"]),
    "activation": ({"activation_type": "swiglu"}, ["activation_type", "'swiglu'", "'silu'"]),
    "odd swiglu": (
        {"activation_type": "swiglu", "block_type": "sequential", "mlp_hidden_size": 161},
        ["mlp_hidden_size", "even"],
    ),
    "layer norm": ({"layer_norm_type": "default"}, ["layer_norm_type", "'default'"]),
    "no rope": ({"rope": False}, ["rope", "False", "true"]),
    "alibi": ({"alibi": True}, ["alibi"]),
    "norm bias": ({"bias_for_layer_norm": True}, ["missing", "model.transformer.blocks.0.attn_norm.bias"]),
    "implied norm bias": ({"bias_for_layer_norm": None, "include_bias": True}, ["missing", "attn_norm.bias"]),
    "dropout": ({"residual_dropout": 0.1}, ["residual_dropout", "0.1"]),
    "no affine norm": ({"layer_norm_with_affine": False}, ["layer_norm_with_affine"]),
    "shared key head": ({"multi_query_attention": True}, ["multi_query_attention", "n_kv_heads", "4"]),
    "number as text": ({"d_model": "64"}, ["d_model", "'64'", "integer"]),
    "flag as number": ({"weight_tying": 0}, ["weight_tying", "true or false"]),
    "negative eps": ({"rms_norm_eps": -1e-5}, ["rms_norm_eps"]),
    "heads": ({"n_heads": 5}, ["n_heads", "5", "64"]),
    "kv heads": ({"n_kv_heads": 3}, ["n_kv_heads", "3", "4"]),
    "small vocabulary": ({"embedding_size": 300}, ["306", "300"]),
    "other shape": ({"mlp_hidden_size": 128}, ["model.safetensors", "ff_proj.weight", "[160, 64]", "[128, 64]"]),
    "more layers": ({"n_layers": 4}, ["missing", "model.transformer.blocks.3.attn_norm.weight", "and 5 more"]),
    "fewer layers": ({"n_layers": 2}, ["unknown", "model.transformer.blocks.2.attn_norm.weight"]),
    "tied": ({"weight_tying": True}, ["model.transformer.ff_out.weight", "differ"]),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_config_that_cannot_be_honoured_is_refused(folder, case):
    changes, words = CONFIG_ERRORS[case]
    edit_json(folder / "config.json", **changes)
    message = error_of(folder)
    assert str(folder) in message
    for word in words:
        assert word in message


def test_nullable_keys_have_the_documented_meaning(folder):
    edit_json(folder / "config.json", embedding_size=None, n_kv_heads=None)
    assert load(folder).backbone.config == load(DATA / "llada").backbone.config


HEAD = "model.transformer.ff_out.weight"
LORA = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"
WEIGHT_ERRORS = {
    "missing tensor": (lambda t: t.pop(HEAD), ["missing", HEAD]),
    "extra tensor": (lambda t: t.update(surprise=torch.ones(1)), ["unknown", "surprise"]),
    "wrong shape": (lambda t: t.update({HEAD: torch.ones(383, 64)}), [HEAD, "[383, 64]", "[384, 64]"]),
    "integers": (lambda t: t.update({HEAD: torch.ones(384, 64, dtype=torch.int8)}), [HEAD, "int8"]),
    "unmerged adapter": (lambda t: t.update({LORA: torch.ones(2, 64)}), ["LoRA", "merge"]),
}


@pytest.mark.parametrize("case", WEIGHT_ERRORS)
def test_weights_that_do_not_fit_are_named(folder, case):
    change, words = WEIGHT_ERRORS[case]
    edit_weights(folder, change)
    message = error_of(folder)
    for word in words:
        assert word in message


@pytest.mark.parametrize("keep", [0, 5, 1000, 700_000])
def test_a_truncated_file_is_named(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = error_of(folder)
    assert str(file) in message
    assert "truncated" in message


def test_defects_of_shards_are_named(folder, monkeypatch):
    sharded = split(folder, monkeypatch)
    index, first = sharded / "model.safetensors.index.json", min(file.name for file in sharded.glob("*.safetensors"))
    whole = (sharded / first).read_bytes()
    (sharded / first).write_bytes(whole[:-100])
    assert first in error_of(sharded)
    (sharded / first).unlink()
    message = error_of(sharded)
    assert first in message
    assert index.name in message
    assert "missing" in message
    (sharded / first).write_bytes(whole)
    mapping = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=mapping | {"ghost": first})
    assert "ghost" in error_of(sharded)
    edit_json(index, weight_map=mapping | {"model.transformer.wte.weight": "../elsewhere.safetensors"})
    assert "../elsewhere.safetensors" in error_of(sharded)
    index.write_text("{")
    assert index.name in error_of(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in error_of(folder)


def test_weights_of_another_kind_are_named(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.pth")
    assert "consolidated.pth" in error_of(folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_files_load_like_safetensors(folder, shards, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        files = [f"pytorch_model-{number:05d}-of-{shards:05d}.bin" for number in range(1, shards + 1)]
        for number, file in enumerate(files):
            torch.save(dict(list(tensors.items())[number::shards]), folder / file)
        places = {name: files[number % shards] for number, name in enumerate(tensors)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    model = load(folder)
    assert equal(model.backbone.state_dict(), load(DATA / "llada").backbone.state_dict())
    model.save(folder)
    assert equal(load_file(folder / "model.safetensors"), tensors)
    assert {file.name for file in folder.iterdir()} == set(FILES)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    assert "pytorch_model.bin" in error_of(folder)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("was-here"),)


@pytest.mark.parametrize("content", [{"a": Evil()}, [torch.ones(1)], {"a": 1}])
def test_bin_files_hold_tensors_only(folder, content, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in error_of(folder)
    assert not (folder / "was-here").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_corrupt_text_file_is_named(folder, name, text):
    (folder / name).write_text(text)
    assert name in error_of(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "../nowhere", "runs/a/model", "nowhere/", "~/no-x"])
def test_what_looks_like_a_path_never_goes_to_the_hub(source, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("went to the hub"))
    assert "not there" in error_of(source)


def test_a_hub_id_that_cannot_be_had_is_told_in_one_line(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = error_of("nobody/no-such-model", revision="v1")
    assert "nobody/no-such-model" in message
    assert "v1" in message


def on_the_hub(folder: Path, cache: Path, commit: str) -> None:
    """Puts a folder where the hub's client keeps `owner/tiny` at `main`, as a download leaves it."""
    repository = cache / "models--owner--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


def test_a_hub_id_is_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    """The client itself, offline: shards of any form, the image tokenizer in its subfolder, revisions."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    first, second = "1" * 40, "2" * 40
    load(DATA / "mmada", image_tokenizer=DATA / "magvitv2").save(tmp_path / "mmada")
    on_the_hub(tmp_path / "mmada", tmp_path / "hub", first)
    model = load("owner/tiny")
    assert model.family.name == "mmada" and model.image_tokenizer is not None
    assert outline("owner/tiny").family is model.family

    shutil.copytree(DATA / "llada", tmp_path / "llada")
    torch.save(load_file(tmp_path / "llada/model.safetensors"), tmp_path / "llada/pytorch_model.bin")
    (tmp_path / "llada/model.safetensors").unlink()
    on_the_hub(tmp_path / "llada", tmp_path / "hub", second)
    again = load("owner/tiny")
    assert again.family.name == "llada"
    assert torch.equal(again.backbone.emb.weight, load(DATA / "llada").backbone.emb.weight)
    assert load("owner/tiny", revision=first).family.name == "mmada"
    assert "revision v9" in error_of("owner/tiny", revision="v9")


@pytest.mark.parametrize("stored", ["safetensors", "bin"])
def test_only_what_a_model_needs_is_asked_of_the_hub(stored, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    remote = ["config.json", "README.md", "photo.png", "tokenizer.json", "vocab.json", "modeling_x.py", "unmask.json"]
    remote += ["image_tokenizer/config.json", "image_tokenizer/pytorch_model.safetensors", "optimizer.pt"]
    weights = {
        "safetensors": ["model-1-of-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
        "bin": ["pytorch_model-1-of-1.bin", "pytorch_model.bin.index.json", "training_args.bin"],
    }
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        assert (name, revision) == ("owner/tiny", "v1")
        for file in filter_repo_objects([*remote, *weights[stored]], allow_patterns=allow_patterns):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
            asked.append(file)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate("owner/tiny", "v1") == tmp_path
    needless = {"README.md", "photo.png", "optimizer.pt", "training_args.bin"}
    needless |= {"pytorch_model.bin"} if stored == "safetensors" else set()
    assert set(asked) == {*remote, *weights[stored]} - needless and len(set(asked)) == len(asked)


def test_other_wrong_arguments_are_told(folder):
    assert "builtin:nothing" in error_of("builtin:nothing")
    assert "builtin:../models" in error_of("builtin:../models")
    assert "float3" in error_of(folder, dtype="float3")
    assert "main" in error_of(folder, revision="main")
    assert "file" in error_of(folder / "config.json")


# ----------------------------------------------------------------------------------------------- new models, adapters

SIZES = {"dim": 16, "layers": 2, "heads": 2, "ffn": 24, "max_length": 64}


@settings(max_examples=25, deadline=None)
@given(alphabet=strategies.text(strategies.characters(codec="utf-8"), min_size=1, max_size=30), data=strategies.data())
def test_character_tokenizers_round_trip(alphabet, data):
    alphabet = "".join(dict.fromkeys(alphabet))
    tokenizer = small_tokenizer(alphabet, 64)
    text = data.draw(strategies.text(alphabet, max_size=40))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [alphabet.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(alphabet) + len(SPECIAL_TOKENS)


def test_a_new_model_is_a_llada_checkpoint(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    alphabet = "0123 +\n=é"
    model = new_model(alphabet, **SIZES, kv_heads=1, seed=3)
    model.save(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert facts["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no other
    config = json.loads((DATA / "llada" / "config.json").read_text())
    assert config.keys() - {"auto_map", "transformers_version"} == model.config.keys() - {"torch_dtype"}
    again = load(tmp_path / "out")
    assert equal(again.backbone.state_dict(), model.backbone.state_dict())
    assert again.ids == model.ids
    assert again.vocab == len(again.tokenizer) == len(alphabet) + len(SPECIAL_TOKENS)
    chat = [{"role": "user", "content": "1+2=é\n"}]
    for tokenizer in (model.tokenizer, again.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert text == "<|startoftext|>1+2=é\n<|eot_id|>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == [model.ids.bos, *map(alphabet.index, "1+2=é\n"), model.ids.end_of_turn]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "1+2=é\n"
        assert tokenizer.unk_token_id is None
        with pytest.raises(Exception, match="UNK"):
            tokenizer("9")


def test_new_weights_are_a_function_of_the_seed():
    torch.manual_seed(0)
    first = new_model("01", **SIZES, seed=3).backbone.state_dict()
    before = torch.get_rng_state()
    second = new_model("01", **SIZES, seed=3).backbone.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(first, second)
    assert not equal(first, new_model("01", **SIZES, seed=4).backbone.state_dict())
    assert first["emb.weight"].std() == pytest.approx(1.0, rel=0.15)
    assert first["blocks.0.q.weight"].std() == pytest.approx(SIZES["dim"] ** -0.5, rel=0.1)
    into_stream = (SIZES["ffn"] * 2 * SIZES["layers"]) ** -0.5
    assert first["blocks.0.down.weight"].std() == pytest.approx(into_stream, rel=0.1)


@pytest.mark.parametrize("alphabet", ["", "abca"])
def test_an_alphabet_that_cannot_be_is_refused(alphabet):
    with pytest.raises(UserError, match="alphabet"):
        new_model(alphabet, **SIZES, seed=0)


def test_adapters_merge_exactly_and_come_off(folder, tmp_path):
    model = load(folder, dtype="float64")
    plain = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        before = model.backbone.logits(ids)
        adapted = add_lora(model.backbone, rank=3, alpha=6.0, seed=1)
        assert torch.equal(adapted(ids), before)
        for name, p in adapted.named_parameters():
            if ".lora_B." in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
        after = adapted(ids)
        with adapted.disable_adapter():
            assert torch.equal(adapted(ids), before)
    assert (after - before).abs().max() > 0.1
    state = merged_state(adapted)
    assert state.keys() == plain.keys()
    assert [name for name in state if not torch.equal(state[name], plain[name])] == [
        name for name in plain if name.split(".")[-2] in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    model.save(tmp_path / "out", dtype="float64", state=state)
    with torch.no_grad():
        assert (load(tmp_path / "out").backbone.logits(ids) - after).abs().max() <= 1e-9


def test_bf16_weights_are_merged_in_float32(folder):
    model = load(folder, dtype="bfloat16")
    adapted = add_lora(model.backbone, rank=2, alpha=2.0, targets=["attention"])
    merged = merged_state(adapted)
    assert merged["blocks.0.q.weight"].dtype == torch.float32
    assert merged["blocks.0.up.weight"].dtype == torch.bfloat16
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name and name.split(".")[4] in "qkvo" for name in trained)


def test_adapters_are_a_function_of_the_seed(folder):
    def factors(seed):
        adapted = add_lora(load(folder).backbone, 2, 2.0, seed=seed)
        return {name: p for name, p in adapted.named_parameters() if ".lora_A." in name}

    one, two, other = map(factors, (1, 1, 2))
    assert equal(one, two)
    assert not equal(one, other)


@pytest.mark.parametrize("targets", [["o_proj"], ["attention", "head"], []])
def test_a_target_that_matches_nothing_is_refused(folder, targets):
    with pytest.raises(UserError, match="target"):
        add_lora(load(folder).backbone, 2, 2.0, targets=targets)


def test_an_unmerged_state_is_not_saved(folder, tmp_path):
    model = load(folder)
    add_lora(model.backbone, 2, 2.0)
    with pytest.raises(ValueError, match="plain backbone"):
        model.save(tmp_path / "out")


def test_a_projection_that_the_blocks_do_not_have_is_named(folder):
    shape = replace(load(folder).backbone.config, gated=False)
    with pytest.raises(UserError, match="LoRA target 'gate' matches nothing: the blocks of this model have no gate"):
        add_lora(Backbone(shape), 2, 2.0, targets=["q", "gate"])
    whole = add_lora(Backbone(shape), 2, 2.0, targets=["mlp"])
    assert {name.split(".")[4] for name, p in whole.named_parameters() if p.requires_grad} == {"up", "down"}
