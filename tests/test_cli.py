"""The command line as a user meets it: help, presets, mistakes in one line, and every command on a tiny model."""

import json
from pathlib import Path

import pytest
import yaml

from runs import sandbox_works, tiny_model, words
from unmask.cli import COMMANDS, main
from unmask.config import PRESETS, SFTConfig, TrainConfig, parse, preset, preset_names
from unmask.describe import plain
from unmask.errors import UserError
from unmask.generate import Notes, choose_sampler
from unmask.models.checkpoint import outline
from unmask.samplers import Ancestral, Entropy, LowConfidence, MaskGIT, TopProb


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"unmask {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", ["train", "sft", "sample", "eval", "report", "compare", "export", "doctor", "demo"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_presets_are_listed_one_per_line(capsys):
    assert main(["presets"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert {"demo-sudoku", "sudoku-sft", "llada-gsm8k", "maskgrpo", "diffu-grpo", "unigrpo-ramp"} <= set(names)


@pytest.mark.parametrize("name", preset_names("runs"))
def test_every_run_preset_parses_and_survives_yaml(name, tmp_path):
    content = yaml.safe_load(preset("runs", name).read_text())
    kind = SFTConfig if "batch" in content else TrainConfig
    config = parse(kind, "x", ["--config", name, "--out", str(tmp_path / "out")])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plain(config)))
    assert parse(kind, "x", ["--config", str(again)]) == config


def test_one_process_or_eight_can_share_the_prompts_of_every_run_preset():
    names = [name for name in preset_names("runs") if "batch" not in yaml.safe_load(preset("runs", name).read_text())]
    assert {"demo-sudoku", "llada-gsm8k", "mmada-geneval", "lumina-dimoo-geneval"} < set(names)
    for name in names:
        for processes in (1, 8):
            parse(TrainConfig, "x", ["--config", name, "--out", "x"]).check_shares(processes)


def test_what_cannot_be_is_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unmask.run.load", lambda *_, **__: pytest.fail("loaded"))
    assert main(["train", *words(tmp_path, "run", "--updates_per_epoch", "3")]) == 2
    says = "prompts 4 must be a multiple of processes x updates_per_epoch = 1 x 3: add --prompts 6"
    assert says in capsys.readouterr().err
    own = ["--task", "Prompts", "--task.data", "x.jsonl", "--evaluation.every", "1", "--evaluation.keep_best", "true"]
    assert main(["train", *words(tmp_path, "run"), *own]) == 2
    assert "task prompts has no metric: evaluation.keep_best and stop_at need one" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"prompts 12 must be a multiple .* 8 x 1: add --prompts 16"):
        parse(TrainConfig, "x", ["--config", "demo-sudoku", "--prompts", "12", "--out", "x"]).check_shares(8)
    with pytest.raises(UserError, match="batch 12 must be a multiple of the 8 processes: set it to 16"):
        parse(SFTConfig, "x", ["--config", "sudoku-sft", "--batch", "12", "--out", "x"]).check_shares(8)


@pytest.mark.parametrize("name", preset_names("methods"))
def test_every_method_preset_runs_a_toy_step(name, tmp_path, capsys):
    assert main(["train", *words(tmp_path, "run", "--steps", "1", method=name)]) == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["step"] == 1 and row["update/grad_norm"] > 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["method"] == name
    assert "report" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [name for name in preset_names("runs") if not name.startswith(("llada", "mmada", "lumina"))]
)
def test_every_run_preset_of_a_built_in_world_runs_a_toy_step(name, tmp_path):
    content = yaml.safe_load(preset("runs", name).read_text())
    common = ["--config", name, "--out", str(tmp_path / "run"), "--steps", "1", "--evaluation.items", "4"]
    if "scratch" in content:
        small = ["--batch", "8", "--scratch.dim", "16", "--scratch.layers", "1", "--scratch.heads", "2"]
        assert main(["sft", *common, *small]) == 0
    elif "batch" in content:
        world = content["task"]["class_path"].lower()
        assert main(["sft", *common, "--batch", "8", "--model", f"builtin:{world}"]) == 0
    else:
        small = ["--prompts", "2", "--answers", "2", "--epochs", "2", "--sampler.steps", "2"]
        assert main(["train", *common, *small]) == 0
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize(
    ("words", "file", "rewards"),
    [
        (["llada-countdown"], "countdown.jsonl", {"reward/countdown", "reward/format"}),
        (["llada-sudoku"], None, {"reward/sudoku", "reward/format"}),
        (["llada-gsm8k"], "gsm8k.jsonl", {"reward/number", "reward/format", "reward/integer"}),
        (["llada-math"], "math.jsonl", {"reward/math", "reward/boxed", "reward/format"}),
        (["llada-mbpp"], "mbpp.jsonl", {"reward/code"}),
        (["llada-mbpp", "--task", "AceCode"], "acecode.jsonl", {"reward/code"}),
    ],
)
def test_the_presets_of_llada_run_a_toy_step_on_its_fixture(words, file, rewards, tmp_path):
    if rewards == {"reward/code"} and not sandbox_works():
        pytest.skip("no sandbox can start on this machine")
    data = Path(__file__).parent / "data"
    command = ["train", "--config", *words, "--model", str(data / "llada")]
    command += [] if file is None else ["--data", str(data / file)]
    command += ["--out", str(tmp_path / "run"), "--steps", "1", "--prompts", "1", "--answers", "2", "--epochs", "2"]
    command += ["--task.answer_length", "32", "--sampler.steps", "4", "--adapter.rank", "2"]
    command += ["--evaluation.every", "1", "--evaluation.items", "4"]
    assert main([*command, "--compute.dtype", "float32"]) == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert rewards <= set(row)
    assert (tmp_path / "run/model/config.json").read_text() == (data / "llada/config.json").read_text()


def test_sample_prints_answers_and_repeats_with_its_seed(tmp_path, capsys):
    model = str(tiny_model(tmp_path / "model"))
    command = ["sample", model, "--prompt", "3421210003121230", "--answer_length", "16", "--samples", "2"]
    command += ["--sampler.temperature", "1", "--seed", "3"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 2
    assert main([*command, "--trace"]) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "·" in again.err


def test_eval_writes_one_json_with_every_generation(tmp_path, capsys):
    model, out = str(tiny_model(tmp_path / "model")), tmp_path / "result.json"
    assert main(["eval", model, "--task", "sudoku", "--items", "5", "--samples", "4", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["task"] == "sudoku" and result["parser"] == "unmask" and result["protocol"] == "unmask"
    assert 0 <= result["interval"][0] <= result["score"] <= result["interval"][1] <= 1
    assert len(result["generations"]) == 20 and result["items"] == 5
    assert {"task", "question", "ground_truth", "generation", "correct"} <= set(result["generations"][0])
    assert set(result["pass_at"]) == {"1", "2", "4"}
    capsys.readouterr()
    assert main(["eval", model, "--task", "sudoku", "--items", "5", "--split", "validation"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "validation"


def test_export_writes_the_final_model_and_compare_reads_runs(tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["train", *words(tmp_path, name, "--steps", "2")]) == 0
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "model-a")]) == 0
    assert (tmp_path / "model-a/model.safetensors").read_bytes() == (
        tmp_path / "a/model/model.safetensors"
    ).read_bytes()
    card = (tmp_path / "model-a/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "unmask" and "base_model" not in front  # the start was no model of the hub
    assert "reinforcement learning (maskgrpo)" in card and "| Steps | 2 |" in card
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "cmp")]) == 0
    assert main(["report", str(tmp_path / "a")]) == 0
    assert main(["doctor", str(tmp_path / "a")]) == 0
    assert "parameters" in capsys.readouterr().out


def test_presets_lie_in_the_package():
    assert (Path(str(PRESETS)) / "runs" / "demo-sudoku.yaml").is_file()


def test_a_method_preset_keeps_nothing_of_the_run_files_method(tmp_path):
    odd = tmp_path / "odd.yaml"
    odd.write_text(
        "likelihood: {class_path: Masked, init_args: {score_tail: true, hide_prompt: 0.5}}\n"
        "objective: {class_path: Clip, init_args: {epsilon_high: 0.9}}\n"
    )
    given = ["--config", "demo-sudoku", "--config", str(odd), "--out", "x"]
    assert parse(TrainConfig, "train", given).likelihood.score_tail
    config = parse(TrainConfig, "train", [*given, "--method", "maskgrpo"])
    plainly = parse(TrainConfig, "train", ["--config", "demo-sudoku", "--out", "x"])
    assert config.likelihood == plainly.likelihood and config.objective == plainly.objective


def test_a_run_needs_no_git_and_mirrors_its_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", *words(tmp_path, "run", "--steps", "1", "--trackers", "[tensorboard]")]) == 0
    assert json.loads((tmp_path / "run/env.json").read_text())["commit"] is None
    assert list((tmp_path / "run").rglob("events.out*"))


def test_a_task_without_a_metric_reports_none(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{i:04d}"}}\n' for i in (12, 203, 44, 1230, 34, 21)))
    own = ["--task", "Prompts", "--task.data", str(prompts), "--task.answer_length", "8"]
    assert main(["train", *words(tmp_path, "run", "--steps", "1"), *own, "--reward", "format"]) == 0
    assert not any("success" in name for name in json.loads((tmp_path / "run/metrics.jsonl").read_text()))


@pytest.mark.parametrize("first", [True, False])
def test_options_of_the_sampler_change_the_models_own_or_llada_s_for_the_slots_asked_for(first, tmp_path):
    sampler, llada = ["--sampler.temperature", "0.5"], str(Path(__file__).parent / "data" / "llada")
    seen = []
    for model, length in ((str(tiny_model(tmp_path / "model")), 16), (llada, 20), (llada, 64)):
        words = [*sampler, "--prompt", "1", model] if first else [model, *sampler, "--prompt", "1"]
        assert main(["sample", *words, "--answer_length", str(length)]) == 0
        seen.append(choose_sampler(sampler, Notes({}, model, usual(model)), length, "text"))
    assert [(one.steps, one.block, one.temperature) for one in seen] == [(16, 0, 0.5), (20, 0, 0.5), (64, 32, 0.5)]
    own = Notes({"sampler": {"class_path": "TopProb", "init_args": {"steps": 4}}}, "model", usual(llada))
    assert choose_sampler(sampler, own, 64, "text") == TopProb(steps=4, temperature=0.5)
    assert choose_sampler(["--sampler", "Entropy", *sampler], own, 64, "text") == Entropy(temperature=0.5)
    assert choose_sampler([], own, 64, "text") == TopProb(steps=4)
    assert choose_sampler([], own, 64, "image") == Ancestral(steps=12, guidance=3.5)  # it says how it draws texts


def usual(source: str):
    about = outline(source)
    return lambda slots, answers: about.family.sampler(slots, about.shape, answers)


def test_every_family_has_its_own_sampler():
    own = {
        name: usual(str(Path(__file__).parent / "data" / name)) for name in ("llada", "mmada", "dimoo", "dream", "sdar")
    }
    llada = LowConfidence(steps=64, temperature=0.0, block=32)
    assert own["llada"](64, "text") == own["mmada"](64, "text") == own["dimoo"](64, "text") == llada
    assert own["dream"](64, "text") == Entropy(steps=64, temperature=0.2, top_p=0.95, counts="dream")
    assert own["sdar"](64, "text") == LowConfidence(steps=64, temperature=0.0, block=4)
    assert own["sdar"](30, "text") == LowConfidence(steps=30, temperature=0.0, block=2)
    assert own["mmada"](64, "image") == Ancestral(steps=12, guidance=3.5)
    assert own["dimoo"](64, "image") == MaskGIT(steps=64, guidance=4.0, annealing="none")
