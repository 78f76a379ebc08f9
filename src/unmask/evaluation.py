"""Evaluation: answers to the rows of a split, judged by the task's metric, with every generation kept."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from unmask.breakdown import wilson, with_breakdown
from unmask.describe import plain
from unmask.errors import UserError
from unmask.modalities.base import Modality
from unmask.models import Model
from unmask.picture_folder import PictureFolder
from unmask.progress import Progress
from unmask.random import Random
from unmask.rewards.base import Reward, Score, Weighted, combine
from unmask.run_directory import provenance
from unmask.runtime import Compute, Runtime
from unmask.samplers import LowConfidence, Sampler
from unmask.stored import Partial, Stored
from unmask.tasks.base import Row, Task
from unmask.types import Policy

MOST_SAMPLES = 10_000
"""Answers per row, at most."""


@dataclass(frozen=True)
class Outcome:
    """Judged answers of a split, in the order of its rows.

    Args:
        score: share of correct answers, in [0, 1].
        interval: its 95 % interval.
        judged: rows behind the score; those whose judging failed are left out.
        pass_at: k -> probability that one of k answers is correct.
        generations: one record per answer.
    """

    score: float
    interval: tuple[float, float]
    judged: int
    pass_at: dict[int, float]
    generations: list[dict[str, Any]]

    def reward_means(self) -> dict[str, float]:
        """Mean of each reward that records name, over the answers that it judged."""
        values: dict[str, list[float]] = {}
        for item in self.generations:
            for name, value in item.get("rewards", {}).items():
                values.setdefault(name, []).extend(() if value is None else (value,))
        return {name: sum(given) / len(given) for name, given in values.items() if given}


def interval(correct: Sequence[float], clusters: Sequence[Any] | None = None) -> tuple[float, float]:
    """95 % Wilson interval of a mean of values in [0, 1].

    With clusters (rows that share a solution are not independent) the number of rows is replaced by the effective one,
    p (1 - p) / se^2 with the cluster-robust standard error se.
    """
    n = len(correct)
    if not n:
        return 0.0, 1.0
    p = sum(correct) / n
    size = float(n)
    if clusters is not None and 0 < p < 1:
        sums: dict[Any, float] = {}
        for value, cluster in zip(correct, clusters, strict=True):
            sums[cluster] = sums.get(cluster, 0.0) + value - p
        variance = sum(total**2 for total in sums.values()) / n**2 * len(sums) / max(1, len(sums) - 1)
        size = min(n, p * (1 - p) / variance) if variance else size
    return wilson(p, size)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k answers is correct, from n answers (arXiv 2107.03374)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def measure(
    policy: Policy,
    modality: Modality,
    rows: Sequence[Row],
    success: Reward,
    sampler: Sampler,
    slots: int,
    runtime: Runtime,
    *,
    task: str = "",
    samples: int = 1,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int], None] = lambda _: None,
    partial: Partial | None = None,
    rewards: Sequence[Reward] = (),
    pictures: PictureFolder | None = None,
) -> Outcome:
    """Answers and judges `rows`, `samples` times each; every process takes a share of them.

    Args:
        batch: answers per forward.
        progress: is told how many answers were finished.
        partial: keeps each batch as soon as it is judged, and knows those that were finished before.
        rewards: judge the answers too; records say what each gave, None where it did not judge.
        pictures: where pictures go; records then name their files.
    """
    work = [(index, copy) for index in range(len(rows)) for copy in range(samples)]
    mine = runtime.share(work)
    root = Random.root(seed, "evaluate", device=runtime.device)
    found = []
    for part in _batches(mine, batch, runtime) if work else ():
        if partial is not None and (known := partial.batch(part)):
            found += known
            progress(len(part))
            continue
        index, copy = (torch.tensor(column, device=runtime.device) for column in zip(*part, strict=True))
        asked = [rows[i] for i, _ in part]
        canvas = modality.encode([row["prompt"] for row in asked], slots).to(runtime.device)
        answer = sampler(policy, canvas, root.fold(index).fold(copy))
        texts = modality.decode(answer.x.cpu())
        scores = success(texts, asked)
        others = combine([Weighted(reward, 0.0) for reward in rewards], texts, asked).components
        done = []
        for n, (row, (i, c), text, score, x, order) in enumerate(
            zip(asked, part, texts, scores, answer.x.cpu(), answer.revealed_at.tolist(), strict=True)
        ):
            done.append(
                {
                    "index": i,
                    "copy": c,
                    "id": row.get("id", str(i)),
                    "task": task,
                    "question": row["prompt"],
                    "ground_truth": row.get("answer"),
                    "generation": modality.stored(text) if pictures is None else pictures.keep(i, c, text),
                    **judgement(score),
                    **_rewards({name: given[n] for name, given in others.items()}),
                    "category": row.get("category"),
                    "cluster": row.get("cluster"),
                    "tokens": modality.pieces(x),
                    "revealed_at": order,
                }
            )
        if partial is not None:
            partial.keep(done)
        found += done
        progress(len(part))
    found = {(item["index"], item["copy"]): item for item in runtime.gather(found)}  # row 0 may be there twice
    found = [found[key] for key in sorted(found)]
    return summarise(found, samples)


def _batches(mine: list[tuple[int, int]], size: int, runtime: Runtime) -> Iterator[list[tuple[int, int]]]:
    """This process's work in pieces; sharded models need as many in every process, so some do row 0 once more."""
    own = [mine[start : start + size] for start in range(0, len(mine), size)]
    count = runtime.most(len(own)) if runtime.sharded else len(own)
    yield from own
    yield from [[(0, 0)]] * (count - len(own))


def diversity(generations: Sequence[Mapping[str, Any]]) -> float:
    """Share of slots in which two answers to the same row differ, averaged over pairs, then over rows; in [0, 1].

    Args:
        generations: of `evaluate` with two or more samples.
    """
    groups: dict[Any, list[list[str]]] = {}
    for item in generations:
        groups.setdefault(item["index"], []).append(item["tokens"])
    means = []
    for tokens in groups.values():
        pairs = list(combinations(tokens, 2))
        means.append(sum(sum(a != b for a, b in zip(*two, strict=True)) / len(two[0]) for two in pairs) / len(pairs))
    return sum(means) / len(means)


TOLD = ("right", "parts", "tests", "decided_by", "reason")
"""Details of a score that a record has too: `right` of `parts` where an answer has parts that are counted one by one,
the outcome of each test of a program, what decided, and why an answer is invalid or wrong."""


def judgement(score: Score) -> dict[str, Any]:
    """What a record says of a score."""
    said = {"correct": score.value == 1.0, "status": score.status, "extracted": score.details.get("answer")}
    return said | {name: score.details[name] for name in TOLD if name in score.details}


def _rewards(scores: Mapping[str, Score]) -> dict[str, Any]:
    """What a record says of scores that are no success or failure."""
    values = {name: s.value if s.status in ("ok", "invalid") else None for name, s in scores.items()}
    return {"rewards": values} if values else {}


def summarise(generations: list[dict[str, Any]], samples: int = 1) -> Outcome:
    """Score, interval and pass@k of judged generations, `samples` consecutive ones per row.

    Where answers have `parts`, the score is the share of right parts over all of them.
    """
    groups = [generations[i : i + samples] for i in range(0, len(generations), samples)]
    groups = [group for group in groups if all(item["status"] in ("ok", "invalid") for item in group)]
    shares = [sum(item["correct"] for item in group) / samples for group in groups]
    clusters = [group[0].get("cluster") or index for index, group in enumerate(groups)]
    if any("parts" in item for group in groups for item in group):
        parts = [(i, item) for i, group in enumerate(groups) for item in group]
        shares = [float(n < item["right"]) for _, item in parts for n in range(item["parts"])]
        clusters = [clusters[i] for i, item in parts for _ in range(item["parts"])]
    pass_at = {}
    for k in sorted({2**i for i in range(samples.bit_length())} | {samples}):
        if k <= samples:
            values = [pass_at_k(samples, sum(item["correct"] for item in group), k) for group in groups]
            pass_at[k] = sum(values) / max(1, len(values))
    return Outcome(sum(shares) / max(1, len(shares)), interval(shares, clusters), len(groups), pass_at, generations)


def record(
    outcome: Outcome, task: Task, split: str, sampler: Sampler, parser: str | None = None, **extra: Any
) -> dict[str, Any]:
    """The result file: the score and everything that it depends on."""
    return {
        "score": outcome.score,
        "interval": list(outcome.interval),
        "pass_at": {str(k): value for k, value in outcome.pass_at.items()},
        "task": task.name,
        "split": split,
        "protocol": task.protocol,
        "parser": parser or task.parser,
        "items": len({item["id"] for item in outcome.generations}),
        "sampler": {"class": type(sampler).__name__, **plain(sampler), "answer_length": task.answer_length},
        "sources": task.sources(split),
        **extra,
        **provenance(),
        "infra_errors": sum(item["status"] == "infra_error" for item in outcome.generations),
        "generations": outcome.generations,
    }


def evaluate(
    model: Model,
    task: Task,
    *,
    split: str = "test",
    items: int | None = None,
    sampler: Sampler | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 256,
    parser: str | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    partial: Partial | None = None,
    rewards: Sequence[Reward] = (),
    pictures: PictureFolder | None = None,
) -> dict[str, Any]:
    """Success of a model on a split, as a JSON-safe result with every generation.

    Args:
        items: only the first rows of the split.
        sampler: default: that of the task's protocol, or where it fixes none of the model's family.
        samples: one answer per row is greedy; more are drawn at the sampler's temperature and give pass@k.
        batch: answers per forward.
        parser: how answers are read; None is the task's own way.
        partial, pictures: see `measure`.
        rewards: their means stand beside the score, as do those of the task's `measures`.
    """
    if not 1 <= samples <= MOST_SAMPLES or batch < 1:
        raise UserError(f"samples must be in [1, {MOST_SAMPLES}] and batch at least 1, not {samples} and {batch}")
    if runtime is None:
        runtime = Runtime(Compute(device="cpu" if model.device.type == "cpu" else "auto"))
        runtime.device = model.device
    model = model.answering(task.answers)
    sampler = sampler or decoding(task) or model.sampler(task.answer_length)
    sampler = for_samples(sampler, samples, model.modality.greedy)
    rows = rows_of(task, split, items)
    if progress is not None:
        progress.expect(len(rows) * samples)
    outcome = measure(
        model.policy(autocast=runtime.autocast),
        model.modality,
        rows,
        model.reading(task.metric(parser)),
        sampler,
        task.answer_length,
        runtime,
        task=task.name,
        samples=samples,
        seed=seed,
        batch=batch,
        progress=progress.advance if progress is not None else lambda _: None,
        partial=partial,
        rewards=[model.reading(reward) for reward in (*task.measures(), *rewards)],
        pictures=pictures,
    )
    result = record(outcome, task, split, sampler, parser, seed=seed, precision=runtime.precision)
    return with_breakdown(result, task, samples)


MADE_BY = ("model", "split", "sampler", "seed", "precision")
"""What a result says of how its generations were made, besides the protocol."""


def rescore(stored: Stored, task: Task, parser: str | None = None, rewards: Sequence[Reward] = ()) -> dict[str, Any]:
    """Judges stored generations again, without a model.

    Returns:
        The result that `evaluate` gives, as far as the file tells: protocol "unknown" where it does not. Where it does,
        answers are read as that protocol asks for them. The file's own settings and version of unmask stand in
        `generated`.

    Raises:
        UserError: no generations of this task, a row without what the metric reads, or no such parser.
    """
    about = stored.about
    task = stored.asked(task)
    metric, items = task.metric(parser), stored.of_task(task.name)
    rows = [stored.row(place, item, task) for place, item in items]
    answers = [item["generation"] if task.answers == "text" else stored.picture(item) for _, item in items]
    scores = metric(answers, rows)
    measured = [*task.measures(), *rewards]
    if not measured and all(score.status == "not_applicable" for score in scores):
        raise UserError(f"task {task.name} has no metric: its generations cannot be scored")
    others = combine([Weighted(reward, 0.0) for reward in measured], answers, rows).components
    judged = [
        {k: item[k] for k in item if k not in (*TOLD, "rewards")}
        | judgement(score)
        | _rewards({name: given[n] for name, given in others.items()})
        for n, ((_, item), score) in enumerate(zip(items, scores, strict=True))
    ]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, item in enumerate(judged):
        groups.setdefault(item.get("index", ("row", number)), []).append(item)
    samples = len(next(iter(groups.values())))
    if any(len(group) != samples for group in groups.values()):
        raise UserError(f"{stored.path}: the rows have different numbers of answers; score an unabridged file")
    outcome = summarise([item for group in groups.values() for item in group], samples)
    result = {
        "score": outcome.score,
        "interval": list(outcome.interval),
        "pass_at": {str(k): value for k, value in outcome.pass_at.items()},
        "task": task.name,
        "protocol": about.get("protocol", "unknown"),
        "parser": parser or task.parser,
        "items": len(groups),
        "sources": stored.sources,
        **{name: about[name] for name in MADE_BY if name in about},
        **provenance(),
        "generated": about.get("generated") or {n: about[n] for n in ("settings", "unmask", "commit") if n in about},
        "infra_errors": sum(score.status == "infra_error" for score in scores),
        "generations": outcome.generations,
    }
    return with_breakdown(result, task, samples)


def decoding(task: Task) -> Sampler | None:
    """What the task's protocol decodes with; None: it fixes nothing."""
    fixed = task.asked_as
    if fixed.block is None:
        return None
    steps = max(1, task.answer_length // fixed.tokens_per_step)
    return LowConfidence(steps=steps, temperature=0.0, block=fixed.block)


def rows_of(task: Task, split: str, items: int | None) -> Sequence[Row]:
    """The first `items` rows of a split, all of them for None."""
    rows = task.rows(split)
    if items is not None and items < 1:
        raise UserError(f"items must be at least 1, not {items}")
    return rows if items is None else rows[: min(items, len(rows))]


def for_samples(sampler: Sampler, samples: int, greedy: bool) -> Sampler:
    """For a single answer the sampler at temperature 0 if `greedy`; else as it is, at a positive temperature."""
    if samples == 1 and greedy:
        return sampler.greedy()
    return sampler if sampler.temperature > 0 else replace(sampler, temperature=1.0)
