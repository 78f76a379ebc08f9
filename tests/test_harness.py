"""The adapter to lm-evaluation-harness: texts as our sampler draws them, and a bound that is estimated without bias."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: unmask[lm-eval]")

from unmask.errors import UserError
from unmask.harness import Harness
from unmask.types import View
from unmask.views.score import score

LLADA = str(Path(__file__).parent / "data/llada")


def asked(*requests: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=request) for request in requests]


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness(LLADA, answer_length=16, block=8, samples=8, batch_size=3)


def test_texts_do_not_depend_on_the_batch_and_end_at_stop_texts(harness):
    requests = asked(*((f"Count to {n}.", {"until": [], "max_gen_toks": 5}) for n in range(5)))
    texts = harness.generate_until(requests)
    alone = Harness(LLADA, answer_length=16, block=8, samples=8, batch_size=1)
    assert texts == alone.generate_until(requests) and len(texts) == 5
    longest = max(texts, key=len)
    at = texts.index(longest)
    stop = longest[2:4]
    cut = harness.generate_until(asked((f"Count to {at}.", {"until": ["never", stop]})))
    assert cut == [longest.partition(stop)[0]]
    hot = {"do_sample": True, "temperature": 1.0}
    mixed = harness.generate_until(asked(requests[0].args, ("Count to 1.", hot), ("Count to 1.", hot)))
    assert mixed[0] == texts[0] and mixed[1] != mixed[2]


@torch.no_grad()
def test_one_token_has_its_exact_log_probability(harness):
    modality, token = harness.model.modality, "7"
    [(found, greedy)] = harness.loglikelihood(asked(("3 + 4 =", token)))
    x, _ = modality.encode_answers([token], 1)
    canvas = modality.encode(["3 + 4 ="], 1)
    logits = harness.policy(canvas, torch.full((1, 1), harness.policy.k), torch.tensor([[0, 0]]))
    assert x.shape == (1, 1) and found == pytest.approx(float(logits.log_softmax(-1)[0, x[0, 0]]), abs=1e-5)
    assert greedy == (int(logits.argmax()) == int(x[0, 0]))


@torch.no_grad()
def test_the_estimate_of_several_tokens_is_the_bound_over_all_masks(harness):
    modality, text = harness.model.modality, "abc"
    x, filled = modality.encode_answers([text], 3)
    n = x.shape[1]
    assert n == 3 and filled.all()
    bound = 0.0
    for hidden in range(1, n + 1):
        subsets = list(combinations(range(n), hidden))
        for subset in subsets:
            mask = torch.zeros_like(x, dtype=torch.bool)
            mask[0, list(subset)] = True
            logp = score(harness.policy, modality.encode(["?"], n), x, View(mask, mask.float(), None)).sum()
            bound += float(logp) * n / hidden / len(subsets) / n
    many = Harness(LLADA, samples=600, batch_size=200)
    found = [likelihood for likelihood, _ in many.loglikelihood(asked(*[("?", text)] * 4))]
    assert len(set(found)) > 1  # every request has its own masks
    mean = sum(found) / 4
    error = (sum((one - mean) ** 2 for one in found) / 3 / 4) ** 0.5
    assert abs(mean - bound) < 5 * error + 1e-3 and error < 0.2
    again = Harness(LLADA, samples=600, batch_size=37).loglikelihood(asked(("?", text)))
    assert again[0][0] == pytest.approx(found[0], abs=1e-4)


def test_what_does_not_fit_is_refused(harness):
    with pytest.raises(UserError, match="leave --apply_chat_template out"):
        harness.apply_chat_template([])
    with pytest.raises(NotImplementedError, match="no rolling log-likelihood"):
        harness.loglikelihood_rolling([])
    with pytest.raises(UserError, match="batch_size must be whole numbers from 1"):
        Harness(LLADA, batch_size="auto")
    with pytest.raises(UserError, match=r"sampler.block 32 does not divide the 20"):
        Harness(LLADA, answer_length=20)


@pytest.mark.slow  # the harness reads the index of all its tasks first
def test_the_harness_runs_a_task_of_the_users_own(tmp_path):
    rows = [{"q": "1 + 1 =", "a": "2"}, {"q": "2 + 2 =", "a": "4"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(f"""
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    words = ["--model", "unmask", "--model_args", f"pretrained={LLADA},answer_length=8,block=0", "--tasks", "own"]
    words += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--device", "cpu"]
    run = subprocess.run([sys.executable, "-m", "unmask.harness", *words], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    [result] = (tmp_path / "out").rglob("results*.json")
    assert 0 <= json.loads(result.read_text())["results"]["own"]["exact_match,none"] <= 1
