"""Pictures from the command line: runs, samples, in-painting, evaluation, the report, and what is refused."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.cli import main
from unmask.config import TrainConfig, parse
from unmask.errors import UserError
from unmask.evaluation import diversity
from unmask.models import load
from unmask.models.scratch import Scratch
from unmask.pictures import from_uri
from unmask.random import Random
from unmask.report import write_report
from unmask.rl import train
from unmask.supervised import without_prompts
from unmask.tasks import Captioned, Shapes

DATA = Path(__file__).parent / "data"
TASK = {"class_path": "Shapes", "init_args": {"validation_items": 6, "test_items": 12}}
SAMPLER = {"class_path": "Ancestral", "init_args": {"steps": 3}}
CPU = {"device": "cpu", "precision": "float32"}
RED = '''
def red(completions, prompts, **columns):
    """Mean red of the picture: any picture has some."""
    return [one.resize((1, 1)).getpixel((0, 0))[0] / 255 for one in completions]
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder, task = tmp_path_factory.mktemp("model") / "tiny", Shapes()
    scratch = Scratch(dim=16, layers=2, heads=2, ffn=32, dtype="float32")
    made = scratch.build(task.alphabet, 0, task.image_tokenizer, task.answer_length)
    made.metadata = {"answers": "image", "sampler": SAMPLER | {"class_path": "unmask.samplers.Ancestral"}}
    made.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    """A run of reinforcement learning with evaluations before and after, as the demo leaves it."""
    folder = tmp_path_factory.mktemp("rl")
    (folder / "red.py").write_text(RED)
    settings = {"task": TASK, "sampler": SAMPLER, "prompts": 2, "answers": 3, "epochs": 2, "steps": 2, "compute": CPU}
    (folder / "run.yaml").write_text(json.dumps(settings | {"evaluation": {"every": 2}}))
    words = ["--config", str(folder / "run.yaml"), "--method", "maskgrpo-image", "--model", model]
    out = folder / "run"
    train(parse(TrainConfig, "train", [*words, "--reward", f"{folder / 'red.py'}:red", "--out", str(out)]))
    (out / "evaluation").mkdir()
    for source, name in ((model, "before"), (str(out), "after")):
        file = out / "evaluation" / f"{name}.json"
        assert main(["eval", source, "--task", "shapes", "--items", "12", "--out", str(file)]) == 0
    (out / "summary.json").write_text(json.dumps({"task": "shapes", "diversity_before": 0.5, "diversity_after": 0.4}))
    return out


def test_pictures_are_trained_on_and_recorded(trained):
    row = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert 0 < row["rollout/diversity"] <= 1 and row["update/kl"] >= 0 and "eval/success" in row
    kept = [json.loads(line) for line in (trained / "rollouts.jsonl").read_text().splitlines()]
    assert from_uri(kept[0]["completion"]).size == (32, 32) and len(kept[0]["tokens"]) == 64
    assert load(trained).answers == "image"


def test_the_report_shows_pictures_categories_and_how_one_emerges(trained):
    page = write_report(trained).read_text()
    assert page.count("<img") > 24 and "How a picture emerges" in page and "By category" in page
    assert "0.500 before, 0.400 after" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_evaluation_of_pictures_is_drawn_and_can_be_scored_again(trained, tmp_path, capsys):
    result = json.loads((trained / "evaluation/after.json").read_text())
    assert result["sampler"]["temperature"] == 1.0 and result["sampler"]["class"] == "Ancestral"
    assert {item["category"] for item in result["generations"]} >= {"counting", "position"}
    file = str(trained / "evaluation/after.json")
    assert main(["eval", "--task", "shapes", "--generations", file, "--out", str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["score"] == result["score"]


def test_fine_tuning_on_pictures_learns_and_resumes(tmp_path):
    (tmp_path / "sft.yaml").write_text(
        json.dumps(
            {
                "task": TASK,
                "sampler": SAMPLER,
                "scratch": {"dim": 16, "layers": 1, "heads": 2, "ffn": 32},
                "counts": {"lowest": 0.1},
                "blank_share": 0.5,
                "batch": 8,
                "steps": 6,
                "optimizer": {"lr": 1e-2},
                "compute": CPU,
            }
        )
    )
    assert main(["sft", "--config", str(tmp_path / "sft.yaml"), "--out", str(tmp_path / "run")]) == 0
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3
    again = load(tmp_path / "run")
    assert again.answers == "image" and again.family.name == "mmada" and again.image_tokenizer is not None


def test_dropping_prompts_gives_rows_of_the_unconditional_twin(model):
    canvas = load(model).modality.encode(["a circle", "two red squares"] * 20, 64)
    places = Random.root(0, "drop").fold(torch.arange(40))
    dropped = without_prompts(canvas, 0.5, places)
    blank = canvas.blank
    assert blank is not None and dropped.attend is not None and blank.attend is not None
    gone = (dropped.ids == blank.ids).all(1)
    assert 8 < int(gone.sum()) < 32 and torch.equal(dropped.ids[~gone], canvas.ids[~gone])
    assert torch.equal(dropped.attend[gone], blank.attend[gone])
    assert without_prompts(canvas, 0.0, places) is canvas


def test_diversity_is_the_mean_share_of_slots_that_differ():
    rows = [{"index": 0, "tokens": list("abcd")}, {"index": 0, "tokens": list("abxx")}]
    rows += [{"index": 1, "tokens": list("aaaa")}, {"index": 1, "tokens": list("aaaa")}]
    assert diversity(rows) == 0.25


def test_pictures_are_sampled_to_files(model, tmp_path, capsys):
    words = ["sample", model, "--prompt", "a red circle", "--samples", "2", "--out", str(tmp_path / "x.png")]
    assert main(words) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "x.png"), str(tmp_path / "x-2.png")]
    first = Image.open(tmp_path / "x.png")
    assert first.size == (32, 32)
    assert main([*words[:-1], str(tmp_path / "y.png"), "--sampler.guidance", "2"]) == 0


def test_in_painting_changes_light_parts_of_the_mask_only(model, tmp_path):
    picture = Shapes().rows("train")[0]["completion"]
    picture.save(tmp_path / "in.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["sample", model, "--prompt", "a circle", "--out", str(tmp_path / "out.png")]
    words += ["--init", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    assert main(words) == 0
    before, after = np.asarray(picture), np.asarray(Image.open(tmp_path / "out.png"))
    assert (before[mask == 0] == after[mask == 0]).all() and (before != after).any()


def wrong(folder: Path) -> list[tuple[list[str], str]]:
    """Words behind `sample MODEL --prompt ...`, and what the one line says."""
    out, good = ["--out", str(folder / "x.png")], folder / "good.png"
    Image.new("RGB", (32, 32)).save(good)
    Image.new("RGB", (30, 32)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(good.read_bytes()[:40])
    (folder / "text.png").write_text("no picture")
    both = [str(good), "--mask"]
    return [
        ([], "--out FILE.png"),
        (["--out", str(folder / "x.gif")], "--out FILE.png"),
        (["--out", str(folder / "no/x.png")], "no folder"),
        ([*out, "--init", str(good)], "go together"),
        ([*out, "--init", *both, str(folder / "absent.png")], "cannot be read"),
        ([*out, "--init", *both, str(folder / "text.png")], "no picture"),
        ([*out, "--init", *both, str(folder / "broken.png")], "no picture"),
        ([*out, "--init", *both, str(folder / "small.png")], "the mask is 30 x 32 pixels"),
        ([*out, "--init", str(folder / "small.png"), "--mask", str(good)], "the picture is 30 x 32 pixels"),
        ([*out, "--answer_length", "60"], "no square grid"),
        ([*out, "--trace"], "--trace"),
        ([*out, "--image_tokenizer", str(folder / "absent")], "is not there"),
        ([*out, "--image_tokenizer", str(DATA / "magvitv2")], "has 8192 codes"),
        ([*out, "--prompt", "a circle " * 200], "caption of"),
        ([*out, "--prompt", "a hexagon"], "cannot encode"),
    ]


@pytest.mark.parametrize("number", range(15))
def test_bad_input_is_one_line_and_exit_code_2(number, model, tmp_path, capsys):
    words, said = wrong(tmp_path)[number]
    assert main(["sample", model, "--prompt", "a circle", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_text_models_are_asked_for_no_pictures(tmp_path, capsys):
    for words, said in ((["--to", "image", "--out", "x.png"], "no pictures"), (["--init", "x.png"], "--to image")):
        assert main(["sample", str(DATA / "llada"), "--prompt", "Hi", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["eval", str(DATA / "llada"), "--task", "shapes"]) == 2
    assert "no pictures" in capsys.readouterr().err


def pictures_in(folder: Path, count: int) -> Path:
    rows = [Shapes().rows("train")[i] for i in range(count)]
    for i, row in enumerate(rows):
        row["completion"].save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(row["prompt"] + "\n")
    lines = [json.dumps({"prompt": row["prompt"], "image": f"{i}.png"}) for i, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


def test_folders_and_lists_of_pictures_give_the_same_rows(tmp_path):
    folder = pictures_in(tmp_path, 20)
    for split in ("train", "validation"):
        one, two = (Captioned(data=str(path)).rows(split) for path in (folder, folder / "rows.jsonl"))
        assert {row["prompt"] for row in one} == {row["prompt"] for row in two}
    assert Captioned(data=str(folder)).rows("train")[0]["completion"].open().size == (32, 32)


def tar_of(folder: Path, name: str, files: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(folder / name, "w") as tar:
        for member, content in files:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / name


def test_tars_of_pictures_give_the_rows_of_the_folder_and_are_read_in_place(tmp_path):
    (tmp_path / "plain").mkdir()
    folder, shards = pictures_in(tmp_path / "plain", 20), tmp_path / "shards"
    shards.mkdir()
    for part in range(2):
        files = [
            (f"deep/{i}{end}", (folder / f"{i}{end}").read_bytes())
            for i in range(part, 20, 2)
            for end in (".txt", ".png")
        ]
        tar_of(shards, f"{part}.tar", [*files, ("deep/0.meta.json", b"{}")])
    for split in ("train", "validation"):
        one, two = (Captioned(data=str(path)).rows(split) for path in (folder, shards))
        pixels = [{row["prompt"]: np.asarray(row["completion"].open()) for row in rows} for rows in (one, two)]
        assert pixels[0].keys() == pixels[1].keys()
        assert all((pixels[0][key] == pixels[1][key]).all() for key in pixels[0])
    assert sorted(Captioned(data=str(shards)).sources("train")) == ["0.tar", "1.tar"]
    single = Captioned(data=str(shards / "0.tar"), validation_share=0).rows("train")
    assert [row["id"] for row in single] == [f"0.tar/deep/{i}" for i in range(0, 20, 2)]
    assert sorted(path.name for path in shards.iterdir()) == ["0.tar", "1.tar"]


def test_hostile_and_broken_tars_are_refused_in_one_line(tmp_path):
    picture, good = io.BytesIO(), [("a.txt", b"a circle")]
    Shapes().rows("train")[0]["completion"].save(picture, "PNG")
    good.append(("a.png", picture.getvalue()))

    def refused(path: Path, said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            for row in Captioned(data=str(path), validation_share=0).rows("train"):
                row["completion"].open()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    outside = tmp_path / "outside.txt"
    rows = Captioned(data=str(tar_of(tmp_path, "up.tar", [(f"../{n}", c) for n, c in good])), validation_share=0).rows(
        "train"
    )
    assert rows[0]["prompt"] == "a circle" and rows[0]["completion"].open().size == (32, 32)
    assert not outside.exists()  # names are keys, not places
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "link.tar", "w") as tar:
            tar.addfile(info)
        refused(tmp_path / "link.tar", "is a link, a device or sparse")
    refused(tar_of(tmp_path, "x.tar", good[:1]), "has no picture")
    refused(tar_of(tmp_path, "x.tar", good[1:]), "has no caption")
    refused(tar_of(tmp_path, "x.tar", [*good, ("a.jpg", b"")]), "two pictures")
    refused(tar_of(tmp_path, "x.tar", [("a.txt", b"\xff"), good[1]]), "no UTF-8")
    refused(tar_of(tmp_path, "x.tar", [("a.txt", b" "), good[1]]), "is empty")
    refused(tar_of(tmp_path, "x.tar", [("a.txt", b"a" * 70_000), good[1]]), "more than 65536")
    refused(tar_of(tmp_path, "x.tar", [good[0], ("a.png", b"none")]), r"'a.png' is no picture")
    whole = tar_of(tmp_path, "x.tar", good).read_bytes()
    for cut in (0, 100, 700, 1400):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        refused(tmp_path / "x.tar", "x.tar")
    for name in ("x.tar", "x.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        refused(tmp_path / name, "cannot be read as an uncompressed tar")
    refused(tmp_path / "absent.tar", "No such file")


def test_the_preset_of_mmada_fine_tunes_on_a_folder_of_pictures(tmp_path):
    folder = pictures_in(tmp_path, 6)
    small = ["--task.answer_length", "16", "--batch", "2", "--steps", "2", "--adapter.rank", "2"]
    model = load(DATA / "mmada", image_tokenizer=DATA / "magvitv2")
    model.save(tmp_path / "model")
    words = ["sft", "--config", "mmada-t2i-sft", "--model", str(tmp_path / "model"), "--data", str(folder), *small]
    more = ["--out", str(tmp_path / "run"), "--compute.dtype", "float32", "--compute.device", "cpu"]
    assert main([*words, *more]) == 0
    assert load(tmp_path / "run").image_tokenizer is not None


def test_mistakes_in_a_folder_of_pictures_are_named(tmp_path):
    folder = pictures_in(tmp_path, 3)
    (folder / "1.txt").unlink()
    with pytest.raises(UserError, match=r"1\.txt is not there"):
        Captioned(data=str(folder)).rows("train")
    (folder / "rows.jsonl").write_text(
        '{"prompt": "a circle", "image": "absent.png"}\n{"prompt": "b", "image": "0.png"}'
    )
    rows = Captioned(data=str(folder / "rows.jsonl"), validation_share=0).rows("train")
    with pytest.raises(UserError, match=r"absent\.png cannot be read"):
        rows[0]["completion"].open()
    (folder / "rows.jsonl").write_text('{"prompt": "a circle", "image": 3}')
    with pytest.raises(UserError, match="row 1: field 'image'"):
        Captioned(data=str(folder / "rows.jsonl")).rows("train")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="has no pictures"):
        Captioned(data=str(folder / "empty")).rows("train")


def test_without_a_metric_validation_reports_what_the_rewards_give(model, tmp_path):
    (tmp_path / "red.py").write_text(RED)
    prompts = "".join(f'{{"prompt": "a {colour} circle"}}\n' for colour in ("red", "blue", "green", "black"))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    task = {"class_path": "ImagePrompts", "init_args": {"data": str(tmp_path / "prompts.jsonl"), "answer_length": 64}}
    settings = {"task": task, "sampler": SAMPLER, "prompts": 2, "answers": 2, "epochs": 1, "steps": 2, "compute": CPU}
    (tmp_path / "run.yaml").write_text(json.dumps(settings | {"evaluation": {"every": 1}}))
    words = ["--config", str(tmp_path / "run.yaml"), "--method", "maskgrpo-image", "--model", model]
    out = tmp_path / "run"
    train(parse(TrainConfig, "train", [*words, "--reward", f"{tmp_path / 'red.py'}:red", "--out", str(out)]))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["eval/reward/red"] < 1 and "eval/success" not in row for row in rows)
    assert "reward (validation)" in write_report(out).read_text()
