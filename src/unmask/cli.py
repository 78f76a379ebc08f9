"""The `unmask` command. Every subcommand is a function of its words; heavy imports wait until one is chosen."""

import errno
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.errors import RunError, UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = """unmask: reinforcement learning of discrete (masked) diffusion models

  unmask demo                               see it work: a tiny model learns sudoku, in minutes, on a CPU
                                            (--task shapes: to draw; --task programs: to program)
  unmask sft --config PRESET --out DIR      supervised fine-tuning
  unmask train --config PRESET --out DIR    reinforcement learning
  unmask sample MODEL --prompt TEXT         answers of a model (--to image --out FILE.png: a picture;
                                            --image FILE: the text is about a picture)
  unmask eval MODEL --task NAME             success on a task, as JSON with every generation
  unmask eval --task NAME --generations F   stored generations (JSON, JSONL) judged again, without a model
  unmask serve --rewards NAME ...           rewards for trainers elsewhere, over HTTP
  unmask report RUN                         one page about a run
  unmask compare RUN RUN ... --out DIR      table and plot over several runs
  unmask export RUN OUT                     the final model in its family's official format
  unmask presets                            run and method presets, one name per line
  unmask doctor [MODEL]                     what this machine can do, what this model needs

`unmask COMMAND --help` lists the options of a command. `--debug` shows the traceback of an error.
MODEL is a directory in Hugging Face layout, a run directory, a hub id, or builtin:NAME.
"""


PATH_ERRORS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS)
PATH_ERRORS += (errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says about a path that cannot be what the user wants it to be."""


def thread_policy() -> None:
    """OpenMP threads wait without spinning: on shared cores spinning ones are many times slower than one thread.

    Must run before torch is imported; variables that are set already are respected.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed while running, 2 wrong usage, config or input."""
    thread_policy()
    given = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"unmask {version('unmask')}")
        return 0
    try:
        if given[0] not in COMMANDS:
            raise UserError(f"unknown command {given[0][:40]!r}; commands are {', '.join(COMMANDS)}")
        COMMANDS[given[0]](given[1:])
    except (UserError, RunError) as error:
        if debug:
            raise
        print(f"unmask: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:
        return 0
    except OSError as error:
        if debug or error.filename is None or error.errno not in PATH_ERRORS:
            raise
        print(f"unmask: {error.filename}: {error.strerror}; name another path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unmask: interrupted", file=sys.stderr)
        return 1
    return 0


def _flag(words: list[str], name: str) -> bool:
    """Takes a flag out of the words."""
    found = name in words
    words[:] = [word for word in words if word != name]
    return found


def _spell_out(words: list[str], flag: str) -> None:
    """Puts `true` behind a flag that stands alone."""
    if flag in words and (words[-1] == flag or words[words.index(flag) + 1].startswith("--")):
        words.insert(words.index(flag) + 1, "true")


def _parser(command: str, description: str) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"unmask {command}", description=description, exit_on_error=False)


def _parse(parser: "ArgumentParser", words: Sequence[str]) -> Any:
    from unmask.config import instantiate, parsed

    names = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    return instantiate(parser, parsed(parser, dict.fromkeys(names), words))


def sft(words: list[str]) -> None:
    from unmask.config import SFTConfig, parse
    from unmask.supervised import sft as run

    resume = _flag(words, "--resume")
    config = parse(SFTConfig, "sft", words, "Supervised fine-tuning on the completions of a task.")
    _finish(run(config, resume))


def train(words: list[str]) -> None:
    from unmask.config import TrainConfig, parse
    from unmask.rl import train as run

    resume = _flag(words, "--resume")
    config = parse(TrainConfig, "train", words, "Reinforcement learning.")
    _finish(run(config, resume))


def _finish(run: Any) -> None:
    if run.runtime.main:
        from unmask.report import write_report

        print(f"model   {run.directory.model}")
        print(f"report  {write_report(run.directory.path)}")


def demo(words: list[str]) -> None:
    from unmask.demo import demo as run

    parser = _parser("demo", "The whole story on a built-in tiny model: evaluate, train, evaluate again, report.")
    parser.add_argument("--task", default="sudoku", help="which world: sudoku, shapes or programs")
    parser.add_argument("--seed", type=int, default=0, help="of every random number")
    parser.add_argument("--out", type=str | None, default=None, help="run directory; default runs/demo-TASK-seedN")
    parser.add_argument("--method", type=str | None, default=None, help="method preset; default: the demo's own")
    parser.add_argument("--steps", type=int | None, default=None, help="rollout batches; default: the preset's")
    parser.add_argument("--shuffle_rewards", type=bool, default=False, help="control: rewards without information")
    options = _parse(parser, words)
    overrides = ["--shuffle_rewards", "true"] if options.shuffle_rewards else []
    if options.steps is not None:
        overrides += ["--steps", str(options.steps)]
    run(options.task, options.seed, options.out, options.method, overrides)


def sample(words: list[str]) -> None:
    from unmask.generate import generate
    from unmask.samplers import Sampler

    parser = _parser("sample", "Answers of a model to a prompt: texts on stdout, pictures in files.")
    parser.add_argument("model", help="directory, run directory, hub id or builtin:NAME")
    parser.add_argument("--prompt", required=True, type=str, help="the user's text")
    parser.add_argument("--image", action="append", default=[], type=str, help="a picture that the text is about")
    parser.add_argument("--revision", type=str | None, default=None, help="of a hub id")
    parser.add_argument("--answer_length", type=int | None, default=None, help="answer slots, in tokens")
    parser.add_argument("--samples", type=int, default=1, help="answers, one per line")
    parser.add_argument("--to", type=Literal["text", "image"] | None, default=None, help="default: the model's own")
    parser.add_argument("--out", type=str | None, default=None, help="the picture; further ones get -2, -3 ...")
    parser.add_argument("--init", type=str | None, default=None, help="a picture to paint parts of anew: see --mask")
    parser.add_argument("--mask", type=str | None, default=None, help="picture of the same size: light is painted anew")
    parser.add_argument("--image_tokenizer", type=str | None, default=None, help="its folder; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of every random number")
    parser.add_argument("--trace", type=bool, default=False, help="also show how the answer appeared, step by step")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", type=str | None, default=None, help="of the weights; default: float32 on a CPU")
    parser.add_argument("--sampler", type=Sampler | None, default=None, help="default: the model's own")
    _spell_out(words, "--trace")
    words, about_sampler = _without(words, "--sampler")
    generate(_parse(parser, words), about_sampler)


def _without(words: list[str], option: str) -> tuple[list[str], list[str]]:
    """Other words, and those of an option and its dotted ones (an option with a final dot: only those).

    What they change is known when the model is.
    """
    rest, about = [], []
    waiting = iter(words)
    for word in waiting:
        name = word.partition("=")[0]
        if (name == option or name.startswith(option.rstrip(".") + ".")) and not word.endswith(".help"):
            about += [word] if "=" in word else [word, *itertools.islice(waiting, 1)]
        else:
            rest.append(word)
    return rest, about


def evaluate(words: list[str]) -> None:
    from unmask.generate import evaluate_model
    from unmask.samplers import Sampler
    from unmask.tasks import NAMES

    parser = _parser("eval", "Success of a model on a task: greedy, or with --samples K at the sampler's temperature.")
    parser.add_argument("model", nargs="?", type=str | None, default=None, help="directory, hub id or builtin:NAME")
    parser.add_argument("--task", required=True, help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--data", type=str | None, default=None, help="the task's file or hub id")
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--items", type=int | None, default=None, help="only the first rows of the split")
    parser.add_argument(
        "--protocol",
        type=str | None,
        default=None,
        help="layout of prompts and decoding: unmask, chat, d1, maskgrpo, maskgrpo-mmada",
    )
    parser.add_argument("--parser", type=str | None, default=None, help="how answers are read: unmask, d1 ...")
    parser.add_argument("--generations", type=str | None, default=None, help="score stored ones, without a model")
    parser.add_argument("--resume", type=bool, default=False, help="go on with an evaluation that --out began")
    parser.add_argument("--samples", type=int, default=1, help="answers per row; more than one gives pass@k")
    parser.add_argument("--seed", type=int, default=0, help="of every random number")
    parser.add_argument("--revision", type=str | None, default=None, help="of a hub id")
    parser.add_argument("--answer_length", type=int | None, default=None, help="answer slots, in tokens")
    parser.add_argument("--image_tokenizer", type=str | None, default=None, help="its folder; default: the model's own")
    parser.add_argument("--batch", type=int, default=256, help="answers per forward")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", type=str | None, default=None, help="of the weights; default: float32 on a CPU")
    parser.add_argument(
        "--precision", type=Literal["auto", "float32", "bfloat16"], default="auto", help="of the forward pass"
    )
    parser.add_argument("--out", type=str | None, default=None, help="write the JSON here instead of to stdout")
    parser.add_argument(
        "--pictures", type=str | None, default=None, help="new folder for pictures, as GenEval has them"
    )
    parser.add_argument("--reward", nargs="+", type=str, default=[], help="also report the means of these")
    parser.add_argument("--sampler", type=Sampler | None, default=None, help="default: the model's own")
    _spell_out(words, "--resume")
    words, about_sampler = _without(words, "--sampler")
    words, about_task = _without(words, "--task.")
    evaluate_model(_parse(parser, words), about_sampler, about_task)


def serve(words: list[str]) -> None:
    from argparse import ArgumentError

    from unmask.messages import explain

    try:
        from unmask.serve import serve as run
    except ModuleNotFoundError as error:
        raise UserError(f"serving rewards needs the package {error.name!r}: pip install 'unmask[serve]'") from error

    parser = _parser("serve", "Serves rewards over HTTP: `unmask train --reward remote:URL` asks for them.")
    parser.add_argument("--rewards", nargs="+", type=str, required=True, help="names, or FILE.py:FUNCTION")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="any but loopback needs UNMASK_REWARD_TOKEN")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    try:  # not by `_parse`: a server needs neither the settings of training nor torch
        options = parser.parse_args(words)
    except ArgumentError as error:
        names = [option.removeprefix("--") for option in parser._option_string_actions]
        raise UserError(explain(str(error), dict.fromkeys(names))) from error
    run(options.rewards, options.host, options.port)


def report(words: list[str]) -> None:
    from unmask.report import write_report

    parser = _parser("report", "Writes RUN/report.html, one self-contained page.")
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--out", type=str | None, default=None, help="another place for the page")
    options = _parse(parser, words)
    print(write_report(_run(options.run), None if options.out is None else Path(options.out)))


def compare(words: list[str]) -> None:
    from unmask.report import write_comparison

    parser = _parser("compare", "Table and plot over several runs.")
    parser.add_argument("runs", nargs="+", type=str, help="run directories")
    parser.add_argument("--out", default="comparison", help="directory for the page and the JSON")
    options = _parse(parser, words)
    print(write_comparison([_run(run) for run in options.runs], Path(options.out)))


def _run(path: str) -> Path:
    if not (Path(path) / "config.yaml").is_file():
        raise UserError(f"{path} is no run directory: it has no config.yaml")
    return Path(path)


def export(words: list[str]) -> None:
    from unmask.model_card import model_card
    from unmask.models import load

    parser = _parser("export", "Writes the final model of a run in its family's official format.")
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("out", type=str, help="new directory for the model")
    options = _parse(parser, words)
    run, out = _run(options.run), Path(options.out)
    if not (run / "model").is_dir():
        raise UserError(f"{run} has no final model yet: finish it with --resume")
    if out.exists():
        raise UserError(f"{out} exists already: choose another directory")
    model = load(str(run / "model"))
    model.files["README.md"] = model_card(run).encode()
    model.save(out)
    print(out)


def presets(words: list[str]) -> None:
    from unmask.config import preset_names

    parser = _parser("presets", "Presets that --config and --method know, one name per line.")
    _parse(parser, words)
    for kind, option in (("runs", "--config"), ("methods", "--method")):
        print(f"{kind}, for {option}:", file=sys.stderr, flush=True)
        print("\n".join(preset_names(kind)), flush=True)


def doctor(words: list[str]) -> None:
    from unmask.doctor import report_machine, report_model

    parser = _parser("doctor", "What this machine can do, and what a model needs.")
    parser.add_argument("model", nargs="?", type=str | None, default=None, help="directory, hub id or builtin:NAME")
    parser.add_argument("--length", type=int, default=512, help="tokens of a canvas, for the estimates of memory")
    parser.add_argument("--batch", type=int, default=8, help="canvases per forward, for the estimates")
    parser.add_argument("--rank", type=int, default=64, help="of LoRA adapters, for the estimates")
    parser.add_argument("--revision", type=str | None, default=None, help="of a hub id")
    parser.add_argument("--image_tokenizer", type=str | None, default=None, help="its folder; default: the model's own")
    options = _parse(parser, words)
    if options.model is None and len(words):
        raise UserError(f"{words[0]} is about a model: name one")
    report_machine()
    if options.model is not None:
        about = ("length", "batch", "rank", "revision", "image_tokenizer")
        report_model(options.model, **{name: options[name] for name in about})


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "sft": sft,
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "serve": serve,
    "report": report,
    "compare": compare,
    "export": export,
    "presets": presets,
    "doctor": doctor,
}


if __name__ == "__main__":
    sys.exit(main())
