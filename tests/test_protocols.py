"""Protocols: what is asked, how the answer begins, how it is decoded, and that the result says so."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import unmask
from unmask import generate
from unmask.cli import main
from unmask.config import TrainConfig, parse
from unmask.describe import describe
from unmask.errors import UserError
from unmask.rewards import Boxed, Code, CountdownSolved, Format, by_name
from unmask.rewards.code import Expression
from unmask.rewards.sandbox import LocalSandbox
from unmask.tasks import GSM8K, MBPP, NAMES, Countdown, MathTask, Programs, Prompts

DATA = Path(__file__).parent / "data"
QUESTION = [{"role": "user", "content": "How many?"}]


def test_a_prefill_stands_behind_the_generation_prompt_and_is_not_part_of_the_answer():
    model = unmask.load(str(DATA / "llada"))
    modality = model.modality
    prefilled = [*QUESTION, {"role": "assistant", "content": "<reasoning>"}]
    (bare, _), (begun, _) = modality.prompt_ids([QUESTION, prefilled])
    assert begun[: len(bare)] == bare and modality.tokenizer.decode(begun[len(bare) :]) == "<reasoning>"
    canvas = modality.encode([prefilled], 4)
    assert canvas.ids[0].tolist() == [*begun, *[modality.mask_id] * 4]
    assert canvas.slots[0].tolist() == list(range(len(begun), len(begun) + 4))


def test_the_format_reward_goes_on_behind_the_prefill():
    text = "steps</reasoning>\n<answer>\\boxed{1}</answer>"
    assert [Format(opened=opened).judge(text, {}).value for opened in (False, True)] == [0, 1]
    assert Format(opened=True).judge(f"<reasoning>{text}", {}).value == 0
    assert Format(opened=True).judge("</reasoning>\\boxed{1}", {}).value == 0


def test_rows_and_demonstrations_of_gsm8k_follow_the_protocol():
    task = GSM8K(data=str(DATA / "gsm8k.jsonl"), protocol="d1")
    rows = task.rows("test")
    assert all(row["prompt"][-1] == {"role": "assistant", "content": "<reasoning>"} for row in rows)
    texts = [row["completion"] for row in rows]
    assert not any("<reasoning>" in text for text in texts)
    form = next(weighted.reward for weighted in task.rewards() if weighted.reward.name == "format")
    assert [score.value for score in form(texts, rows)] == [1.0] * len(rows)
    with pytest.raises(UserError, match="task gsm8k has no protocol 'd2'; it has unmask, d1, maskgrpo, maskgrpo-mmada"):
        GSM8K(protocol="d2")


@pytest.mark.parametrize("kind", [GSM8K, MathTask])
def test_for_mmada_steps_are_thoughts_in_prompts_demonstrations_and_the_reward(kind):
    data = str(DATA / f"{kind.name}.jsonl")
    task, usual = kind(data=data, protocol="maskgrpo-mmada"), kind(data=data, protocol="maskgrpo")
    rows = task.rows("test")
    assert all(row["prompt"][-1] == {"role": "assistant", "content": "<think>"} for row in rows)
    for row, other in zip(rows, usual.rows("test"), strict=True):
        asked, otherwise = row["prompt"][0]["content"], other["prompt"][0]["content"]
        assert asked.count("<think>") == asked.count("</think>") == 1 and "reasoning>" not in asked
        assert asked == otherwise.replace("reasoning>", "think>")
        assert row["completion"] == other["completion"].replace("reasoning>", "think>")
    forms = [
        next(weighted.reward for weighted in one.rewards() if weighted.reward.name == "format") for one in (task, usual)
    ]
    for completions, right in (([row["completion"] for row in rows], 0), (["so</reasoning>\\boxed{1}"] * len(rows), 1)):
        assert [score.value for score in forms[right](completions, rows)] == [1.0] * len(rows)
        assert [score.value for score in forms[1 - right](completions, rows)] == [0.0] * len(rows)
    assert forms[0].judge("so<think>again</think>\\boxed{1}", {}).value == 0


def test_the_tag_of_the_format_reward_can_be_named():
    assert by_name("format(tag=think)").judge("<think>so</think><answer>1</answer>", {}).value == 1
    with pytest.raises(UserError, match="tag must be a word"):
        Format(tag="<think>")


def test_a_named_reward_of_the_task_fits_how_it_is_asked():
    asked = GSM8K(data=str(DATA / "gsm8k.jsonl"), protocol="maskgrpo-mmada")
    assert asked.named_reward("format") == Format(opened=True, tag="think")
    assert asked.named_reward("format(tag=why)") == Format(opened=True, tag="why")
    assert asked.named_reward("format(opened=false, tag=reasoning)") == Format()
    assert GSM8K().named_reward("format") == Format()
    assert asked.named_reward("boxed") == Boxed()
    bare, chat = Countdown(partial=0.3), Countdown(protocol="d1")
    assert bare.named_reward("countdown") == CountdownSolved(bare=True, partial=0.3) == bare.rewards()[0].reward
    assert bare.named_reward("countdown(partial=0)") == CountdownSolved(bare=True, partial=0)
    assert chat.named_reward("countdown") == CountdownSolved()
    sandbox = LocalSandbox(workers=1)
    assert MBPP(sandbox=sandbox).named_reward("code") == Code(sandbox=sandbox)
    assert Programs(sandbox=sandbox).named_reward("code") == Expression(all_or_nothing=True, sandbox=sandbox)
    assert Prompts(data="mine.jsonl").named_reward("format") == Format()


def test_demonstrations_are_right_by_the_named_reward(tmp_path):
    task = GSM8K(data=str(DATA / "gsm8k.jsonl"), protocol="d1")
    words = ["--config", "llada-gsm8k", "--task.data", task.data, "--task.protocol", "d1", "--reward", "format"]
    config = parse(TrainConfig, "train", [*words, "--out", str(tmp_path / "run")])
    rows = task.rows("test")
    (weighted,) = config.weighted_rewards()
    assert {score.value for score in weighted.reward([row["completion"] for row in rows], rows)} == {1.0}


def test_an_evaluation_reports_named_rewards_as_the_task_is_asked(tmp_path):
    row = GSM8K(data=str(DATA / "gsm8k.jsonl"), protocol="d1").rows("test")[0]
    item = {"task": "gsm8k", "question": row["prompt"], "ground_truth": row["answer"], "generation": row["completion"]}
    stored, out = tmp_path / "stored.json", tmp_path / "out.json"
    for protocol, mean in (("d1", 1.0), ("unmask", 0.0)):
        stored.write_text(json.dumps({"protocol": protocol, "generations": [item]}))
        words = ["--task", "gsm8k", "--generations", str(stored), "--reward", "format", "--out", str(out)]
        assert main(["eval", *words]) == 0
        assert json.loads(out.read_text())["rewards"]["format"]["mean"] == mean
        out.unlink()
    command = ["eval", "builtin:sudoku", "--task", "countdown", "--items", "2", "--reward", "countdwn"]
    assert main(command) == 2


def test_a_protocol_brings_its_length_unless_another_is_set():
    for kind in (GSM8K, MathTask):
        names = ("unmask", "d1", "maskgrpo", "maskgrpo-mmada")
        assert [kind(protocol=name).answer_length for name in names] == [256, 256, 512, 512]
        assert replace(kind(), protocol="maskgrpo").answer_length == 512
        assert replace(kind(protocol="maskgrpo"), protocol="unmask").answer_length == 256
        for length in (256, 64):
            assert kind(protocol="maskgrpo", answer_length=length).answer_length == length
            assert replace(kind(answer_length=length), protocol="maskgrpo").answer_length == length
    assert MBPP(protocol="maskgrpo").answer_length == 256
    config = ["--config", "llada-gsm8k", "--out", "x"]
    for words, length in ([], 256), (["--task.protocol", "maskgrpo"], 512):
        task = parse(TrainConfig, "train", [*config, *words]).task
        assert task.answer_length == length
        assert yaml.safe_load(yaml.safe_dump(describe(task)))["init_args"]["answer_length"] == length


@pytest.mark.parametrize("words", [["--protocol", "d1"], ["--task.protocol", "d1"], ["--task.protocol=d1"]])
def test_a_protocol_that_is_named_replaces_the_length_that_a_model_was_trained_with(words, tmp_path, monkeypatch):
    model = unmask.load(str(DATA / "llada"))
    model.metadata |= {"task": describe(GSM8K(protocol="maskgrpo", answer_length=64)), "answer_length": 64}
    model.save(tmp_path / "model")
    seen = []
    monkeypatch.setattr(
        generate, "evaluate", lambda _, task, **more: seen.append((task, more["sampler"])) or {"generations": []}
    )
    monkeypatch.setattr(generate, "_tell", lambda *_: None)
    command = ["eval", str(tmp_path / "model"), "--task", "gsm8k", "--data", str(DATA / "gsm8k.jsonl")]
    for more in ([], words, [*words, "--answer_length", "32"], ["--task.protocol", "maskgrpo"]):
        assert main([*command, *more]) == 0
    assert [(task.protocol, task.answer_length, sampler.steps, sampler.block) for task, sampler in seen] == [
        *(("maskgrpo", 64, 64, 64), ("d1", 256, 128, 32), ("d1", 32, 16, 32), ("maskgrpo", 512, 512, 64))
    ]


def test_the_library_decodes_as_the_protocol_says():
    model, task = (
        unmask.load(str(DATA / "llada")),
        GSM8K(data=str(DATA / "gsm8k.jsonl"), protocol="d1", answer_length=32),
    )
    result = unmask.evaluate(model, task, items=1)
    assert {"class": "LowConfidence", "steps": 16, "block": 32, "temperature": 0.0}.items() <= result["sampler"].items()


def test_every_task_is_asked_by_its_own_default():
    for kind in NAMES.values():
        assert kind().protocol in kind.protocols


@pytest.mark.parametrize(
    ("words", "sampler", "length"),
    [
        (["--protocol", "d1"], {"steps": 128, "block": 32, "temperature": 0.0}, 256),
        (["--protocol", "d1", "--answer_length", "64"], {"steps": 32, "block": 32}, 64),
        (["--protocol", "maskgrpo", "--answer_length", "64"], {"steps": 64, "block": 64}, 64),
        (["--protocol", "maskgrpo-mmada", "--answer_length", "64"], {"steps": 64, "block": 64}, 64),
        (["--protocol", "d1", "--answer_length", "32", "--sampler.block", "8"], {"steps": 16, "block": 8}, 32),
        (["--task.protocol", "d1", "--task.answer_length", "64"], {"steps": 32, "block": 32, "temperature": 0.0}, 64),
    ],
)
def test_a_protocol_decodes_as_published_unless_the_user_says_otherwise(words, sampler, length, tmp_path):
    out = tmp_path / "out.json"
    command = ["eval", str(DATA / "llada"), "--task", "gsm8k", "--data", str(DATA / "gsm8k.jsonl"), "--items", "1"]
    assert main([*command, *words, "--parser", "d1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["protocol"], result["parser"]) == (words[1], "d1") and result["unmask"] == version("unmask")
    assert sampler.items() <= result["sampler"].items() and result["sampler"]["answer_length"] == length
    [item] = result["generations"]
    assert (
        item["question"][-1]["content"] == ("<think>" if "mmada" in words[1] else "<reasoning>")
        and len(item["tokens"]) == length
    )
    again = tmp_path / "again.json"
    assert main(["eval", "--task", "gsm8k", "--generations", str(out), "--parser", "d1", "--out", str(again)]) == 0
    assert json.loads(again.read_text())["protocol"] == words[1]


def test_a_result_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["eval", "builtin:sudoku", "--task", "sudoku", "--items", "2", "--out", str(out)]
    assert main(command) == 0
    was = out.read_bytes()
    assert main(command) == 2
    assert "exists already: add --resume to go on with it, or choose another file" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0 and out.read_bytes() == was
    again = ["eval", "--task", "sudoku", "--generations", str(out), "--out", str(out)]
    assert main(again) == 2 and out.read_bytes() == was
    assert "exists already: choose another file" in capsys.readouterr().err
