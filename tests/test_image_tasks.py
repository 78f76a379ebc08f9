"""Sets of prompts for pictures: their files, GenEval's training prompts, results by category, runs on tiny networks."""

import json
import os
import random
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_networks as tiny
from unmask.breakdown import balanced, wilson, with_breakdown
from unmask.cli import main
from unmask.errors import UserError
from unmask.models import load
from unmask.pictures import from_uri
from unmask.rewards import by_name
from unmask.rewards.images import ClipScore, GenEvalObjects
from unmask.rewards.images.geneval_rules import CLASSES, COLOURS, RELATIONS
from unmask.tasks import DPG, NAMES, GenEval, HPSv2Prompts, ImagePrompts, ImageRewardPrompts, PartiPrompts, Shapes
from unmask.tasks.geneval import _wrong
from unmask.tasks.geneval_prompts import TRAINED, digest, digests_of_test_prompts, key_of, make
from unmask.tasks.tables import read_rows

DATA = Path(__file__).parent / "data"
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a dog left of a cat",
    },
    {
        "tag": "colors",
        "include": [{"class": "cat", "count": 1, "color": "red"}],
        "prompt": "a photo of a red cat",
    },
]


def write(file: Path, content: str | bytes) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def jsonl(file: Path, rows: list) -> str:
    return write(file, "".join(json.dumps(row) + "\n" for row in rows))


# Files


def test_every_format_gives_the_same_prompts(tmp_path):
    prompts = ["a red dog", 'the words "fly, now"', "two cats"]
    quoted = "\n".join('"' + prompt.replace('"', '""') + '"' for prompt in prompts)
    files = [
        jsonl(tmp_path / "a.jsonl", [{"prompt": prompt} for prompt in prompts]),
        write(tmp_path / "a.json", json.dumps(prompts)),
        write(tmp_path / "b.json", json.dumps([{"prompt": prompt, "more": 1} for prompt in prompts])),
        write(tmp_path / "a.csv", f"prompt\r\n{quoted}\r\n"),
        write(tmp_path / "a.tsv", "more\tprompt\n" + "\n".join(f"x\t{prompt}" for prompt in prompts) + "\n"),
        write(tmp_path / "a.txt", "\n\n".join(prompts) + "\n"),
    ]
    for file in files:
        rows = ImagePrompts(data=file).rows("test")
        assert [row["prompt"] for row in rows] == prompts, file
        assert len({row["id"] for row in rows}) == 3
        parts = [ImagePrompts(data=file, validation_share=0.4).rows(split) for split in ("train", "validation")]
        assert sorted(row["prompt"] for part in parts for row in part) == sorted(prompts) and all(parts)


def test_dpg_has_one_row_per_item(tmp_path):
    lines = ["item_id,text,proposition_id,question", 'b1,"a cat, asleep",1,Is there a cat?']
    lines += ['b1,"a cat, asleep",2,Is it asleep?', "b2,a dog,1,Is there a dog?"]
    rows = DPG(data=write(tmp_path / "dpg.csv", "\n".join(lines))).rows("test")
    assert [(row["id"], row["prompt"]) for row in rows] == [("b1", "a cat, asleep"), ("b2", "a dog")]
    again = jsonl(tmp_path / "dpg.jsonl", [{"item_id": "b1", "prompt": "a cat, asleep"}])
    assert DPG(data=again).rows("test")[0]["id"] == "b1"
    other = jsonl(tmp_path / "two.jsonl", [{"item_id": "b1", "prompt": "a cat"}, {"item_id": "b1", "prompt": "a dog"}])
    with pytest.raises(UserError, match="row 2: item_id 'b1' has another prompt in an earlier row"):
        DPG(data=other).rows("test")


def test_a_folder_of_styles_gives_categories(tmp_path):
    for style in ("anime", "photo"):
        write(tmp_path / f"{style}.json", json.dumps([f"{style} of a dog", "a cat"]))
    task = HPSv2Prompts(data=str(tmp_path))
    rows = task.rows("test")
    assert Counter(row["category"] for row in rows) == {"anime": 2, "photo": 2}
    assert rows[0]["id"] == "anime-1" and set(task.sources("test")) == {"anime.json", "photo.json"}
    assert [reward.name for reward in task.measures()] == ["hps"]


def test_parti_and_image_reward_have_their_columns(tmp_path):
    lines = 'Prompt\tCategory\tChallenge\tNote\nthe words "Fly"\tArts\tBasic\t\na cat\tAnimals\tBasic\tx\n'
    rows = PartiPrompts(data=write(tmp_path / "p.tsv", lines)).rows("test")
    assert [(row["prompt"], row["category"]) for row in rows] == [('the words "Fly"', "Arts"), ("a cat", "Animals")]
    task = ImageRewardPrompts(data=write(tmp_path / "i.json", '[{"id": "005-1", "prompt": "a cat"}]'))
    assert task.rows("test")[0]["id"] == "005-1" and [reward.name for reward in task.measures()] == ["imagereward"]


WRONG = [
    ("x.md", "a", r"x\.md is none of \.jsonl, \.json, \.csv, \.tsv, \.txt: convert or rename it"),
    ("x.json", "{", r"x\.json is not JSON"),
    ("x.json", "{}", "holds a JSON dict, but a list of rows is needed"),
    ("x.json", "[3]", "row 1: a JSON int, but each row must be an object or a text"),
    ("x.json", "[]", "has no rows"),
    ("x.txt", b"caf\xe9", "is not UTF-8 text"),
    ("x.txt", "\n \n", "has no rows"),
    ("x.csv", "prompt\n", "has no rows"),
    ("x.csv", "prompt,b\na\n", "line 2: 1 cells under 2 columns"),
    ("x.csv", 'prompt\n"a"b\n', "line 2: not comma separated values"),
    ("x.csv", "text\na\n", "line 2: column 'prompt' is missing; the row has text"),
    ("x.json", '["a", " "]', "row 2: column 'prompt' must be a text that is not empty"),
    ("x.json", '[{"prompt": 3}]', "row 1: column 'prompt' must be a text"),
    ("x.json", '[{"prompt": "a", "id": [1]}]', "row 1: column 'id' must be a text or a whole number"),
    ("x.jsonl", "[]\n", "row 1: a JSON list"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_bad_files_name_file_and_row(number, tmp_path):
    name, content, says = WRONG[number]
    with pytest.raises(UserError, match=says):
        ImagePrompts(data=write(tmp_path / name, content)).rows("test")


def test_bad_names_and_splits(tmp_path):
    with pytest.raises(UserError, match="needs its prompts: name a file or a folder with --data"):
        ImagePrompts().rows("test")
    with pytest.raises(UserError, match="holds no file of"):
        ImagePrompts(data=str(tmp_path)).rows("test")
    with pytest.raises(UserError, match="cannot be read"):
        ImagePrompts(data=str(tmp_path / "x.json")).rows("test")
    with pytest.raises(UserError, match="no split 'train'; it has test"):
        DPG(data="x.json").rows("train")
    with pytest.raises(UserError, match="name one with --reward"):
        DPG(data="x.json").rewards()
    one = write(tmp_path / "one.txt", "a cat")
    with pytest.raises(UserError, match="has no rows for validation"):
        ImagePrompts(data=one).rows("validation")


def test_data_sets_of_the_hub_are_asked_by_id(monkeypatch):
    asked: list[tuple[str, str]] = []

    def load_dataset(name, subset, split):
        asked.append((name, split))
        return [{"Prompt": "a cat", "Category": "Animals"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = PartiPrompts(data="someone/parti")
    assert [(row["prompt"], row["category"]) for row in task.rows("test")] == [("a cat", "Animals")]
    assert asked == [("someone/parti", "train")] and list(task.sources("test")) == ["someone/parti"]


def test_random_bytes_are_read_or_refused(tmp_path):
    rng = random.Random(0)
    pieces = [b"prompt", b",", b"\t", b'"', b"\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\xff", b"\0", b"a", b"\\"]
    for turn in range(80):
        content = b"".join(rng.choices(pieces, k=rng.randrange(40)))
        for suffix in (".json", ".csv", ".tsv", ".txt"):
            file = tmp_path / f"x{suffix}"
            file.write_bytes(content)
            try:
                rows = read_rows(file)
            except UserError as error:
                assert "\n" not in str(error).replace(str(file), ""), turn
            else:
                assert all(isinstance(row, dict) for _, row in rows)


# GenEval


def test_geneval_rows_keep_their_form(tmp_path):
    task = GenEval(data=jsonl(tmp_path / "g.jsonl", GENEVAL))
    rows = task.rows("test")
    assert [row["category"] for row in rows] == ["single_object", "counting", "position", "colors"]
    for row, given in zip(rows, GENEVAL, strict=True):
        assert {**row["answer"], "prompt": row["prompt"]} == given
        again = task.stored_row(row["prompt"], json.loads(json.dumps(row["answer"])))
        assert again == given
    with pytest.raises(ValueError, match="field 'tag' must be one of"):
        task.stored_row("a photo", "3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tag": "shape"}, "row 2: field 'tag' must be one of single_object"),
        ({"include": None}, "field 'include' must be a list"),
        ({"include": []}, "field 'include' must be a list"),
        ({"exclude": {}}, "and so must 'exclude'"),
        ({"include": [{"class": "unicorn", "count": 1}]}, "class 'unicorn' is none of COCO's"),
        ({"include": [{"class": "dog", "count": 0}]}, "the count of dog must be a whole number"),
        ({"include": [{"class": "dog", "count": True}]}, "the count of dog must be a whole number"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "the color of dog must be one of red"),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "index of an earlier item"),
        ({"include": ["dog"]}, "class 'dog' is none of COCO's"),
        ({"prompt": ""}, "column 'prompt' must be a text"),
    ],
)
def test_bad_rows_of_geneval_are_named(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        GenEval(data=jsonl(tmp_path / "g.jsonl", [GENEVAL[0], GENEVAL[1] | change])).rows("test")


def test_training_prompts_are_sound_varied_and_reproducible():
    rows = list(islice(GenEval().rows("train"), 1000))
    assert Counter(row["tag"] for row in rows) == dict.fromkeys(TRAINED, 200)
    assert not any(map(_wrong, rows))
    assert len({row["prompt"] for row in rows}) > 700
    assert rows[7] == GenEval().rows("train")[7] != GenEval(data_seed=1).rows("train")[7]
    named = {item["class"] for row in rows for item in row["include"]}
    assert named == set(CLASSES)
    assert {item["color"] for row in rows for item in row["include"] if "color" in item} == set(COLOURS)
    assert {item["position"][0] for row in rows for item in row["include"] if "position" in item} == set(RELATIONS)


def test_prompts_say_what_their_rows_ask_for():
    for row in islice(GenEval().rows("train"), 500):
        text, include = row["prompt"], row["include"]
        assert text.startswith("a photo of ")
        assert all(item["class"] in text and item.get("color", "") in text for item in include)
        if row["tag"] == "position":
            relation, target = include[1]["position"]
            before, after = text.split(f" {relation} ")
            assert before.endswith(include[1]["class"]) and after.endswith(include[target]["class"])
        if row["tag"] == "counting":
            assert text.split()[3] == {2: "two", 3: "three", 4: "four"}[include[0]["count"]]
            assert row["exclude"] == [{"class": include[0]["class"], "count": include[0]["count"] + 1}]
        if row["tag"] in ("colors", "color_attr"):
            assert "person" not in text


def test_splits_and_the_test_set_share_no_prompt():
    train = {key_of(row) for row in islice(GenEval().rows("train"), 2000)}
    validation = GenEval().rows("validation")
    assert len({row["prompt"] for row in validation}) == 150
    assert Counter(row["tag"] for row in validation).keys() == set(TRAINED)
    assert not train & {key_of(row) for row in validation}
    assert not {digest(key) for key in train} & digests_of_test_prompts() and len(digests_of_test_prompts()) == 552
    assert digest(key_of(GENEVAL[0])) in digests_of_test_prompts()
    assert GenEval(data_seed=3).rows("validation") == validation


def test_rows_that_ask_for_the_same_have_one_key():
    a, b = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    assert key_of({"tag": "two_object", "include": [a, b]}) == key_of({"tag": "two_object", "include": [b, a]})
    left = {"tag": "position", "include": [a, {**b, "position": ["left of", 0]}]}
    right = {"tag": "position", "include": [b, {**a, "position": ["right of", 0]}]}
    above = {"tag": "position", "include": [b, {**a, "position": ["above", 0]}]}
    assert key_of(left) == key_of(right) != key_of(above)
    red = {"tag": "colors", "include": [{**a, "color": "red"}]}
    assert key_of(red) != key_of({"tag": "colors", "include": [{**a, "color": "blue"}]})


def test_every_category_can_be_made_in_every_split():
    for tag in TRAINED:
        for split in ("train", "validation"):
            assert make(tag, split, random.Random(0))["tag"] == tag


@pytest.mark.data
def test_the_real_files(tmp_path):
    root = Path(os.environ["UNMASK_DATA"])
    rows = GenEval(data=str(root / "geneval/evaluation_metadata.jsonl")).rows("test")
    assert len(rows) == 553 and {digest(key_of(row)) for row in rows} == digests_of_test_prompts()
    counts = Counter(row["category"] for row in rows)
    assert [counts[tag] for tag in ("single_object", *TRAINED)] == [80, 99, 80, 94, 100, 100]
    assert (root / "geneval/object_names.txt").read_text().split("\n")[:80] == list(CLASSES)
    assert not {row["prompt"] for row in islice(GenEval().rows("train"), 5000)} & {row["prompt"] for row in rows}
    assert len(DPG(data=str(root / "dpg/dpg_bench.jsonl")).rows("test")) == 1065


# Results


def generations(*rows: tuple[str | None, list[bool | None]], rewards: list[float | None] | None = None) -> list[dict]:
    found = []
    for index, (kind, answers) in enumerate(rows):
        for copy, correct in enumerate(answers):
            status = "not_applicable" if correct is None else "ok"
            item = {"index": index, "copy": copy, "category": kind, "correct": bool(correct), "status": status}
            found.append(item)
    for item, value in zip(found, rewards or [], strict=bool(rewards)):
        item["rewards"] = {"clip": value}
    return found


def test_the_score_of_geneval_is_the_mean_of_its_categories():
    rows = generations(("a", [True, True]), ("a", [True, False]), ("b", [False, False]))
    whole = {"score": 0.5, "interval": [0, 1], "generations": rows}
    by_rows = with_breakdown(dict(whole), Shapes(), 2)
    assert by_rows["score"] == 0.5 and by_rows["categories"]["a"]["score"] == 0.75
    by_category = with_breakdown(dict(whole), GenEval(), 2)
    assert by_category["score"] == 0.375 and by_category["categories"]["b"] == {
        "score": 0.0,
        "interval": list(wilson(0.0, 1)),
        "items": 1,
    }
    assert list(by_category)[-1] == "generations" and "rewards" not in by_category


def test_the_interval_of_a_mean_of_categories_covers_what_it_should():
    """Binomial rows in six categories of GenEval's sizes: 95 % of the intervals hold the true mean."""
    sizes, truth = (80, 99, 80, 94, 100, 100), (0.95, 0.6, 0.4, 0.8, 0.15, 0.3)
    rng = np.random.default_rng(0)
    kinds = [kind for kind, size in enumerate(sizes) for _ in range(size)]
    held = 0
    for _ in range(400):
        shares = [float(rng.random() < truth[kind]) for kind in kinds]
        low, high = balanced(shares, kinds)[1]
        held += low <= sum(truth) / 6 <= high
    assert 0.92 < held / 400 < 0.98


def test_rewards_that_are_no_success_are_means_over_rows():
    rows = generations(("a", [None, None]), ("b", [None, None]), rewards=[0.2, 0.4, 0.5, None])
    found = with_breakdown({"score": 0.0, "interval": [0, 1], "generations": rows}, Shapes(), 2)
    assert found["score"] is None and found["interval"] is None
    clip = found["rewards"]["clip"]
    assert clip["mean"] == pytest.approx(0.4) and clip["items"] == 2 and clip["unjudged"] == 1
    assert clip["categories"]["b"]["mean"] == 0.5 and clip["interval"][0] < 0.4 < clip["interval"][1]


# On tiny networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    tiny.clip(folder / "clip")
    tiny.segmenter(folder / "segmenter")
    load(DATA / "mmada", image_tokenizer=DATA / "magvitv2").save(folder / "mmada")
    load(DATA / "dimoo", image_tokenizer=DATA / "dimoo_vqvae").save(folder / "dimoo")
    return folder


def judge(folder: Path) -> list[str]:
    words = {"detector": folder / "segmenter", "clip": folder / "clip", "short_side": 64, "long_side": 64}
    return [word for name, value in words.items() for word in (f"--task.judge.{name}", str(value))]


def geneval_spec(folder: Path) -> str:
    return f"geneval(detector={folder / 'segmenter'}, clip={folder / 'clip'}, short_side=64, long_side=64)"


SMALL = ["--answer_length", "16", "--sampler.steps", "2"]


def test_geneval_from_the_command_line(networks, tmp_path, capsys):
    data, out = jsonl(tmp_path / "g.jsonl", GENEVAL), tmp_path / "result.json"
    words = ["eval", str(networks / "mmada"), "--task", "geneval", "--data", data, "--samples", "2", "--batch", "3"]
    words += [*SMALL, *judge(networks), "--pictures", str(tmp_path / "pictures"), "--out", str(out)]
    assert main([*words, "--reward", f"clip(model={networks / 'clip'})"]) == 0
    assert "parser GenEval (HF detector)" in capsys.readouterr().err
    result = json.loads(out.read_text())
    assert result["parser"] == "GenEval (HF detector)" and set(result["categories"]) == {row["tag"] for row in GENEVAL}
    assert all(item["correct"] or item["reason"] for item in result["generations"])
    assert -1 < result["rewards"]["clip"]["mean"] < 1 and result["rewards"]["clip"]["items"] == 4
    for index, row in enumerate(GENEVAL):
        folder = tmp_path / "pictures" / f"{index:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == row
        assert sorted(file.name for file in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    files = [item["generation"] for item in result["generations"]]
    assert all(Image.open(file).size == (64, 64) for file in files)

    again = [
        "eval",
        "--task",
        "geneval",
        "--generations",
        str(out),
        *judge(networks),
        "--out",
        str(tmp_path / "2.json"),
    ]
    assert main([*again, "--reward", f"clip(model={networks / 'clip'})"]) == 0
    rescored = json.loads((tmp_path / "2.json").read_text())
    assert rescored["score"] == result["score"] and rescored["categories"] == result["categories"]
    assert rescored["rewards"]["clip"]["mean"] == pytest.approx(result["rewards"]["clip"]["mean"], abs=1e-5)

    assert (
        main([*words[:-1], str(tmp_path / "4.json")]) == 2
        and "is not empty: name a new folder" in capsys.readouterr().err
    )
    assert main(again) == 2 and "2.json exists already" in capsys.readouterr().err
    Path(files[0]).unlink()
    assert main([*again[:-1], str(tmp_path / "3.json")]) == 2 and "0000.png cannot be read" in capsys.readouterr().err


def test_prompts_without_a_verdict_are_scored_by_rewards(networks, tmp_path, capsys):
    for style in ("anime", "photo"):
        write(tmp_path / f"{style}.json", json.dumps([f"{style} dog", "a cat"]))
    vocabulary = len(json.loads((networks / "clip/vocab.json").read_text()))
    torch.save(tiny.open_clip_layout(tiny.clip_model(vocabulary, 1, "gelu", 16)), networks / "hps.pt")
    words = ["eval", str(networks / "mmada"), "--task", "hpsv2", "--data", str(tmp_path), *SMALL]
    words += ["--task.judge.model", str(networks / "hps.pt"), "--task.judge.tokenizer", str(networks / "clip")]
    assert main(words) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["score"] is None and set(result["rewards"]["hps"]["categories"]) == {"anime", "photo"}
    assert "mean hps" in shown.err and from_uri(result["generations"][0]["generation"]).size == (64, 64)


@pytest.mark.parametrize(("preset", "model"), [("mmada-geneval", "mmada"), ("lumina-dimoo-geneval", "dimoo")])
def test_run_presets_train_and_evaluate_on_the_fixtures(preset, model, networks, tmp_path, monkeypatch):
    looked, judge_pictures = [], GenEvalObjects.judge

    def counting(reward, pictures, rows):
        looked.append(len(pictures))
        return judge_pictures(reward, pictures, rows)

    monkeypatch.setattr(GenEvalObjects, "judge", counting)
    words = ["train", "--config", preset, "--model", str(networks / model), "--out", str(tmp_path / "run")]
    words += ["--reward", geneval_spec(networks), f"clip(model={networks / 'clip'})", *judge(networks)]
    words += ["--task.answer_length", "16", "--prompts", "2", "--answers", "3", "--epochs", "2", "--steps", "1"]
    words += ["--adapter.rank", "2", "--evaluation.every", "1", "--evaluation.items", "3", "--sampler.steps", "2"]
    assert main([*words, "--compute.dtype", "float32", "--compute.device", "cpu"]) == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["reward/geneval"] == 0 and -1 < row["reward/clip"] < 1 and row["rollout/zero_std_share"] < 1
    assert row["update/grad_norm"] > 0 and row["eval/success"] == 0
    kept = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert looked == [6, 3]  # rollouts and validation: the metric is not asked again about what the reward has seen
    assert kept[0]["prompt"].startswith("a photo of ") and set(kept[0]["rewards"]) == {"geneval", "clip"}


def test_rewards_take_options_in_one_word(tmp_path):
    assert by_name("clip(model=/x/y, batch=4)") == ClipScore(model="/x/y", batch=4)
    assert by_name("clip()") == ClipScore()
    for spec, says in (
        ("clip(modle=/x)", "'modle=/x' is no OPTION=VALUE with one of its options: device, dtype, batch, model"),
        ("clip(batch=many)", "option batch must be a whole number, not 'many'"),
        ("clip(batch)", "'batch' is no OPTION=VALUE"),
        ("clip(batch=0)", "batch must be at least 1"),
        ("clap(batch=0)", r"there is no reward 'clap\(batch=0\)'"),
    ):
        with pytest.raises(UserError, match=says):
            by_name(spec)


def test_names_of_tasks():
    assert {"geneval", "dpg", "hpsv2", "parti", "imagereward", "image-prompts"} <= NAMES.keys()
