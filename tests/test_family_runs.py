"""Two steps of LoRA training on every text family, export, and the very same model back."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unmask.cli import main
from unmask.models import load
from unmask.models.lora import LoRA, merged_state
from unmask.pictures import with_pictures

DATA = Path(__file__).parent / "data"
FAMILIES = ("llada", "llada_gqa", "mmada", "dream", "sdar")

COMMON = {
    "task": {"class_path": "Arithmetic", "init_args": {"fewest_digits": 2, "most_digits": 2, "answer_length": 12}},
    "sampler": {"class_path": "LowConfidence", "init_args": {"steps": 6, "block": 4}},
    "adapter": {"rank": 2, "alpha": 4},
    "optimizer": {"lr": 0.05},
    "compute": {"device": "cpu", "dtype": "float32", "precision": "float32"},
    "steps": 2,
}
REWARD = '''
def length(completions, **columns):
    """Share of characters that are letters: random text has some."""
    return [sum(map(str.isalpha, text)) / 40 for text in completions]
'''


def supervised(folder, source, *more: str) -> list[str]:
    file = folder / "sft.yaml"
    file.write_text(json.dumps(COMMON | {"batch": 4}))
    return ["sft", "--config", str(file), "--model", str(source), "--out", str(folder / "run"), *more]


def reinforced(folder, source, *more: str) -> list[str]:
    file, reward = folder / "train.yaml", folder / "reward.py"
    file.write_text(json.dumps(COMMON | {"prompts": 2, "answers": 4, "epochs": 2}))
    reward.write_text(REWARD)
    words = ["train", "--config", str(file), "--model", str(source), "--out", str(folder / "run"), *more]
    return [*words, "--method", "maskgrpo", "--reward", f"{reward}:length"]


def trained_module(run: Path, source) -> torch.nn.Module:
    """The start model with the adapters of the last checkpoint, in float32 as they were trained."""
    module = LoRA(rank=2, alpha=4.0).attach(load(source, dtype="float32").backbone, 0)
    adapters = load_file(run / "checkpoints/step-2/trainable.safetensors")
    assert adapters and all(".lora_" in name for name in adapters)
    assert not module.load_state_dict(adapters, strict=False).unexpected_keys
    return module


@pytest.mark.parametrize("kind", [supervised, reinforced])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_comes_back_from_its_export(family, kind, tmp_path):
    assert main(kind(tmp_path, DATA / family)) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    module, model = trained_module(tmp_path / "run", DATA / family), load(tmp_path / "out", dtype="float32")
    ids = torch.randint(280, (2, 20), generator=torch.Generator().manual_seed(0))
    attend = torch.arange(20) >= torch.tensor([[0], [4]])

    trained, before = load(DATA / family, dtype="float32").backbone, load(DATA / family, dtype="float32").backbone
    stored = load_file(DATA / family / "model.safetensors")
    dtype = next(iter(stored.values())).dtype  # a bf16 checkpoint stays one: its merged weights are rounded once
    trained.load_state_dict({name: value.to(dtype).float() for name, value in merged_state(module).items()})
    with torch.no_grad():
        logits = model.backbone.logits(ids, attend)
        assert (logits - trained.logits(ids, attend)).abs().max() <= 1e-5
        if dtype == torch.float32:
            assert (logits - module(ids, attend)).abs().max() <= 1e-5
        assert (logits - before.logits(ids, attend)).abs().max() > 1e-2

    saved = load_file(tmp_path / "out/model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(saved[name].dtype == stored[name].dtype and saved[name].shape == stored[name].shape for name in saved)
    changed = {name for name in saved if not torch.equal(saved[name], stored[name])}
    linear = {theirs for theirs, ours in model.names.items() if ours[0].split(".")[-2] in LINEAR}
    assert changed == {name for name in linear if name.endswith("weight")}
    there = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    for name in (name for name in there if (DATA / family / name).exists()):
        assert (tmp_path / "out" / name).read_bytes() == (DATA / family / name).read_bytes()


LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.mark.parametrize("kind", [supervised, reinforced])
@pytest.mark.parametrize(("family", "tokenizer"), [("mmada", "magvitv2"), ("dimoo", "dimoo_vqvae")])
def test_families_that_read_pictures_are_trained_on_questions_about_them(family, tokenizer, kind, tmp_path, capsys):
    pictures = [Image.new("RGB", (48, 48), colour) for colour in ("red", "navy")]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"prompt": f"Which {n}?", "image": f"{n}.png", "completion": "ab"[n]} for n in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = ["--task", "Prompts", "--data", str(tmp_path / "rows.jsonl"), "--task.validation_share", "0"]
    words = [*task, "--task.answer_length", "8", "--image_tokenizer", str(DATA / tokenizer)]
    assert main(kind(tmp_path, DATA / family, *words)) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    asked = with_pictures("Which 0?", [str(tmp_path / "0.png")])
    module, model = trained_module(tmp_path / "run", DATA / family), load(tmp_path / "out", dtype="float32")
    assert model.image_tokenizer is not None
    canvas, before = model.modality.encode([asked], 8), load(DATA / family, dtype="float32").backbone
    dtype = next(iter(model.stored.values()))
    state = {name: value.to(dtype).float() for name, value in merged_state(module).items()}
    with torch.no_grad():
        old = before.logits(canvas.ids)
        before.load_state_dict(state)
        logits = model.backbone.logits(canvas.ids)
        assert (logits - before.logits(canvas.ids)).abs().max() <= 1e-5 and (logits - old).abs().max() > 1e-2
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "out"), "--prompt", "Which 0?", "--image", str(tmp_path / "0.png")]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_is_exported_bit_for_bit(family, tmp_path, capsys):
    load(DATA / family).save(tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("task: x\n")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    before, after = load_file(DATA / family / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_family_samples(family, capsys):
    command = ["sample", str(DATA / family), "--prompt", "What is two plus two?", "--answer_length", "8"]
    assert main([*command, "--sampler.steps", "4"]) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("family", (*FAMILIES, "dimoo"))
def test_doctor_describes_every_family(family, capsys):
    assert main(["doctor", str(DATA / family)]) == 0
    text = capsys.readouterr().out
    model = load(DATA / family, device="meta")
    assert model.family.name in text
    assert f"{sum(p.numel() for p in model.backbone.parameters()):,}" in text
    words = ["mask", "inference", "LoRA", "AdamW", str(model.ids.mask)]
    if model.images is not None:
        words += ["image answers", f"{model.images.offset} to {model.images.offset + 8191}", *model.images.roles]
    for word in words:
        assert word in text


def test_doctor_estimates_for_a_length_a_batch_and_a_rank_and_looks_at_the_image_tokenizer(capsys):
    def told(*more: str) -> str:
        assert main(["doctor", str(DATA / "mmada"), *more]) == 0
        return capsys.readouterr().out

    def size(text: str, row: str) -> float:
        found = re.search(rf"^{row} +about ([\d.]+) MiB", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    usual, larger = told(), told("--length", "1024", "--batch", "16", "--rank", "128")
    assert "at 8 x 512 tokens" in usual and "none: pictures are refused" in usual
    assert "at 16 x 1024 tokens" in larger and size(larger, "inference") > 1.5 * size(usual, "inference")
    assert size(larger, "LoRA, rank 128") > size(usual, "LoRA, rank 64")
    assert "Magvit, a code for 16 x 16 pixels" in told("--image_tokenizer", str(DATA / "magvitv2"))
    assert "LowConfidence: steps 256, temperature 0.0, block 32" in usual


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llada", "--rank", "0"], "--rank must be at least 1"),
        (["llada", "--length", "-1"], "--length must be at least 1"),
        (["llada", "--batch", "0"], "--batch must be at least 1"),
        (["llada", "--revision", "main"], "revision 'main' is of a hub id"),
        (["llada", "--image_tokenizer", "magvitv2"], "has no pictures: leave out image_tokenizer"),
        (["mmada", "--image_tokenizer", "llada"], "_class_name null is not supported"),
        (["mmada", "--image_tokenizer", "none"], "is not there"),
    ],
)
def test_doctor_refuses_what_it_cannot_use(words, said, capsys):
    folders = ("llada", "mmada", "magvitv2", "none")
    words = [str(DATA / word) if word in folders else word for word in words]
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_doctor_needs_a_model_for_options_about_one(capsys):
    assert main(["doctor", "--rank", "4"]) == 2
    assert "--rank is about a model" in capsys.readouterr().err
