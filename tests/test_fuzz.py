"""Readers of what comes from outside, fed rubbish: they return or raise UserError, quickly and in little memory.

About 1,500 inputs here, more than 10,000 by `make test-slow`.
"""

import copy
import io
import json
import resource
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import unmask
from runs import SETTINGS
from unmask.config import SFTConfig, TrainConfig, parse
from unmask.errors import UserError
from unmask.evaluation import rescore
from unmask.generate import Notes, choose_sampler
from unmask.models.families import family_of
from unmask.models.settings import Settings
from unmask.report import write_report
from unmask.samplers import TopProb
from unmask.stored import Partial, finished, read_generations
from unmask.tasks import GSM8K, Captioned, Countdown, Prompts, Sudoku, Task

DATA = Path(__file__).parent / "data"
FAMILIES = ("llada", "llada_gqa", "dream", "mmada", "dimoo", "sdar")

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**12, 10**30, 10**400]),
    st.sampled_from([0.0, -0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(
        ["", "x", "auto", "TopProb", "Sudoku", "unmask.samplers.Nope", "os.system", "é\u2028", "1", "null", "\0"]
    ),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.just([]),
    st.just({}),
)
VALUES = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
Change = tuple[int, str, Any, str]
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "drop", "add"]), VALUES, st.text(max_size=6)),
    min_size=1,
    max_size=3,
)


def mutated(value: Any, changes: list[Change]) -> Any:
    """A copy of JSON data in which some places are set to something else, dropped, or joined by an unknown key."""
    value = copy.deepcopy(value)
    for number, kind, new, name in changes:
        places = list(_places(value))
        if not places:
            return new
        holder, key = places[number % len(places)]
        if kind == "set":
            holder[key] = new
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[name] = new
        else:
            holder.append(new)
    return value


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def refuses_politely(call: Callable[..., object], *arguments: object) -> str | None:
    """Runs it; the message, if it was a user's mistake. Anything else fails the test."""
    try:
        call(*arguments)
    except UserError as error:
        message = str(error)
        assert message and "Traceback" not in message and len(message) < 1000, message
        return message
    return None


# -- readers: what they start from, and how rubbish is handed to them


def read_settings(folder: Path, value: Any) -> None:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    words = ["--config", str(file), "--out", str(folder / "out"), "--model", "m"]
    for kind in (TrainConfig, SFTConfig):
        refuses_politely(parse, kind, "x", words)


def read_rows(folder: Path, value: Any) -> None:
    file = folder / "rows.jsonl"
    lines = value if isinstance(value, list) else [value]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for task in (Prompts(data=str(file), validation_share=0), GSM8K(data=str(file))):
        refuses_politely(task.rows, "train")
    for puzzle in (Countdown(data=str(file), protocol="d1"), Sudoku(data=str(file))):
        refuses_politely(lambda task: list(task.rows("test")), puzzle)


def read_stored(folder: Path, value: Any) -> None:
    file, lines = folder / "stored.json", folder / "stored.jsonl"
    file.write_text(json.dumps(value))
    rows = value.get("generations") if isinstance(value, dict) else value
    lines.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])))
    for path in (file, lines):
        for task in (Sudoku(), Countdown(), GSM8K()):
            for parser in (None, "d1"):
                refuses_politely(score_again, path, task, parser)


def score_again(path: Path, task: Task, parser: str | None) -> None:
    json.dumps(rescore(read_generations(path), task, parser))


def read_partial(folder: Path, value: Any) -> None:
    file, out = folder / "partial.jsonl", folder / "result.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in value) if isinstance(value, list) else json.dumps(value))
    out.write_text(json.dumps(value))
    refuses_politely(lambda: finished(out, {"seed": 0}))
    refuses_politely(lambda: Partial(file, {"seed": 0}, resume=True).batch([(0, 0)]))


def read_model_config(folder: Path, value: Any) -> None:
    (folder / "model" / "config.json").write_text(json.dumps(value))
    refuses_politely(lambda: unmask.load(folder / "model"))


def read_any_family(folder: Path, value: Any) -> None:
    if isinstance(value, dict):
        refuses_politely(lambda: family_of(value, "config.json").read(Settings(value, "config.json")))


def read_notes(folder: Path, value: Any) -> None:
    (folder / "model" / "unmask.json").write_text(json.dumps(value))
    refuses_politely(lambda: unmask.load(folder / "model"))
    if isinstance(value, dict):
        notes = Notes(value, "model", lambda slots, _: TopProb(steps=slots))
        for call in (notes.answer_length, lambda: notes.task(Sudoku), lambda: choose_sampler([], notes, 16, "text")):
            refuses_politely(call)
    (folder / "model" / "unmask.json").unlink()


def read_weights(folder: Path, value: Any) -> None:
    header = json.dumps(value).encode()
    file = folder / "model" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + WEIGHTS[8 + HEADER_BYTES :])
    refuses_politely(lambda: unmask.load(folder / "model"))


def read_metrics(folder: Path, value: Any) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        (run / name).write_text(
            "".join(json.dumps(row) + "\n" for row in (value if isinstance(value, list) else [value]))
        )
    refuses_politely(lambda: write_report(run))


LLADA = DATA / "llada"
WEIGHTS = (LLADA / "model.safetensors").read_bytes()
HEADER_BYTES = struct.unpack("<Q", WEIGHTS[:8])[0]
METHOD = {
    "likelihood": {
        "class_path": "Masked",
        "init_args": {"levels": {"class_path": "Ramp", "init_args": {"gamma": 0.6}}},
    },
    "objective": {
        "class_path": "Clip",
        "init_args": {"epsilon": 0.2, "kl": {"class_path": "K3", "init_args": {"beta": 1}}},
    },
    "advantage": {"class_path": "Standardized"},
    "adapter": {"rank": 4, "targets": ["attention"]},
    "rewards": ["sudoku"],
    "evaluation": {"every": 2, "stop_at": 0.5},
}
SUDOKU = {"task": "sudoku", "question": "3421210003121230", "ground_truth": "3421214343121234", "generation": "3421"}
GENERATION = {"index": 0, "copy": 0, "id": "a", "cluster": "b", "status": "ok", "correct": True, "right": 1, "parts": 2}
STORED = {
    "protocol": "unmask",
    "generations": [
        {**SUDOKU, **GENERATION},
        {"task": "countdown", "question": "4,7,7=35:", "ground_truth": [[4, 7, 7], 35], "generation": "(7*4)+7"},
        {
            "task": "gsm8k",
            "question": [{"role": "user", "content": "?"}],
            "ground_truth": 3.0,
            "generation": "\\boxed{3}",
        },
    ],
}
METRICS = [
    {"step": step, "prompt": "34", "completion": "12", "group": 0, "reward": 0.5, "rewards": {"sudoku": 1.0}, **more}
    for step, more in (
        (1, {"reward/mean": 0.1, "eval/success": 0.3, "time/step": 1.0}),
        (2, {"kl": None, "advantage": 0.1}),
    )
]


def lines_of(name: str) -> list[Any]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines() if line.strip()]


QUESTIONS = [
    {"prompt": "What is it?", "image": "a.png", "completion": "red"},
    {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "b"}]}]},
]


def tar_bytes() -> bytes:
    """Two captioned pictures."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, colour in (("a", "red"), ("b", "blue")):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), colour).save(picture, "PNG")
            for name, content in ((f"{key}.png", picture.getvalue()), (f"{key}.txt", colour.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


TAR = tar_bytes()


def read_pictures(path: Path) -> None:
    for row in Captioned(data=str(path), validation_share=0).rows("train"):
        row["completion"].open()


READERS: dict[str, tuple[Callable[[Path, Any], None], Any, int]] = {
    "settings": (read_settings, SETTINGS | METHOD, 100),
    "lessons": (
        read_settings,
        SETTINGS | {"also": [{"task": SETTINGS["task"], "batch": 4, "counts": {"lowest": 0}}]},
        50,
    ),
    "questions": (read_rows, QUESTIONS, 80),
    "prompts": (read_rows, lines_of("prompts.jsonl"), 100),
    "messages": (read_rows, lines_of("messages.jsonl"), 100),
    "gsm8k": (read_rows, lines_of("gsm8k.jsonl"), 100),
    "countdown": (read_rows, lines_of("countdown.jsonl"), 100),
    "sudoku": (read_rows, [{"puzzle": "3421210003121230", "solution": "3421214343121234"}], 60),
    "stored": (read_stored, STORED, 100),
    "partial": (read_partial, [{"settings": {"seed": 0}}, {"batch": [{"index": 0, "copy": 0}]}], 100),
    "model config": (read_model_config, json.loads((LLADA / "config.json").read_text()), 150),
    "notes": (
        read_notes,
        {"task": {"class_path": "Sudoku", "init_args": {"soft": True}}, "answer_length": 16} | SETTINGS,
        80,
    ),
    "weights": (read_weights, json.loads(WEIGHTS[8 : 8 + HEADER_BYTES]), 150),
    "metrics": (read_metrics, METRICS, 200),
} | {
    f"config of {name}": (read_any_family, json.loads((DATA / name / "config.json").read_text()), 60)
    for name in FAMILIES
    if (DATA / name / "config.json").is_file()
}


def fuzz(name: str, folder: Path, times: int) -> None:
    read, start, number = READERS[name]
    shutil.copytree(LLADA, folder / "model")

    @settings(max_examples=number * times, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(CHANGES)
    def rubbish_is_refused(changes):
        read(folder, mutated(start, changes))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rubbish_is_refused()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB: no absurd size was allocated


@pytest.mark.parametrize("name", READERS)
def test_rubbish_is_refused_politely(name, tmp_path):
    fuzz(name, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_much_rubbish_is_refused_politely(name, tmp_path):
    fuzz(name, tmp_path, 8)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None, database=None)
@given(st.binary(max_size=40), st.integers(0, 10**6), st.integers(0, 30))
def test_damaged_bytes_are_refused_politely(tmp_path_factory, noise, where, length):
    folder = tmp_path_factory.getbasetemp() / "bytes"
    if not folder.exists():
        shutil.copytree(LLADA, folder / "model")

    def damaged(content: bytes) -> bytes:
        at = where % (len(content) + 1)
        return content[:at] + noise + content[at + length :]

    (folder / "rows.jsonl").write_bytes(damaged((DATA / "prompts.jsonl").read_bytes()))
    (folder / "settings.yaml").write_bytes(damaged(yaml.safe_dump(SETTINGS).encode()))
    (folder / "stored.json").write_bytes(damaged(json.dumps(STORED).encode()))
    (folder / "pictures.tar").write_bytes(damaged(TAR))
    refuses_politely(lambda: read_pictures(folder / "pictures.tar"))
    refuses_politely(lambda: Prompts(data=str(folder / "rows.jsonl")).rows("train"))
    refuses_politely(lambda: GSM8K(data=str(folder / "rows.jsonl")).rows("test"))
    (folder / "rows.csv").write_bytes(damaged((DATA / "sudoku.csv").read_bytes()))
    refuses_politely(lambda: list(Sudoku(data=str(folder / "rows.csv")).rows("test")))
    refuses_politely(lambda: rescore(read_generations(folder / "stored.json"), Sudoku()))
    refuses_politely(lambda: parse(TrainConfig, "x", ["--config", str(folder / "settings.yaml"), "--out", "x"]))
    (folder / "model/model.safetensors").write_bytes(damaged(WEIGHTS[: 8 + HEADER_BYTES]) + WEIGHTS[8 + HEADER_BYTES :])
    (folder / "model/config.json").write_bytes(damaged((LLADA / "config.json").read_bytes()))
    refuses_politely(lambda: unmask.load(folder / "model"))
