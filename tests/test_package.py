"""What a stranger gets: the wheel with presets and assets, the README's commands, the example."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from runs import words
from unmask.cli import COMMANDS
from unmask.config import SFTConfig, TrainConfig, parse, preset, preset_names

ROOT = Path(__file__).parents[1]


LAUNCH = sorted((ROOT / "src/unmask/presets/launch").glob("*.yaml"))


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8 * config.num_machines or path.stem == "1-gpu"
    assert config.mixed_precision == "no"  # unmask chooses its own precision
    assert path.name in (ROOT / "docs/scaling.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_presets_assets_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "unmask/py.typed" in names
    assert {f"unmask/presets/runs/{name}.yaml" for name in preset_names("runs")} <= names
    assert {f"unmask/presets/methods/{name}.yaml" for name in preset_names("methods")} <= names
    assert "unmask/tasks/geneval_test.txt" in names
    assert {f"unmask/presets/launch/{path.name}" for path in LAUNCH} <= names
    for file in (ROOT / "src/unmask/assets").rglob("*"):
        if file.is_file():
            assert f"unmask/{file.relative_to(ROOT / 'src/unmask')}" in names
    assert any(name.endswith("model.safetensors") for name in names)
    assert not any("tests/" in name for name in names)


def test_the_installed_wheel_finds_its_presets_and_its_built_in_model(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": str(site)}  # dependencies from here, unmask from the wheel
    code = "import unmask; m = unmask.load('builtin:sudoku'); print(unmask.__file__, m.backbone.config.dim)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert str(home) in done.stdout
    listed = subprocess.run(
        [python, "-m", "unmask", "presets"], capture_output=True, text=True, env=environment, check=True, cwd="/"
    ).stdout
    assert "demo-sudoku" in listed and "maskgrpo" in listed


def readme_commands() -> list[str]:
    """Every `unmask ...` line of the README's code blocks."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("unmask ")]


def test_the_readme_names_commands_and_presets_that_exist():
    commands = readme_commands()
    assert commands
    for line in commands:
        name, *rest = line.split()[1:]
        assert name in COMMANDS
        if name == "train":
            if "--reward" in rest:  # the file is the reader's own
                rest = rest[: rest.index("--reward")] + rest[rest.index("--reward") + 2 :]
            if "--data" in rest:
                rest = rest[: rest.index("--data")] + rest[rest.index("--data") + 2 :]
            parse(TrainConfig, "train", rest)
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", text):
        assert (ROOT / link).exists(), link


def test_the_readme_reward_trains(tmp_path):
    block = re.search(r"```python\n# reward.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "reward.py").write_text(block.group(1))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{i:04d}"}}\n' for i in (12, 203, 44, 1230)))
    own = ["--task", "Prompts", "--task.data", str(tmp_path / "prompts.jsonl"), "--task.answer_length", "8"]
    command = [*words(tmp_path, "run", "--steps", "1"), *own, "--reward", f"{tmp_path / 'reward.py'}:short"]
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "train", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").is_file()


def test_the_makefile_has_the_commands_of_the_readme():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("install", "demo", "test", "test-slow", "lint"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_minimal_loop_learns():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/minimal_loop.py"), "--steps", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.findall(r"(?:first step|last steps) ([\d.]+)", done.stdout))
    assert first < 0.4 and last > 0.8


def test_constraints_pin_every_dependency_exactly():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_run_presets_say_which_command_they_are_for():
    for name in preset_names("runs"):
        content = yaml.safe_load(preset("runs", name).read_text())
        kind = SFTConfig if "batch" in content else TrainConfig
        parse(kind, "x", ["--config", name, "--out", "x"])
