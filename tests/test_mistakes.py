"""A table of mistakes: each is one line on stderr that names the thing, exit code 2, and nothing is written.

A row is the words of a command and what the message must say. In the words, `T` is a tiny training run, `S` one of
fine-tuning, `M` a tiny model, `D/` the folder of `FILES`, `L/` one of broken copies of a LLaDA checkpoint, `P` the
port of a reward server.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_servers import serving
from runs import SETTINGS, words
from unmask.cli import main
from unmask.rewards import SudokuSolved, user

LLADA = Path(__file__).parent / "data" / "llada"

FILES: dict[str, str | bytes] = {
    "broken.yaml": "steps: [1\n",
    "list.yaml": "- steps\n",
    "empty.yaml": "",
    "latin.yaml": b"steps: 1 # \xe9\n",
    "tag.yaml": "!!python/object/apply:os.system [ls]\n",
    "loop.yaml": "task: &a [*a]\n",
    "text.yaml": json.dumps(SETTINGS | {"steps": "many"}),
    "key.yaml": json.dumps(SETTINGS | {"stepz": 3}),
    "inner.yaml": json.dumps(SETTINGS | {"sampler": {"class_path": "TopProb", "init_args": {"stepz": 1}}}),
    "class.yaml": json.dumps(SETTINGS | {"sampler": {"class_path": "Nope"}}),
    "group.yaml": json.dumps(SETTINGS | {"optimizer": {"lrr": 1}}),
    "listed.yaml": json.dumps(SETTINGS | {"optimizer": [1]}),
    "null.yaml": json.dumps(SETTINGS | {"optimizer": None}),
    "none.yaml": json.dumps({"evaluation": {"every": None}}),
    "args.yaml": json.dumps(SETTINGS | {"sampler": {"class_path": "TopProb", "init_args": [1]}}),
    "nested.yaml": json.dumps({"config": "demo-sudoku"}),
    "huge.yaml": json.dumps(SETTINGS | {"seed": 2**70}),
    "ünï.yaml": "schrïtte: 3\n",
    "json.jsonl": '{"prompt": "hi"}\n{"prompt": \n',
    "array.jsonl": '{"prompt": "hi"}\n\n["hi"]\n',
    "missing.jsonl": '{"prompt": "hi"}\n{"no prompt": 1}\n',
    "number.jsonl": '{"prompt": 3}\n',
    "blank.jsonl": '{"prompt": ""}\n',
    "turn.jsonl": '{"prompt": [{"role": "user"}]}\n',
    "empty.jsonl": "\n",
    "latin.jsonl": b'{"prompt": "caf\xe9"}\n',
    "asks.jsonl": '{"messages": [{"role": "user", "content": "hi"}]}\n',
    "ho.jsonl": '{"prompt": "hi"}\n{"prompt": "ho"}\n',
    "chat.jsonl": '{"messages": {"role": "user"}}\n',
    "completion.jsonl": '{"prompt": "hi", "completion": ["x"]}\n',
    "question.jsonl": '{"question": "1 + 1?", "answer": "#### two"}\n',
    "answer.jsonl": '{"question": "1 + 1?"}\n',
    "gsm.jsonl": '{"task": "gsm8k", "question": "?", "ground_truth": 3}\n',
    "truth.jsonl": '{"task": "gsm8k", "question": "?", "generation": "3"}\n',
    "gold.jsonl": '{"task": "gsm8k", "question": "?", "generation": "3", "ground_truth": "two"}\n',
    "tests.jsonl": '{"task": "mbpp", "question": "?", "generation": "3", "ground_truth": "two"}\n',
    "latex.jsonl": '{"task": "math", "question": "?", "generation": "3", "ground_truth": ""}\n',
    "grid.jsonl": '{"task": "sudoku", "question": "?", "generation": "3", "ground_truth": "two"}\n',
    "rows.json": '{"generations": [3]}',
    "own.py": "size = 3\ndef fine(completions, **columns):\n    return [0.0 for _ in completions]\ndef none(): ...\n",
    "syntax.py": "def fine(completions:\n",
    "exits.py": "raise SystemExit('bye')\n",
    "imports.py": "import nowhere_to_be_found\n",
    "rewards.txt": "",
    "here/x": "",
}

BROKEN: dict[str, Callable[[Path], object]] = {
    "json": lambda at: (at / "config.json").write_text("{"),
    "list": lambda at: (at / "config.json").write_text("[]"),
    "key": lambda at: _config(at, n_layers=None),
    "type": lambda at: _config(at, d_model="64"),
    "nan": lambda at: _config(at, rope_theta=float("nan")),
    "huge": lambda at: _config(at, n_layers=10**12),
    "family": lambda at: _config(at, model_type="gpt"),
    "value": lambda at: _config(at, alibi=True),
    "heads": lambda at: _config(at, n_heads=5),
    "shape": lambda at: _config(at, mlp_hidden_size=161),
    "mask": lambda at: _config(at, mask_token_id=9_999),
    "cut": lambda at: os.truncate(at / "model.safetensors", 1000),
    "none": lambda at: os.truncate(at / "model.safetensors", 0),
    "pickle": lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
    "index": lambda at: _index(at, {"weight_map": {"a": "model-2.safetensors"}}),
    "escape": lambda at: _index(at, {"weight_map": {"a": "../model.safetensors"}}),
    "map": lambda at: _index(at, {"weight_map": 3}),
    "tokenizer": lambda at: (at / "tokenizer.json").unlink(),
    "tokens": lambda at: (at / "tokenizer.json").write_text("{}"),
    "notes": lambda at: (at / "unmask.json").write_text("{"),
    "sampler": lambda at: (at / "unmask.json").write_text('{"sampler": {"class_path": "Nope"}}'),
    "told": lambda at: (at / "unmask.json").write_text('{"task": 3, "answer_length": "x"}'),
}


def _text(**values: object) -> str:
    settings = json.loads((LLADA / "config.json").read_text()) | values
    return json.dumps({name: value for name, value in settings.items() if value is not None or name not in values})


def _config(at: Path, **values: object) -> None:
    (at / "config.json").write_text(_text(**values))


def _index(at: Path, index: object) -> None:
    (at / "model.safetensors").rename(at / "model-1.safetensors")
    (at / "model.safetensors.index.json").write_text(json.dumps(index))


MISTAKES = {
    "commands": """
        fly                                         | unknown command 'fly'; commands are demo, sft
        train                                       | --out; preset; --config
        train --config no-such                      | --config no-such; demo-sudoku
        train --config demo-sudoku                  | --out is required
        train --config                              | --config needs a value
        train --config D/here --out x               | D/here: neither a file nor a preset
        sft --config sudoku-sft-right --out D/s --model M | scratch
        sft --config sudoku-sft --out D/s --batch 0 | batch must be at least 1, not 0
        sft --config sudoku-sft --out D/s --method maskgrpo | unknown option --method
        sft --config demo-sudoku --out D/s          | demo-sudoku: unknown key 'likelihood'
        sample D/nowhere --prompt 1                 | D/nowhere is not there
        sample M                                    | --prompt is required
        sample --prompt 1                           | MODEL is required
        sample M --prompt                           | --prompt needs a value
        sample M --prompt hello                     | cannot encode; hello
        sample M --prompt 1 --samples 2             | --sampler.temperature 1
        sample M --prompt 1 --samples 0             | --samples must be in [1,
        sample M --prompt 1 --answer_length 0       | --answer_length must be in [1,
        sample M --prompt 1 --answer_length 999999999999 | --answer_length must be in [1,
        sample M --prompt 1 --seed -1               | --seed must be in [0,
        sample M --prompt 1 --sampler Nope          | sampler: unknown class 'Nope'; known: Ancestral
        sample M --prompt 1 --sampler.steps 0       | sampler.steps must be at least 1, not 0
        sample M --prompt 1 --sampler.nope 1        | has no option 'nope'; it has steps
        sample M --prompt 1 --dtype int8            | dtype int8 is unknown: use float64
        sample M --prompt 1 --revision x            | revision 'x'; leave it out
        sample M more --prompt 1                    | unexpected 'more'
        eval M                                      | --task is required
        eval M --task no-such                       | there is no task 'no-such'; choose one of
        eval M --tsak sudoku                        | unknown option --tsak; did you mean --task?
        eval M --task sudoku --split holiday        | no split 'holiday'; it has train
        eval M --task sudoku --data f.jsonl         | data file f.jsonl cannot be read
        eval M --task arithmetic --data f.jsonl     | --data: task arithmetic is generated
        eval M --task sudoku --parser nope          | --parser nope; sudoku
        eval M --task sudoku --protocol nope        | --protocol nope; sudoku
        eval M --task sudoku --items 0              | items must be at least 1, not 0
        eval M --task sudoku --samples 0            | samples must be in [1,
        eval M --task sudoku --samples 99999999999  | samples must be in [1,
        eval M --task sudoku --batch 0              | batch at least 1
        eval M --task sudoku --pictures D/x         | --pictures is for answers that are pictures
        eval M --task sudoku --reward nope          | there is no reward 'nope'
        eval M --task sudoku --reward clip(batch=x) | reward clip: option batch must be a whole number, not 'x'
        eval M --task sudoku --task.nope 1          | task: Sudoku has no option 'nope'; it has
        eval --task hpsv2 --generations D/rows.json --task.judge.batch 0 | reward hps: batch must be at least 1
        eval M --task sudoku --out D/here           | --out D/here cannot be written: name a file
        eval M --task sudoku --out D/own.py/x.json  | --out D/own.py/x.json cannot be written
        eval M --task sudoku --device gpu           | device: must be one of auto, cpu, cuda, not 'gpu'
        report D/here                               | D/here is no run directory: it has no config.yaml
        compare D/here                              | D/here is no run directory
        export D/here D/e                           | D/here is no run directory
        export D/here                               | OUT is required
        doctor builtin:nope                         | builtin:nope does not exist; there are: builtin:
        serve                                       | --rewards is required
        serve --rewards                             | --rewards needs a value
        serve --rewards no-such                     | there is no reward 'no-such'; choose one of number
        serve --rewards sudoku sudoku               | two rewards are called 'sudoku'
        serve --rewards sudoku --port x             | port: must be a whole number, not 'x'
        serve --rewards sudoku --port 65536         | --port must be in [0, 65535], not 65536
        serve --rewards sudoku --port P             | cannot listen at --host 127.0.0.1 --port; in use; choose others
        serve --rewards sudoku --host 0.0.0.0       | can be reached by others: set UNMASK_REWARD_TOKEN
        serve --rewards sudoku --prot 1             | unknown option --prot; did you mean --port?
        presets --nope                              | unknown option --nope
        demo --task no-such                         | no demo of task 'no-such'; demos are
        demo --steps x                              | steps: must be a whole number, not 'x'
        demo --out D/here                           | --out D/here exists already
        eval M --task sudoku --resume               | --resume needs --out FILE
        eval M --task sudoku --out D/gsm.jsonl      | --out D/gsm.jsonl exists already: add --resume
        eval --task sudoku --generations D/grid.jsonl --out D/gsm.jsonl | exists already: choose another file
        eval M --task arithmetic --protocol d1      | --protocol d1: task arithmetic has unmask
        eval M --task gsm8k --protocol d2           | --protocol d2: task gsm8k has unmask, d1, maskgrpo
        eval M --task math500                       | task math500 needs your copy of the data: name it with --data
        eval --task mbpp --generations D/tests.jsonl | D/tests.jsonl, row 1: the ground truth must be a list of Python
        eval --task math --generations D/latex.jsonl | D/latex.jsonl, row 1: the ground truth must be a LaTeX text
        eval M --task sudoku --generations D/x      | leave out model
        eval --task sudoku                          | MODEL is required, or --generations FILE
        eval --task sudoku --generations D/nowhere  | --generations D/nowhere cannot be read
        eval --task sudoku --generations D/gsm.jsonl | D/gsm.jsonl holds no generation of task sudoku; it holds gsm8k
        eval --task gsm8k --generations D/gsm.jsonl | D/gsm.jsonl, row 1: field 'generation' must be a text
        eval --task gsm8k --generations D/truth.jsonl | D/truth.jsonl, row 1: field 'ground_truth' is missing
        eval --task gsm8k --generations D/gold.jsonl | D/gold.jsonl, row 1: no number in the answer 'two'
        eval --task sudoku --generations D/grid.jsonl | D/grid.jsonl, row 1: the question holds no puzzle
        eval --task gsm8k --generations D/gold.jsonl --parser d2 | --parser d2: task gsm8k has unmask, d1
        eval --task gsm8k --generations D/rows.json | D/rows.json: 'generations' must be a list of objects
    """,
    "options": """
        T --no_such_option 1                        | unknown option --no_such_option
        T --optimzer.lr 1                           | unknown option --optimzer.lr; did you mean --optimizer.lr?
        T --steps                                   | --steps needs a value
        T --steps many                              | steps: must be a whole number, not 'many'
        T --steps 1.5                               | steps: must be a whole number, not '1.5'
        T --steps 0                                 | steps must be at least 1, not 0
        T --steps -1                                | steps must be at least 1, not -1
        T --steps 99999999999999999999999           | steps: is too large
        T --answers 1                               | answers must be at least 2
        T --prompts 4 --updates_per_epoch 3         | prompts
        T --seed -1                                 | seed must be in [0,
        T --seed 1e3                                | seed: must be a whole number
        T --method no-such                          | --method no-such; maskgrpo
        T --sampler NoSuch                          | sampler: unknown class 'NoSuch'; known: Ancestral, Entropy
        T --sampler.class_path Nope                 | sampler: unknown class 'Nope'; known
        T --sampler Sudoku                          | sampler: unknown class 'Sudoku'; known
        T --sampler [TopProb]                       | sampler: must be a class; known
        T --sampler.no_such 1                       | sampler: TopProb has no option 'no_such'; it has steps
        T --sampler.temperature -1                  | temperature
        T --sampler.temperature .nan                | sampler.temperature: must be a finite number
        T --sampler.block 7                         | sampler.block 7 does not divide the 16
        T --likelihood.levels Nope                  | likelihood.levels: unknown class 'Nope'; known: Always
        T --likelihood.levels Ramp --likelihood.levels.gamma 2 | gamma must be in [0, 1), not 2.0
        T --objective.kl Nope                       | objective.kl: unknown class 'Nope'; known: K1, K2, K3
        T --objective.kl.beta x                     | objective.kl.beta: must be a number, not 'x'
        T --objective.epsilon -1                    | objective.epsilon
        T --advantage Nope                          | advantage: unknown class 'Nope'; known: Centered
        T --optimizer.lr 0                          | lr and max_grad_norm must be positive
        T --optimizer.lr abc                        | optimizer.lr: must be a number, not 'abc'
        T --optimizer.lr 1e999                      | optimizer.lr: must be a finite number
        T --optimizer.betas [2,3]                   | optimizer.betas must be in [0, 1)
        T --optimizer.betas [1]                     | optimizer.betas: must be a list of 2 values
        T --optimizer.schedule tri                  | optimizer.schedule: must be one of constant, linear, cosine
        T --optimizer 3                             | optimizer: must be a mapping of its options (lr,
        T --compute.device tpu                      | compute.device: must be one of auto, cpu, cuda, not 'tpu'
        T --compute.checkpointing maybe             | compute.checkpointing: must be true or false, not 'maybe'
        T --adapter yes                             | adapter: must be a mapping of its options (rank
        T --adapter.rank 0                          | rank must be at least 1, not 0
        T --adapter.alpha -1                        | adapter.alpha must be positive, not -1
        T --evaluation.stop_at 7                    | evaluation.stop_at is a share in [0, 1], not 7
        T --max_dropped_share 2                     | max_dropped_share is a share in [0, 1]
        T --compute.threads 1000000000              | compute.threads must be in 1 .. 4096
        T --adapter.rank x                          | adapter.rank: must be a whole number, not 'x'
        T --adapter.targets [nothing]               | 'nothing' matches nothing: use attention
        T --evaluation.stop_at 0.5                  | need evaluation.every > 0
        T --evaluation.every null                   | evaluation.every: must be a whole number, not null
        T --trackers [no-such]                      | trackers: 'no-such' is unknown or not installed
        T --trackers wandb                          | trackers: must be a list [a, b], not 'wandb'
        T --model D/nowhere                         | D/nowhere is not there: name the folder of a model
        T --model builtin:no-such                   | builtin:no-such does not exist; there are
        T --task NoSuch                             | task: unknown class 'NoSuch'; known: AceCode, Arithmetic
        T --task.answer_length 3                    | answer_length must be at least 16, not 3
        T --task.test_items 999999999999            | test_items must be at most
        T --task.soft maybe                         | task.soft: must be true or false, not 'maybe'
        T --reward_weights [1,2]                    | 1 rewards need as many reward_weights, not 2
        T --out D/own.py                            | --out D/own.py is a file: name a directory
        T --out D/own.py/below                      | own.py
        T --out D/here                              | --out D/here is not empty and holds no run
        T more                                      | unexpected 'more'
    """,
    "files of settings": """
        train --config D/broken.yaml --out x        | D/broken.yaml, line 2: not valid YAML
        train --config D/list.yaml --out x          | D/list.yaml must hold `key: value` lines
        train --config D/empty.yaml --out x         | D/empty.yaml must hold `key: value` lines, not 'null'
        train --config D/latin.yaml --out x         | D/latin.yaml is not valid YAML: 'utf-8'
        train --config D/tag.yaml --out x           | D/tag.yaml, line 1: not valid YAML; os.system
        train --config D/loop.yaml --out x          | D/loop.yaml
        train --config D/text.yaml --out x          | D/text.yaml: steps: must be a whole number, not 'many'
        train --config D/key.yaml --out x           | D/key.yaml: unknown key 'stepz'; did you mean steps?
        train --config D/inner.yaml --out x         | D/inner.yaml: sampler: TopProb has no option 'stepz'; it has
        train --config D/class.yaml --out x         | D/class.yaml: sampler: unknown class 'Nope'; known: Ancestral
        train --config D/group.yaml --out x         | D/group.yaml: optimizer: has no option 'lrr'; it has lr
        T --config D/listed.yaml                    | optimizer: must be a mapping of its options (lr
        T --config D/null.yaml                      | optimizer: must be a mapping of its options (lr
        train --config D/args.yaml --out x          | D/args.yaml: sampler: init_args of TopProb must be a mapping
        T --config D/none.yaml                      | evaluation.every: must not be null
        train --config D/nested.yaml --out x        | D/nested.yaml: key 'config' is not for files
        T --config D/huge.yaml                      | seed: is too large
        train --config D/ünï.yaml --out x           | D/ünï.yaml: unknown key 'schrïtte'
    """,
    "data": """
        TP --data D/none.jsonl                      | data file D/none.jsonl cannot be read
        TP --data D/here                            | data file D/here cannot be read
        TP --data D/json.jsonl --reward format      | D/json.jsonl, row 2: not JSON; one JSON object
        TP --data D/array.jsonl --reward format     | D/array.jsonl, row 3: a JSON list
        TP --data D/missing.jsonl --reward format   | D/missing.jsonl, row 2: field 'prompt' is missing; write
        TP --data D/number.jsonl --reward format    | D/number.jsonl, row 1: field 'prompt' must be a list of {role
        TP --data D/blank.jsonl --reward format     | D/blank.jsonl, row 1: field 'prompt' is empty; write
        TP --data D/turn.jsonl --reward format      | D/turn.jsonl, row 1: field 'prompt': each turn needs
        TP --data D/empty.jsonl --reward format     | data file D/empty.jsonl has no rows
        TP --data D/latin.jsonl --reward format     | data file D/latin.jsonl is not UTF-8 text (byte 15); convert it
        SP --data D/asks.jsonl                      | D/asks.jsonl, row 1: field 'messages' must end in an assistant's
        SP --data D/chat.jsonl                      | D/chat.jsonl, row 1: field 'messages' must be a list of {role
        SP --data D/completion.jsonl                | D/completion.jsonl, row 1: field 'completion' must be a text
        eval M --task gsm8k --data D/question.jsonl | D/question.jsonl, row 1: field 'answer': no number; ####
        eval M --task gsm8k --data D/answer.jsonl   | D/answer.jsonl, row 1: field 'answer' must be a text
        eval M --task gsm8k --data D/nowhere/x      | data file D/nowhere/x cannot be read
        eval M --task prompts --data D/blank.jsonl  | task prompts has no split 'test'
    """,
    "rewards": """
        T --reward clip(modle=x)                    | reward clip: 'modle=x' is no OPTION=VALUE; device, dtype, batch
        T --reward clip(model=./nowhere)            | ./nowhere is not there: name a model's folder or hub id
        T --reward hps(model=./own.py,tokenizer=./here) | own.py is truncated or holds more than tensors; fetch
        T --reward aesthetic(device=tpu)            | device 'tpu' of a reward: must be auto, cpu, cuda
        T --task GenEval --task.validation_items 0  | validation_items must be in [1, 2000], not 0
        T --task GenEval --task.judge.short_side 9  | reward geneval: 32 <= short_side
        T --reward no-such                          | there is no reward 'no-such'; choose one of number
        T --reward D/own.py                         | names no function; write it as FILE.py:FUNCTION
        T --reward D/own.py:missing                 | D/own.py has no function 'missing'; it has fine, none
        T --reward D/own.py:size                    | D/own.py has no function 'size'
        T --reward D/own.py:none                    | none takes no completions; write it as none(completions
        T --reward D/none.py:fine                   | D/none.py does not exist; name it as FILE.py:FUNCTION
        T --reward D/rewards.txt:fine               | there is no reward 'D/rewards.txt:fine'; FILE.py:FUNCTION
        T --reward D/syntax.py:fine                 | D/syntax.py cannot be imported: SyntaxError
        T --reward D/exits.py:fine                  | D/exits.py cannot be imported: SystemExit: bye
        T --reward D/imports.py:fine                | D/imports.py cannot be imported: ModuleNotFoundError
        T --reward remote:sudoku                    | 'sudoku' is no address of a reward; remote:http://HOST:PORT/NAME
        T --reward remote:http://127.0.0.1:1/       | is no address of a reward; remote:http://HOST:PORT/NAME
        T --reward remote:ftp://127.0.0.1/sudoku    | 'ftp://127.0.0.1' is no address of a server
        T --reward remote:http://127.0.0.1:x/sudoku | 'http://127.0.0.1:x' is no address
        T --reward remote:http://127.0.0.1:P/nope   | remote reward nope; HTTP 404; this server has sudoku
        T --reward judge:http://127.0.0.1:1/m       | is no address of a judge; judge:http://HOST:PORT/v1/MODEL
        T --reward                                  | --reward needs a value
        train --config demo-sudoku --out D/o --model M --task Prompts --data D/ho.jsonl | no reward of its own; --reward
    """,
    "checkpoints": """
        sample L/json --prompt 1                    | L/json/config.json cannot be read as JSON
        sample L/list --prompt 1                    | L/list/config.json must hold a JSON object
        sample L/key --prompt 1                     | L/key/config.json: key 'n_layers' is missing
        sample L/type --prompt 1                    | L/type/config.json: d_model is '64', but must be a positive
        sample L/nan --prompt 1                     | L/nan/config.json: rope_theta is nan, but must be
        sample L/huge --prompt 1                    | L/huge/config.json: n_layers
        sample L/family --prompt 1                  | L/family/config.json; 'gpt'; supported: llada
        sample L/value --prompt 1                   | L/value/config.json: alibi is True, but must be
        sample L/heads --prompt 1                   | L/heads/config.json: n_heads is 5, but must be
        sample L/shape --prompt 1                   | L/shape/model.safetensors: wrong shapes; 161
        sample L/mask --prompt 1                    | L/mask; mask_token_id is 9999, but must be
        sample L/cut --prompt 1                     | L/cut/model.safetensors is truncated; fetch or copy it again
        sample L/none --prompt 1                    | L/none/model.safetensors is truncated
        sample L/pickle --prompt 1                  | L/pickle/pytorch_model.bin; fetch it again
        sample L/index --prompt 1                   | names model-2.safetensors, which is missing
        sample L/escape --prompt 1                  | '../model.safetensors', which is not a file of its folder
        sample L/map --prompt 1                     | has no weight_map
        sample L/tokenizer --prompt 1               | L/tokenizer/tokenizer.json is missing: copy
        sample L/tokens --prompt 1                  | L/tokens/tokenizer.json cannot be read as a fast tokenizer
        sample L/notes --prompt 1                   | L/notes/unmask.json cannot be read as JSON
        sample L/sampler --prompt 1 --answer_length 4 | L/sampler/unmask.json: sampler: unknown class 'Nope'; known
        sample L/told --prompt 1                    | L/told/unmask.json: answer_length
        eval L/told --task sudoku                   | L/told/unmask.json: task
        T --model L/cut                             | L/cut/model.safetensors is truncated
    """,
}
ROWS = [
    (topic, *(part.strip() for part in line.rsplit("|", 1)))
    for topic, lines in MISTAKES.items()
    for line in lines.strip().splitlines()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    words(folder, "run")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, damage in BROKEN.items():
        shutil.copytree(LLADA, folder / "L" / name)
        damage(folder / "L" / name)
    return folder


def spelled(command: str, folder: Path) -> list[str]:
    train = ["train", *words(folder, "run")]
    tuned = {name: value for name, value in SETTINGS.items() if name not in ("prompts", "answers", "epochs")}
    tuned.pop("logged_rollouts", None)
    (folder / "tuned.yaml").write_text(json.dumps(tuned))
    tune = ["sft", "--config", str(folder / "tuned.yaml"), "--model", str(folder / "model"), "--out", str(folder / "s")]
    given: list[str] = []
    for word in command.split():
        if word in ("T", "S", "TP", "SP"):
            given += train if word[0] == "T" else tune
            given += ["--task", "Prompts"] if word[1:] else []
        else:
            given.append(paths(str(folder / "model") if word == "M" else word, folder))
    return given


def paths(text: str, folder: Path) -> str:
    for prefix, place in (("D/", folder), ("L/", folder / "L")):
        if text.startswith(prefix) or f" {prefix}" in text or f"'{prefix}" in text:
            text = text.replace(prefix, f"{place}/")
    return text


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    files = {path: path.stat() for path in folder.rglob("*") if path.name not in ("tiny.yaml", "ones.py", "tuned.yaml")}
    return {
        str(path): (about.st_size, about.st_mtime_ns) for path, about in files.items() if "__pycache__" not in str(path)
    }


@pytest.fixture(scope="module")
def port():
    with serving(SudokuSolved()) as url:
        yield url.rpartition(":")[2]


@pytest.mark.parametrize(("topic", "command", "says"), ROWS, ids=[row[1] for row in ROWS])
def test_a_mistake_is_one_line_that_names_it_and_exits_2(topic, command, says, folder, port, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("UNMASK_REWARD_TOKEN", raising=False)
    command = re.sub(r"(?<= |:)P\b", port, command)
    given, before = spelled(command, folder), everything(folder)
    code = main(given)
    message = capfd.readouterr().err.strip()
    assert code == 2, message
    assert len(message.splitlines()) == 1 and message.startswith("unmask: "), message
    assert len(message) < 400 + 2 * len(str(folder)), message
    missing = [part.strip() for part in says.split(";") if paths(part.strip(), folder) not in message]
    assert not missing, message
    assert everything(folder) == before


def test_the_table_is_long_enough():
    assert len({row[1] for row in ROWS}) == len(ROWS) >= 75


def test_a_run_is_never_overwritten_by_mistake(folder, capfd, tmp_path):
    command = ["train", *words(tmp_path, "run", "--steps", "1", "--save_every", "1")]
    assert main(command) == 0
    before = everything(tmp_path / "run")
    capfd.readouterr()
    for more, says in (
        ([], "holds a run already: add --resume"),
        (["--resume", "--seed", "7"], "settings differ"),
        (["--resume", "--sampler.steps", "2"], "settings differ"),
    ):
        assert main([*command, *more]) == 2
        message = capfd.readouterr().err
        assert len(message.splitlines()) == 1 and says in message
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "run")]) == 2
    assert main([*command, "--resume"]) == 0
    assert {name: size for name, (size, _) in everything(tmp_path / "run").items() if "report" not in name} == {
        name: size for name, (size, _) in before.items() if "report" not in name
    }


FAILURES = {
    "raises": ("[1 / (text != text[::1]) for text in completions]", "failed on row sudoku-train-; ZeroDivisionError"),
    "few": ("[0.0]", "must return a list of; numbers or None, not 1 values"),
    "nothing": ("None", "numbers or None, not NoneType"),
    "texts": ("['good' for _ in completions]", "returned 'good' for row sudoku-train-; a number or None was due"),
    "column": ("[columns['nope'] for _ in completions]", "failed on row sudoku-train-; KeyError: 'nope'"),
    "undefined": ("[float('nan') for _ in completions]", "rewards failed for 100%; returned nan"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_reward_of_the_user_names_function_and_row_and_the_run_can_go_on(name, tmp_path, capfd):
    value, says = FAILURES[name]
    reward = tmp_path / "own.py"
    reward.write_text(f"def {name}(completions, **columns):\n    return {value}\n")
    command = ["train", *words(tmp_path, "run", "--steps", "1", "--reward", f"{reward}:{name}")]
    assert main(command) == 1
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("unmask: ") and name in message and "Traceback" not in message
    assert not [part for part in says.split("; ") if part not in message], message
    reward.write_text(f"def {name}(completions, **columns):\n    return [float(len(t)) for t in completions]\n")
    user._load.cache_clear(), user._module.cache_clear()  # as in a new process
    assert main([*command, "--resume"]) == 0


def test_a_wrong_signature_is_told_with_the_row(tmp_path, capfd):
    reward = tmp_path / "own.py"
    reward.write_text("def picky(completions, nope):\n    return [0.0 for _ in completions]\n")
    assert main(["train", *words(tmp_path, "run", "--reward", f"{reward}:picky")]) == 1
    assert "missing 1 required positional argument: 'nope'" in capfd.readouterr().err


def test_a_missing_gpu_and_a_missing_extra_are_one_line(folder, capfd, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for command, says in (
        ("T --compute.device cuda", "torch sees no GPU: use auto or cpu"),
        ("sample M --prompt 1 --device cuda", "torch sees no GPU: use auto or cpu"),
        ("eval M --task gsm8k", "needs `pip install datasets`; or name a local file or folder with --data"),
    ):
        assert main(spelled(command, folder)) == 2
        message = capfd.readouterr().err.strip()
        assert len(message.splitlines()) == 1 and says in message


def test_what_the_system_refuses_is_one_line(folder, capfd):
    for command in ("T --out", "T --model", "eval M --task sudoku --items 1 --out"):
        assert main([*spelled(command, folder), "x" * 300]) == 2
        assert "File name too long; name another path" in capfd.readouterr().err


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "unmask", "report", "nowhere", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "Traceback" in done.stderr and "UserError" in done.stderr


def test_a_bug_of_ours_is_not_taken_for_a_mistake(folder, monkeypatch):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr("unmask.generate.generate", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(spelled("sample M --prompt 1", folder))
