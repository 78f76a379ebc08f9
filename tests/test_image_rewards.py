"""Rewards for pictures, on tiny random networks: equal to transformers, to forwards in other layouts, to rules."""

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

import tiny_networks as tiny
from unmask.errors import UserError
from unmask.pictures import to_uri
from unmask.rewards import NAMES
from unmask.rewards.images import (
    Aesthetic,
    ClipScore,
    GenEvalObjects,
    HPScore,
    ImageRewardScore,
    PickScore,
    PictureReward,
)
from unmask.rewards.images.geneval import cut_out
from unmask.rewards.images.geneval_rules import CLASSES, TAGS, Detection, counted, mistakes, relations
from unmask.rewards.images.networks import clip as clip_network
from unmask.rewards.images.networks.blip import MEAN, STD, ImageRewardNetwork
from unmask.rewards.images.networks.detector import objects
from unmask.rewards.images.networks.loading import once, read_tensors
from unmask.rewards.images.networks.open_clip import converted, from_open_clip
from unmask.rewards.images.networks.pixels import square, stretched

PROMPTS = ["a red dog", "two cats", "a red dog", "a photo of a bench, 3 birds", "x" * 200, ""]
ROWS = [
    {"prompt": prompt, "tag": tag, "include": [{"class": "dog", "count": 1, "color": "red"}]}
    for prompt, tag in zip(PROMPTS, TAGS, strict=True)
]
SIZES = [(40, 56), (56, 40), (32, 32), (33, 97), (200, 31), (31, 33)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All networks that the rewards below need."""
    folder = tmp_path_factory.mktemp("networks")
    tiny.clip(folder / "clip")
    head = torch.load(tiny.aesthetic_head(folder / "head.pth"), weights_only=True)
    torch.save(tiny.released(*tiny.blip(tiny.bert_words(folder / "bert")), head), folder / "imagereward.pt")
    vocabulary = len(CLIPTokenizer.from_pretrained(folder / "clip"))
    model = tiny.clip_model(vocabulary, 5, "gelu", 16)
    torch.save({"state_dict": tiny.open_clip_layout(model), "epoch": 3}, folder / "hps.pt")
    tiny.segmenter(folder / "segmenter")
    return folder


def rewards(folder: Path) -> list[PictureReward]:
    clip = str(folder / "clip")
    return [
        ClipScore(model=clip),
        PickScore(model=clip, tokenizer=clip),
        Aesthetic(model=clip, head=str(folder / "head.pth")),
        HPScore(model=str(folder / "hps.pt"), tokenizer=clip),
        ImageRewardScore(model=str(folder / "imagereward.pt"), tokenizer=str(folder / "bert")),
        GenEvalObjects(detector=str(folder / "segmenter"), clip=clip, short_side=64, long_side=96),
    ]


def values(scores) -> list[float]:
    assert all(score.status == "ok" for score in scores)
    return [score.value for score in scores]


# Pictures to numbers


@pytest.mark.parametrize("size", SIZES)
def test_squares_are_those_of_transformers(size):
    picture = tiny.pictures(1, size)[0]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    assert np.abs(square(picture, 32) - expected).max() < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_pictures_for_the_detector_are_those_of_transformers(size):
    picture = tiny.pictures(1, size)[0]
    processor = Mask2FormerImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 100}, size_divisor=32, do_reduce_labels=False
    )
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    assert np.abs(stretched(picture, 64, 100, 32) - expected).max() < 1e-6


def test_padding_puts_black_around_the_whole_picture():
    white = Image.new("RGB", (40, 20), "white")
    shown = square(white, 32, "pad")
    bright = shown[0] > 0
    assert bright[8:24].all() and not bright[:8].any() and not bright[24:].any()
    assert np.array_equal(square(white.resize((32, 32)), 32, "pad"), square(white.resize((32, 32)), 32))


def test_a_strip_is_cut_before_it_is_scaled():
    strip = Image.new("RGB", (20_000, 1))
    strip.putpixel((10_000, 0), (255, 255, 255))
    assert square(strip, 32).shape == (3, 32, 32)
    assert np.allclose(square(strip, 32)[0, 0], square(strip.crop((9_992, 0, 10_008, 1)), 32)[0, 0])


# Every reward


@pytest.mark.parametrize("number", range(6))
def test_batch_single_reversed_and_another_thread_agree(number, folder):
    reward, shown = rewards(folder)[number], tiny.pictures(6)
    whole = values(reward(shown, ROWS))
    others = [
        [values(reward([one], [row]))[0] for one, row in zip(shown, ROWS, strict=True)],
        values(reward(shown[::-1], ROWS[::-1]))[::-1],
        values(replace(reward, batch=4)(shown, ROWS)),
        values(reward([to_uri(one) for one in shown], ROWS)),
        *ThreadPoolExecutor(2).map(lambda _: values(reward(shown, ROWS)), range(2)),
    ]
    for other in others:
        assert whole == pytest.approx(other, rel=1e-5, abs=1e-5)
    if reward.name != "geneval":  # a random detector sees no dog
        assert len({round(value, 4) for value in whole}) > 3


@pytest.mark.parametrize("number", range(6))
def test_what_is_no_picture_is_invalid_and_harms_no_other(number, folder):
    reward, (picture,) = rewards(folder)[number], tiny.pictures(1)
    broken = to_uri(picture)[:-40]
    found = reward(["a text", picture, broken], ROWS[:3])
    assert [score.status for score in found] == ["invalid", "ok", "invalid"]
    assert found[1].value == pytest.approx(reward([picture], ROWS[1:2])[0].value, abs=1e-5)
    assert reward([], []) == []


def test_names_of_the_command_line():
    assert {"clip", "pickscore", "aesthetic", "hps", "imagereward", "geneval"} <= NAMES.keys()


def test_rewards_are_light_until_one_is_used():
    code = "import sys, unmask.rewards; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_without_a_prompt_are_named(folder):
    with pytest.raises(UserError, match="reward clip: row 7 needs a text in column 'prompt'"):
        rewards(folder)[0](tiny.pictures(1), [{"id": "7"}])
    with pytest.raises(UserError, match="row 7 needs columns 'tag' and 'include'"):
        rewards(folder)[5](tiny.pictures(1), [{"id": "7", "prompt": "a dog"}])


def test_a_network_that_gives_no_number_is_our_failure(folder, tmp_path):
    model = CLIPModel.from_pretrained(tiny.clip(tmp_path / "clip"))
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "clip")
    assert ClipScore(model=str(tmp_path / "clip"))(tiny.pictures(1), ROWS[:1])[0].status == "infra_error"


def test_running_out_of_memory_is_our_failure(folder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(clip_network.Clip, "pictures", full)
    score = rewards(folder)[0](tiny.pictures(1), ROWS[:1])[0]
    assert score.status == "infra_error" and "batch 32; lower it" in score.details["reason"]


# Loading


def mistakes_of_settings(folder: Path) -> list[tuple[PictureReward, str]]:
    clip, head = str(folder / "clip"), str(folder / "head.pth")
    torch.save({"layers.0.weight": torch.zeros(1, 3)}, folder / "narrow.pth")
    (folder / "pickle.pt").write_bytes(b"\x80\x02c")
    (folder / "cut.safetensors").write_bytes(b"123")
    state = torch.load(folder / "hps.pt", weights_only=True)["state_dict"]
    torch.save({**state, "more": torch.zeros(1)}, folder / "more.pt")
    torch.save({name: value for name, value in state.items() if name != "ln_final.weight"}, folder / "less.pt")
    torch.save({**state, "ln_final.weight": torch.zeros(3)}, folder / "odd.pt")
    (folder / "empty").mkdir(exist_ok=True)
    coco = tiny.segmenter(folder / "few", labels=3)
    return [
        (ClipScore(model=str(folder / "nowhere")), "nowhere is not there: name a model's folder or hub id"),
        (ClipScore(model=head), "head.pth is a file: name a model's folder"),
        (ClipScore(model=clip, tokenizer=str(folder / "nowhere")), "nowhere is not there"),
        (ClipScore(model=clip, tokenizer=str(folder / "empty")), "knows 2 tokens, but the network 80: name its own"),
        (ClipScore(model=str(folder / "empty"), tokenizer=clip), "empty holds no config.json"),
        (
            ClipScore(model=str(folder / "segmenter"), tokenizer=clip),
            "segmenter is a mask2former, but a clip is needed",
        ),
        (ClipScore(model=clip, device="tpu"), "device 'tpu' of a reward: must be auto, cpu"),
        (ClipScore(model=clip, device="cuda:77"), "torch sees"),
        (Aesthetic(model=clip, head=str(folder / "nowhere.pth")), "nowhere.pth is not there: name a file of weights"),
        (Aesthetic(model=clip, head=str(folder / "narrow.pth")), "do not lead from 24 numbers to one"),
        (Aesthetic(model=clip, head=str(folder / "pickle.pt")), "pickle.pt is truncated or holds more than tensors"),
        (HPScore(model=str(folder / "cut.safetensors"), tokenizer=clip), "cut.safetensors is truncated"),
        (HPScore(model=str(folder / "more.pt"), tokenizer=clip), "more.pt has unknown more"),
        (HPScore(model=str(folder / "less.pt"), tokenizer=clip), "misses text_model.final_layer_norm.weight"),
        (HPScore(model=str(folder / "odd.pt"), tokenizer=clip), "has other shapes for text_model.final_layer_norm"),
        (HPScore(model=head, tokenizer=clip), "it is not in open_clip's layout"),
        (ImageRewardScore(model=head, tokenizer=str(folder / "bert")), "these are not ImageReward's weights"),
        (GenEvalObjects(detector=str(coco), clip=clip), "tells 3 classes apart; the 80 of COCO are needed"),
    ]


@pytest.mark.parametrize("number", range(18))
def test_a_network_that_is_not_there_is_told_when_a_run_reads_the_reward(number, folder):
    reward, says = mistakes_of_settings(folder)[number]
    with pytest.raises(UserError) as caught:
        reward.for_tokens(())
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"dtype": "int8"}, "dtype must be float32"),
        ({"short_side": 16}, "32 <= short_side"),
        ({"short_side": 800, "long_side": 700}, "32 <= short_side"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        GenEvalObjects(**settings)


def test_pickles_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        read_tensors(str(tmp_path / "a.pt"))
    torch.save([torch.zeros(1)], tmp_path / "b.pt")
    with pytest.raises(UserError, match="does not hold tensors by name"):
        read_tensors(str(tmp_path / "b.pt"))


def test_threads_share_one_copy():
    started, loaded = threading.Barrier(4), []

    @once
    def load(name: str) -> list[str]:
        loaded.append(name)
        return [name]

    def ask(_):
        started.wait()
        return load("a")

    copies = list(ThreadPoolExecutor(4).map(ask, range(4)))
    assert loaded == ["a"] and all(copy is copies[0] for copy in copies)
    assert load("b") == ["b"]


def test_rewards_with_one_model_share_it(folder):
    clip, _, aesthetic, *_ = rewards(folder)
    assert clip.load() is aesthetic.load()[0]


# CLIP


def test_clip_score_is_the_cosine_by_hand(folder):
    model, words = CLIPModel.from_pretrained(folder / "clip"), CLIPTokenizer.from_pretrained(folder / "clip")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shown = tiny.pictures(6)
    expected = []
    for picture, prompt in zip(shown, PROMPTS, strict=True):
        ids = words([prompt], truncation=True, max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=processor(picture, return_tensors="pt")["pixel_values"])
        expected.append(float(functional.cosine_similarity(out.image_embeds, out.text_embeds)))
    clip, pick, *_ = rewards(folder)
    assert values(clip(shown, ROWS)) == pytest.approx(expected, abs=1e-6)
    factor = math.exp(model.logit_scale.item()) / 26
    assert values(pick(shown, ROWS)) == pytest.approx([factor * one for one in expected], rel=1e-5)


def test_features_are_taken_from_tensors_and_from_records():
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    record = type("Record", (), {"pooler_output": features})()
    for given in (features, record):
        assert torch.equal(clip_network._unit(given), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_prompts_are_cut_at_77_tokens_and_keep_their_end(folder):
    clip = rewards(folder)[0].load()
    short, long = (clip.texts(["x " * count], 1) for count in (75, 300))
    assert torch.allclose(short, long, atol=1e-6)
    assert not torch.allclose(short, clip.texts(["x " * 74], 1), atol=1e-3)


def test_equal_prompts_are_embedded_once(folder, monkeypatch):
    clip = rewards(folder)[0].load()
    asked: list[int] = []
    embed = clip.model.get_text_features
    monkeypatch.setattr(
        clip.model, "get_text_features", lambda input_ids: asked.append(len(input_ids)) or embed(input_ids)
    )
    found = clip.texts(["a", "b", "a", "a"], 32)
    assert asked == [2] and torch.equal(found[0], found[3]) and not torch.equal(found[0], found[1])


def test_aesthetic_is_a_chain_of_linear_layers(folder):
    reward, shown = rewards(folder)[2], tiny.pictures(6)
    vectors = reward.load()[0].pictures(shown, 32)
    for weight, bias in linear(folder):
        vectors = vectors @ weight.T + bias
    assert values(reward(shown, ROWS)) == pytest.approx(vectors[:, 0].tolist(), rel=1e-5)
    assert values(reward(shown, ROWS)) == values(reward(shown, [{}] * 6))


def linear(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    state = torch.load(folder / "head.pth", weights_only=True)
    return [(state[f"layers.{n}.weight"], state[f"layers.{n}.bias"]) for n in (0, 2, 4, 6, 7)]


# open_clip


def test_weights_of_open_clip_become_those_of_transformers():
    model = tiny.clip_model(60, 4, "gelu", 4)
    theirs = tiny.open_clip_layout(model)
    ours = converted(theirs)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())
    again = from_open_clip(theirs, (4, 4), "gelu", 59, "file", "float32")
    assert again.config.vision_config.image_size == 32 and again.config.text_config.max_position_embeddings == 77


def block(x: torch.Tensor, state: dict[str, torch.Tensor], prefix: str, heads: int, causal: bool) -> torch.Tensor:
    """A residual block as open_clip computes it, with torch's own multi-head attention."""
    width = x.shape[-1]
    attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    attention.load_state_dict(
        {n.removeprefix(f"{prefix}attn."): v for n, v in state.items() if n.startswith(f"{prefix}attn.")}
    )
    hidden = torch.triu(torch.full((x.shape[1], x.shape[1]), -torch.inf), 1) if causal else None
    y = norm(x, state, f"{prefix}ln_1")
    x = x + attention(y, y, y, need_weights=False, attn_mask=hidden)[0]
    y = functional.gelu(functional.linear(norm(x, state, f"{prefix}ln_2"), *layer(state, f"{prefix}mlp.c_fc")))
    return x + functional.linear(y, *layer(state, f"{prefix}mlp.c_proj"))


def norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str, eps: float = 1e-5) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], *layer(state, name), eps)


def layer(state: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def test_hps_is_what_open_clip_computes(folder):
    """A forward in open_clip's own layout, from its weights alone."""
    state: dict[str, Any] = torch.load(folder / "hps.pt", weights_only=True)["state_dict"]
    words = CLIPTokenizer.from_pretrained(folder / "clip")
    shown = tiny.pictures(6)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([square(picture, 32, "pad") for picture in shown]))
        x = functional.conv2d(pixels, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
        first = state["visual.class_embedding"].expand(len(x), 1, -1)
        x = norm(torch.cat([first, x], 1) + state["visual.positional_embedding"], state, "visual.ln_pre")
        for number in range(2):
            x = block(x, state, f"visual.transformer.resblocks.{number}.", 16, False)
        seen = norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"]
        ids = words(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        x = state["token_embedding.weight"][ids] + state["positional_embedding"]
        for number in range(2):
            x = block(x, state, f"transformer.resblocks.{number}.", 16, True)
        read = norm(x, state, "ln_final")[torch.arange(6), ids.argmax(-1)] @ state["text_projection"]
        expected = functional.cosine_similarity(seen, read)
    assert values(rewards(folder)[3](shown, ROWS)) == pytest.approx(expected.tolist(), abs=2e-6)


def test_open_clip_itself_agrees(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    theirs = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    ours = from_open_clip(theirs.state_dict(), (12, 8), "gelu", 49407, "file", "float32")
    pixels, ids = torch.randn(1, 3, 224, 224), torch.tensor([[49406, 320, 49407] + [0] * 74])
    with torch.no_grad():
        assert torch.allclose(theirs.encode_image(pixels), ours.get_image_features(pixels).pooler_output, atol=1e-5)
        assert torch.allclose(theirs.encode_text(ids), ours.get_text_features(ids).pooler_output, atol=1e-5)


# ImageReward


def test_image_reward_is_what_the_release_computes(folder):
    """A forward under the released names: BLIP's vision transformer by hand, BERT with cross attention by hand."""
    state: dict[str, Any] = torch.load(folder / "imagereward.pt", weights_only=True)
    network, shown = rewards(folder)[4].load(), tiny.pictures(6)
    words = network.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = vision_of(state, torch.from_numpy(np.stack([square(picture, 32) for picture in shown])))
        x = text_of(state, words.input_ids, words.attention_mask, seen)[:, 0]
        for weight, bias in linear(folder):
            x = x @ weight.T + bias
    expected = ((x[:, 0] - MEAN) / STD).tolist()
    assert values(rewards(folder)[4](shown, ROWS)) == pytest.approx(expected, rel=2e-5, abs=1e-4)


def vision_of(state: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    part = {name.removeprefix("blip.visual_encoder."): value for name, value in state.items()}
    x = functional.conv2d(pixels, *layer(part, "patch_embed.proj"), stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([part["cls_token"].expand(len(x), 1, -1), x], 1) + part["pos_embed"]
    for number in range(2):
        at = f"blocks.{number}."
        mixed = functional.linear(norm(x, part, f"{at}norm1", 1e-6), *layer(part, f"{at}attn.qkv"))
        mixed = mixed.unflatten(-1, (3, 16, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*mixed).transpose(1, 2).flatten(2)
        x = x + functional.linear(out, *layer(part, f"{at}attn.proj"))
        y = functional.gelu(functional.linear(norm(x, part, f"{at}norm2", 1e-6), *layer(part, f"{at}mlp.fc1")))
        x = x + functional.linear(y, *layer(part, f"{at}mlp.fc2"))
    return norm(x, part, "norm", 1e-6)


def text_of(state: dict[str, Any], ids: torch.Tensor, attend: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    part = {name.removeprefix("blip.text_encoder."): value for name, value in state.items()}

    def attention(x: torch.Tensor, other: torch.Tensor, at: str, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (
            functional.linear(one, *layer(part, f"{at}.self.{name}")).unflatten(-1, (12, -1)).transpose(1, 2)
            for one, name in ((x, "query"), (other, "key"), (other, "value"))
        )
        out = functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        out = functional.linear(out, *layer(part, f"{at}.output.dense"))
        return norm(out + x, part, f"{at}.output.LayerNorm", 1e-12)

    x = part["embeddings.word_embeddings.weight"][ids] + part["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, part, "embeddings.LayerNorm", 1e-12)
    for number in range(2):
        at = f"encoder.layer.{number}"
        x = attention(x, x, f"{at}.attention", attend.bool()[:, None, None])
        x = attention(x, seen, f"{at}.crossattention", None)
        y = functional.gelu(functional.linear(x, *layer(part, f"{at}.intermediate.dense")))
        x = norm(functional.linear(y, *layer(part, f"{at}.output.dense")) + x, part, f"{at}.output.LayerNorm", 1e-12)
    return x


def test_image_reward_reads_35_tokens(folder):
    reward, shown = rewards(folder)[4], tiny.pictures(1)
    long, cut, shorter = (values(reward(shown, [{"prompt": "x " * count}]))[0] for count in (60, 33, 32))
    assert long == pytest.approx(cut, abs=1e-5) and abs(long - shorter) > 1e-3


def test_unknown_weights_of_image_reward_are_refused(folder):
    state = torch.load(folder / "imagereward.pt", weights_only=True) | {"blip.extra.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"file has unknown blip\.extra\.weight"):
        ImageRewardNetwork(state, None, "file", torch.device("cpu"), "float32")


# GenEval's rules


def at(name: str, left: float, top: float, size: float = 20, confidence: float = 0.95) -> Detection:
    return Detection(name, confidence, (left, top, left + size, top + size))


def wrong(row: dict[str, Any], found: list[Detection], colours: dict[str, list[str]] | None = None) -> list[str]:
    known = colours or {}
    return mistakes(row, counted(found, row["tag"]), lambda name, some: known[name][: len(some)])


ONE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
THREE = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 3}],
    "exclude": [{"class": "dog", "count": 4}],
}
RED = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
BOTH = {
    "tag": "color_attr",
    "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
}


def test_objects_must_be_there_and_more_are_welcome_where_nobody_counts():
    assert wrong(ONE, []) == ["0 of 1 dog"]
    assert wrong(ONE, [at("cat", 0, 0)]) == ["0 of 1 dog"]
    assert not wrong(ONE, [at("dog", 0, 0), at("dog", 50, 0), at("cat", 0, 50)])
    assert wrong(TWO, [at("dog", 0, 0)]) == ["0 of 1 cat"]
    assert not wrong(TWO, [at("cat", 0, 0), at("dog", 0, 0)])


def test_counts_are_exact_where_they_are_asked_for():
    dogs = [at("dog", 30 * place, 0) for place in range(5)]
    assert [bool(wrong(THREE, dogs[:count])) for count in range(6)] == [True, True, True, False, True, True]
    assert wrong(THREE, dogs[:4]) == ["4 dog, more than 3"]


def test_thresholds_depend_on_the_tag_and_are_exclusive():
    faint = [at("dog", 0, 0, confidence=0.3), at("dog", 0, 0, confidence=0.31), at("dog", 0, 0, confidence=0.9)]
    assert len(counted(faint, "colors")["dog"]) == 2 and counted(faint, "counting") == {}
    sure = at("dog", 0, 0, confidence=0.91)
    assert counted([*faint, sure], "counting") == {"dog": [sure]}


def test_at_most_16_objects_of_a_class_and_the_most_confident_first():
    many = [at("dog", place, 0, confidence=0.4 + place / 100) for place in range(20)]
    kept = counted(many, "colors")["dog"]
    assert [one.box[0] for one in kept] == list(range(19, 3, -1))


def test_colours_are_asked_of_the_most_confident_objects_only():
    dogs = [at("dog", 0, 0, confidence=0.5), at("dog", 50, 0, confidence=0.9)]
    asked: list[list[float]] = []

    def colours(_, some):
        asked.append([one.confidence for one in some])
        return ["red"] * len(some)

    assert not mistakes(RED, counted(dogs, "colors"), colours) and asked == [[0.9]]
    assert wrong(RED, dogs, {"dog": ["blue"]}) == ["dog is blue instead of red"]
    pets = [at("dog", 0, 0), at("cat", 50, 0)]
    assert not wrong(BOTH, pets, {"dog": ["red"], "cat": ["blue"]})
    assert wrong(BOTH, pets, {"dog": ["blue"], "cat": ["red"]}) == [
        "dog is blue instead of red",
        "cat is red instead of blue",
    ]
    two = {"tag": "colors", "include": [{"class": "dog", "count": 2, "color": "red"}]}
    assert wrong(two, dogs, {"dog": ["red", "blue"]}) and not wrong(two, dogs, {"dog": ["red", "red"]})


def test_positions():
    assert not wrong(LEFT, [at("dog", 60, 0), at("cat", 0, 0)])
    assert wrong(LEFT, [at("dog", 0, 0), at("cat", 60, 0)]) == ["cat is not left of dog"]
    assert wrong(LEFT, [at("cat", 0, 0)]) == ["0 of 1 dog", "nothing for cat to be left of"]
    assert wrong(LEFT, [at("dog", 0, 0)]) == ["0 of 1 cat"]
    assert relations(at("a", 0, 0), at("b", 60, 0)) == {"left of"}
    assert relations(at("a", 60, 0), at("b", 0, 0)) == {"right of"}
    assert relations(at("a", 0, 0), at("b", 0, 60)) == {"above"}
    assert relations(at("a", 0, 60), at("b", 0, 0)) == {"below"}
    assert relations(at("a", 0, 0), at("b", 60, 60)) == {"left of", "above"}
    assert relations(at("a", 5, 5), at("b", 5, 5)) == set()


def test_offsets_are_shrunk_by_a_tenth_of_the_extents_and_measured_by_the_raw_distance():
    # 20 wide both: an offset of d is shrunk by 4 on its axis, and (d - 4) / d must exceed a half: d > 8
    assert relations(at("a", 0, 0), at("b", 8, 0)) == set()
    assert relations(at("a", 0, 0), at("b", 8.1, 0)) == {"left of"}
    assert relations(at("a", 0, 0), at("b", 4, 0)) == set()
    # (30, 20): 26 / 36.06 and 16 / 36.06, only the first is above a half
    assert relations(at("a", 0, 0), at("b", 30, 20)) == {"left of"}
    angle = math.radians(44)
    assert relations(at("a", 0, 0), at("b", 900 * math.cos(angle), 900 * math.sin(angle))) == {"left of", "above"}


def test_exclude_alone_decides_on_too_many_even_of_other_classes():
    row = {**ONE, "exclude": [{"class": "cat", "count": 1}]}
    assert not wrong(row, [at("dog", 0, 0)])
    assert wrong(row, [at("dog", 0, 0), at("cat", 0, 0)]) == ["1 cat, more than 0"]


# GenEval's detector


def logits_for(shapes: list[tuple[str, float, tuple[slice, slice]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and mask logits of queries that see these classes, with these probabilities, in these places."""
    classes, masks = torch.full((len(shapes), 81), -30.0), torch.full((len(shapes), 16, 16), -8.0)
    for query, (name, probability, place) in enumerate(shapes):
        classes[query, CLASSES.index(name)] = math.log(probability)
        classes[query, 80] = math.log(1 - probability)
        masks[query][place] = 8.0
    return classes, masks


def test_detections_have_the_box_and_the_confidence_of_their_masks():
    shapes = [
        ("dog", 0.8, (slice(4, 8), slice(2, 12))),
        ("cat", 0.2, (slice(0, 4), slice(0, 4))),
        ("toothbrush", 0.9, (slice(12, 16), slice(0, 16))),
    ]
    found = objects(*logits_for(shapes), (32, 64))
    assert [one.name for one in found] == ["toothbrush", "dog"]
    assert found[1].box == (4, 16, 24, 32) and found[1].mask.shape == (64, 32) and found[0].box == (0, 48, 32, 64)
    inside = torch.nn.functional.interpolate(
        logits_for(shapes)[1][:1][None], size=(64, 32), mode="bilinear", align_corners=False
    )[0, 0]
    assert found[1].confidence == pytest.approx(0.8 * float(inside[inside > 0].sigmoid().mean()), rel=1e-5)


def test_a_mask_that_is_nowhere_is_no_object():
    classes, masks = logits_for([("dog", 0.9, (slice(0, 0), slice(0, 0)))])
    assert objects(classes, masks, (32, 32)) == []


def test_an_object_is_cut_out_on_grey():
    picture = Image.new("RGB", (8, 8), "red")
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:6] = True
    mask[2, 2] = False
    shown = np.asarray(cut_out(picture, Detection("dog", 1.0, (2, 2, 6, 4), mask)))
    assert shown.shape == (2, 4, 3) and (shown[0, 0] == 153).all() and (shown[1] == [255, 0, 0]).all()


def test_colours_are_the_nearest_of_three_templates_averaged(folder):
    reward, (picture,) = rewards(folder)[5], tiny.pictures(1)
    clip = reward.load()[1]
    found = Detection("dog", 1.0, (4, 4, 30, 40), np.ones((56, 40), bool))
    vector = clip.pictures([cut_out(picture, found)], 1)[0]
    best = {}
    for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"):
        texts = [f"a photo of a {colour} dog", f"a photo of a {colour}-colored dog", f"a photo of a {colour} object"]
        mean = clip.texts(texts, 3).mean(0)
        best[colour] = float(vector @ mean / mean.norm())
    assert reward._colours(picture, "dog", [found, found], clip) == [max(best, key=best.__getitem__)] * 2


def test_pictures_of_several_sizes_are_detected_as_they_are_alone(folder):
    detector = rewards(folder)[5].load()[0]
    shown = [*tiny.pictures(3), *tiny.pictures(2, (64, 48), 1)]
    shown = [shown[place] for place in (0, 3, 1, 4, 2)]
    together, alone = detector(shown, 64, 96, 2), [detector([one], 64, 96, 1)[0] for one in shown]
    for one, other in zip(together, alone, strict=True):
        assert [(a.name, a.box) for a in one] == [(b.name, b.box) for b in other] and one
        assert all(a.confidence == pytest.approx(b.confidence, abs=1e-5) for a, b in zip(one, other, strict=True))
