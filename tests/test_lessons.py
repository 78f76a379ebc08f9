"""Several lessons in one run: weights and normalisers, and texts about pictures that are really seen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from runs import SETTINGS, launch
from unmask.cli import main
from unmask.config import SFTConfig, parse
from unmask.errors import UserError
from unmask.models import load
from unmask.run import Run
from unmask.supervised import Course, _descend, sft
from unmask.tasks import Prompts

DATA = Path(__file__).parent / "data"
MMADA = ["--model", str(DATA / "mmada"), "--image_tokenizer", str(DATA / "magvitv2")]
ADD = {"class_path": "Arithmetic", "init_args": {"fewest_digits": 2, "most_digits": 2, "answer_length": 12}}


def squares(folder: Path) -> Path:
    """Captions, questions and texts about pictures of one colour."""
    colours = {"red": (220, 30, 20), "blue": (20, 40, 210), "green": (10, 160, 40), "white": (250, 250, 250)}
    captions, questions, texts = [], [], []
    for name, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
        captions.append({"prompt": f"a {name} square", "image": f"{name}.png"})
        questions.append({"prompt": "Which colour?", "image": f"{name}.png", "completion": name})
        texts.append({"prompt": f"Say {name}.", "completion": name})
    for file, rows in (("captions", captions), ("questions", questions), ("texts", texts)):
        (folder / f"{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def mixed(folder: Path, *more: str) -> SFTConfig:
    """The mixture of MMaDA: pictures, texts and texts about pictures."""
    squares(folder)

    def task(kind: str, file: str, slots: int) -> dict:
        options = {"data": str(folder / f"{file}.jsonl"), "answer_length": slots, "validation_share": 0}
        return {"class_path": kind, "init_args": options}

    settings = {
        "task": task("Captioned", "captions", 16),
        "sampler": {"class_path": "Ancestral", "init_args": {"steps": 4}},
        "batch": 4,
        "counts": {"lowest": 0.0},
        "blank_share": 0.1,
        "also": [
            {"task": task("Prompts", "texts", 6), "batch": 2, "weight": 0.1},
            {"task": task("Prompts", "questions", 8), "batch": 6, "loss": "per_answer"},
        ],
        "optimizer": {"lr": 1e-3},
        "compute": {"device": "cpu", "dtype": "float64", "precision": "float32"},
        "steps": 2,
    }
    file = folder / "mixed.yaml"
    file.write_text(json.dumps(settings))
    return parse(SFTConfig, "sft", ["--config", str(file), *MMADA, "--out", str(folder / "run"), *more])


def test_the_example_of_a_mixture_is_mmadas(tmp_path):
    file = Path(__file__).parents[1] / "examples" / "mmada-mixture.yaml"
    config = parse(SFTConfig, "sft", ["--config", str(file), "--out", str(tmp_path / "run")])
    lessons = [(type(one.task).__name__, one.weight, one.loss) for one in (config, *config.also)]
    about = ("Prompts", 1.0, "per_answer")
    assert lessons == [("Captioned", 1.0, "per_token"), ("Prompts", 0.1, "per_token"), about]


def test_the_gradient_is_the_weighted_sum_of_what_each_lesson_gives_alone(tmp_path):
    """Each with its own normaliser, and whatever the size of the pieces."""
    config = mixed(tmp_path)
    run = Run(config, updates_per_step=1, reference=False, resume=False)
    lots = [Course(run, lesson, number).lot(1) for number, lesson in enumerate((config, *config.also))]
    assert [lot.x.shape for lot in lots] == [(4, 16), (2, 6), (6, 8)] and [lot.weight for lot in lots] == [1, 0.1, 1]
    assert [lot.policy.k for lot in lots] == [8192, 8576, 8576]
    parameters = run.learner.trainable
    alone = []
    for lot in lots:
        loss = lot.loss(torch.arange(len(lot.rows)))
        alone.append((loss.item(), torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))
    pictures, text, about = lots
    assert float(pictures.total) == float(pictures.view.mask.sum())  # mean over masked codes
    assert float(text.total) == 2 * 6 and float(about.total) == 6  # all tokens; answers
    for size in (None, 1, 4):
        run.micro_batch = size
        run.learner.forget()
        losses = _descend(run, lots)
        assert losses == pytest.approx([loss for loss, _ in alone], rel=1e-6)
        for number, p in enumerate(parameters.values()):
            parts = [lot.weight * g[number] for lot, (_, g) in zip(lots, alone, strict=True) if g[number] is not None]
            assert p.grad is not None and float((p.grad - sum(parts)).abs().max()) < 1e-9


def test_further_lessons_do_not_change_what_the_main_one_draws(tmp_path):
    both = sft(mixed(tmp_path, "--steps", "1"))
    only = sft(replace(mixed(tmp_path, "--steps", "1"), also=(), out=str(tmp_path / "only")))
    one, two = (json.loads(run.directory.metrics.read_text()) for run in (only, both))
    assert two["train/loss-captioned-1"] == pytest.approx(one["train/loss"], abs=1e-6)
    parts = [two[f"train/loss-{name}"] for name in ("captioned-1", "prompts-2", "prompts-3")]
    assert two["train/loss"] == pytest.approx(parts[0] + 0.1 * parts[1] + parts[2], rel=1e-6)
    assert not any(name.startswith("train/loss-") for name in one)


def test_a_mixture_runs_from_the_command_line_resumes_and_keeps_its_codes(tmp_path):
    mixed(tmp_path)
    words = ["sft", "--config", str(tmp_path / "mixed.yaml"), *MMADA, "--code_folder", str(tmp_path / "codes")]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert (
        len(list((tmp_path / "codes").rglob("*.safetensors"))) == 4
    )  # one per picture, for captions and questions alike
    assert main([*words, "--out", str(tmp_path / "half"), "--save_every", "1"]) == 0
    for folder in ("checkpoints/step-2", "model"):
        (tmp_path / "half" / folder).rename(tmp_path / f"gone-{folder[:5]}")
    assert main([*words, "--out", str(tmp_path / "half"), "--save_every", "1", "--resume"]) == 0
    one, two = (load(tmp_path / name).backbone.state_dict() for name in ("run", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert load(tmp_path / "run").answers == "image" and load(tmp_path / "run").image_tokenizer is not None


def test_texts_about_pictures_are_learnt_by_looking_at_them(tmp_path, capsys):
    """The question is the same for all pictures: only who sees them can answer."""
    squares(tmp_path)
    settings = {
        "task": {"class_path": "Prompts", "init_args": {"data": str(tmp_path / "questions.jsonl"), "answer_length": 8}},
        "sampler": {"class_path": "LowConfidence", "init_args": {"steps": 8, "temperature": 0.0}},
        "batch": 16,
        "optimizer": {"lr": 1e-2, "warmup": 0},
        "compute": {"device": "cpu", "dtype": "float32", "precision": "float32"},
        "steps": 120,
    }
    settings["task"]["init_args"]["validation_share"] = 0
    (tmp_path / "sft.yaml").write_text(json.dumps(settings))
    out = tmp_path / "run"
    assert main(["sft", "--config", str(tmp_path / "sft.yaml"), *MMADA, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["export", str(out), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    for colour in ("red", "blue", "green", "white"):
        picture = str(tmp_path / f"{colour}.png")
        assert main(["sample", str(tmp_path / "out"), "--prompt", "Which colour?", "--image", picture]) == 0
        assert capsys.readouterr().out.strip() == colour


@pytest.mark.slow
def test_two_processes_learn_a_mixture_as_one_does(tmp_path):
    mixed(tmp_path)
    words = ["sft", "--config", str(tmp_path / "mixed.yaml"), *MMADA]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = launch(2, ["-m", "unmask", *words, "--out", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    one, two = (load(tmp_path / name).backbone.state_dict() for name in ("one", "two"))
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-9


def test_rows_with_pictures_carry_them_in_their_prompts(tmp_path):
    squares(tmp_path)
    rows = Prompts(data=str(tmp_path / "questions.jsonl"), validation_share=0).rows("train")
    picture = {"type": "image", "image": str(tmp_path / "red.png")}
    assert rows[0]["prompt"] == [{"role": "user", "content": [picture, {"type": "text", "text": "Which colour?"}]}]
    assert rows[0]["completion"] == "red" and json.dumps(rows[0])
    chat = [{"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "What?"}]}]
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": [*chat, {"role": "assistant", "content": "Red."}]})
        + "\n"
        + json.dumps({"prompt": "Compare.", "image": ["red.png", str(tmp_path / "blue.png")]})
    )
    rows = Prompts(data=str(tmp_path / "chat.jsonl"), validation_share=0).rows("train")
    assert rows[0]["prompt"][0]["content"][0] == picture and rows[0]["completion"] == "Red."
    shown = [part["image"] for part in rows[1]["prompt"][0]["content"] if part["type"] == "image"]
    assert shown == [str(tmp_path / "red.png"), str(tmp_path / "blue.png")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "a", "image": 3}', "row 1: field 'image' must be a picture file"),
        ('{"prompt": "a", "image": []}', "row 1: field 'image' must be a picture file"),
        ('{"prompt": [{"role": "system", "content": "a"}], "image": "x.png"}', "needs a turn of the user"),
        ('{"prompt": [{"role": "user", "content": [3]}]}', "row 1: field 'prompt': a part of a prompt"),
        ('{"prompt": [{"role": ["user"], "content": "a"}]}', "each turn needs"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}]}', "must be a text"),
    ],
)
def test_wrong_pictures_in_rows_are_named(row, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(UserError, match=said):
        Prompts(data=str(tmp_path / "rows.jsonl")).rows("train")


def test_lessons_that_cannot_be_had_are_one_line_and_exit_code_2(tmp_path, capsys):
    file = squares(tmp_path) / "sft.yaml"
    common = {name: SETTINGS[name] for name in ("sampler", "optimizer", "compute")} | {
        "task": ADD,
        "batch": 2,
        "steps": 1,
    }
    captions = {"class_path": "Captioned", "init_args": {"data": str(tmp_path / "captions.jsonl")}}
    asked = {"class_path": "Prompts", "init_args": {"data": str(tmp_path / "questions.jsonl"), "answer_length": 8}}
    for also, more, said in (
        ([{"task": ADD, "weight": 0}], [], "weight must be positive"),
        ([{"task": ADD, "batch": 0}], [], "batch must be at least 1"),
        ([{"task": ADD, "wait": 1}], [], "wait"),
        ([{"batch": 4}], [], "task"),
        ([{"task": captions}], [], "no pictures"),
        ([{"task": asked}], [], "reads no pictures"),
        ([], ["--code_folder", "x"], "no pictures"),
        ([], ["--image_tokenizer", str(tmp_path / "none")], "leave out image_tokenizer"),
    ):
        file.write_text(json.dumps(common | {"also": also}))
        words = ["sft", "--config", str(file), "--model", str(DATA / "llada"), "--out", str(tmp_path / "run"), *more]
        assert main(words) == 2, also
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
