"""The method: reinforcement learning of a masked diffusion model by groups of answers (GRPO and its relatives).

One step: roll out g answers for each of p prompts, judge them, fix the masked views on which they are scored, improve
the policy for e epochs on those views, log. Everything is drawn from (seed, step, prompt, copy), so a step can be
repeated on any number of processes.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.advantages import Advantage
from unmask.errors import RunError, UserError
from unmask.objectives.base import Objective
from unmask.objectives.gradient import MicroBatch, accumulate_gradient
from unmask.random import Random
from unmask.rewards import UserRewardError, combine
from unmask.rewards.base import Judged, Score, Weighted
from unmask.run import Run, RunConfig
from unmask.stream import order
from unmask.tasks.base import Row
from unmask.types import Answer, Policy, Rollouts, View, Views
from unmask.views.likelihood import Likelihood
from unmask.views.score import score


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of reinforcement learning.

    Args:
        method: what the combination below is called; method presets set it.
        likelihood: the law of the views on which log-probabilities are taken.
        objective: what is minimised.
        advantage: how the rewards of siblings are compared.
        rewards: names, with options or without, or FILE.py:FUNCTION; empty takes the task's own. A name that is among
            the task's own stands for that one, with the options that fit how the task is asked.
        reward_weights: one per reward; empty weighs all of them 1.
        shuffle_rewards: control experiment: rewards are permuted over the batch, so nothing can be learned from them.
        prompts: prompts per step, over all processes.
        answers: answers per prompt (the group).
        epochs: inner epochs over one batch of rollouts; each has views of its own.
        updates_per_epoch: optimizer updates per epoch; prompts are divided among them.
        logged_rollouts: answers per step that rollouts.jsonl keeps, whole groups.
        max_dropped_share: stop when the reward machinery fails for more than this share of a step's answers.
    """

    likelihood: Likelihood
    objective: Objective
    advantage: Advantage
    method: str = "custom"
    rewards: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    shuffle_rewards: bool = False
    prompts: int = 16
    answers: int = 8
    epochs: int = 4
    updates_per_epoch: int = 1
    logged_rollouts: int = 24
    max_dropped_share: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        if self.answers < 2:
            raise UserError(f"answers must be at least 2 (an answer is compared with its siblings), not {self.answers}")
        if self.prompts < 1 or self.epochs < 1 or self.updates_per_epoch < 1:
            raise UserError("prompts, epochs and updates_per_epoch must be at least 1")
        if not 0 <= self.max_dropped_share <= 1 or self.logged_rollouts < 0:
            raise UserError("max_dropped_share is a share in [0, 1], logged_rollouts must not be negative")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise UserError(f"{len(self.rewards)} rewards need as many reward_weights, not {len(self.reward_weights)}")

    def check_shares(self, processes: int) -> None:
        wanted = processes * self.updates_per_epoch
        if self.prompts % wanted:
            raise UserError(
                f"prompts {self.prompts} must be a multiple of processes x updates_per_epoch = "
                f"{processes} x {self.updates_per_epoch}: add --prompts {-(-self.prompts // wanted) * wanted}"
            )

    def weighted_rewards(self) -> list[Weighted]:
        """What is maximised."""
        if not self.rewards:
            return self.task.rewards()
        weights = self.reward_weights or (1.0,) * len(self.rewards)
        named = [self.task.named_reward(name) for name in self.rewards]
        return [Weighted(reward, weight) for reward, weight in zip(named, weights, strict=True)]


def train(config: TrainConfig, resume: bool = False) -> Run:
    """Trains; the run directory holds everything that comes of it.

    Args:
        resume: continue the run that `config.out` holds, if it does.
    """
    run = Run(
        config,
        config.epochs * config.updates_per_epoch,
        config.objective.needs_reference,
        resume,
        config.weighted_rewards(),
    )
    if run.finished:
        return run
    rewards = run.rewards
    rows = config.task.rows("train")
    local = config.prompts // run.runtime.world

    with run:
        for step, metrics in run.steps("train"):
            # roll out: g answers to each of this process's prompts
            clock = time.perf_counter()
            places = _places(config, run.runtime.rank, run.runtime.world, step)
            asked = [rows[index] for index in order(rows, config.seed, places) for _ in range(config.answers)]
            place = torch.tensor(places, device=run.runtime.device).repeat_interleave(config.answers)
            copy = torch.arange(config.answers, device=run.runtime.device).repeat(local)
            random = Random.root(config.seed, "rollout", step, device=run.runtime.device).fold(place).fold(copy)
            rollouts = _roll_out(run, asked, place, random)
            run.breathe()
            completions = run.modality.decode(rollouts.answer.x.cpu())
            metrics["time/rollout"] = time.perf_counter() - clock

            # judge: rewards, then siblings are compared
            judged = _judge(rewards, completions, asked, step)
            _stop_if_rewards_fail(run, config, judged, completions, asked)
            rollouts = _compare(run, config, rollouts, judged, step)
            run.breathe()

            # fix what is scored: views, and what the policies of before say about them
            clock = time.perf_counter()
            random = Random.root(config.seed, "views", step, device=run.runtime.device).fold(place).fold(copy)
            views = config.likelihood.draw(rollouts.canvas, rollouts.answer, config.epochs, random)
            old, ref = _score_before(run, config, rollouts, views)

            # improve
            updates = []
            for epoch, part in [
                (e, u) for e in range(config.epochs) for u in _parts(rollouts, config.updates_per_epoch)
            ]:
                known = tuple(None if source is None else source[epoch] for source in (old, ref))
                fresh = not any("loss" in update for update in updates)  # nothing has moved yet
                updates.append(_improve(run, config, rollouts, views[epoch], known, part, fresh))
            metrics["time/update"] = time.perf_counter() - clock

            # log
            success = _success(run, rewards, judged, completions, asked)
            _describe(run, config, metrics, rollouts, judged, success, updates)
            _keep_some(run, config, rollouts, judged, completions, asked, step)
        run.finish()
    return run


def _places(config: TrainConfig, rank: int, world: int, step: int) -> list[int]:
    """Positions of this process's prompts in the stream of rows: an equal share of the prompts of every update."""
    part = config.prompts // config.updates_per_epoch
    share = part // world
    starts = [(step - 1) * config.prompts + update * part + rank * share for update in range(config.updates_per_epoch)]
    return [start + offset for start in starts for offset in range(share)]


def _parts(rollouts: Rollouts, parts: int) -> list[slice]:
    size = len(rollouts) // parts
    return [slice(start, start + size) for start in range(0, len(rollouts), size)]


def _roll_out(run: Run, asked: list[Row], group: Tensor, random: Random) -> Rollouts:
    config = run.config
    canvas = run.modality.encode([row["prompt"] for row in asked], run.slots).to(run.runtime.device)
    answers = run.in_chunks(
        len(asked), lambda rows: config.sampler(run.learner.frozen, canvas[rows], random[rows], record=True)
    )
    answer = Answer.concatenate(answers)
    answer = replace(answer, valid=run.modality.valid(answer.x) & answer.valid)
    nothing = torch.zeros(len(asked), device=run.runtime.device)
    sound = torch.ones_like(nothing, dtype=torch.bool)
    if answer.entropy is not None:
        sound = answer.entropy.isfinite().all(1)
        answer = replace(answer, entropy=answer.entropy.nan_to_num(0, 0, 0))
    if run.runtime.any(not bool(sound.all())):
        bad = [{"where": "rollout", "prompt": asked[i]["prompt"]} for i in (~sound).nonzero()[:, 0].tolist()]
        run.nonfinite("logits of the rollout are", bad)
    return Rollouts(canvas, answer, group, nothing, sound, nothing)


def _judge(rewards: list[Weighted], completions: list[str], asked: list[Row], step: int) -> Judged:
    try:
        return combine(rewards, completions, asked)
    except UserRewardError as error:
        raise RunError(f"step {step}: {error}; correct it, then --resume goes on") from error


def _stop_if_rewards_fail(run: Run, config: TrainConfig, judged: Judged, completions, asked: list[Row]) -> None:
    failures: list[str | None] = [None] * len(judged.keep)
    for scores in judged.components.values():
        for index, judgement in enumerate(scores):
            if judgement.status == "infra_error" and not judged.keep[index]:
                failures[index] = str(judgement.details.get("reason"))
    everywhere = run.runtime.gather(failures)
    reasons = [reason for reason in everywhere if reason is not None]
    share = len(reasons) / len(everywhere)
    if share <= config.max_dropped_share:
        return
    step, rank = run.step + 1, run.runtime.rank
    rows = [
        {
            "step": step,
            "rank": rank,
            "where": "reward",
            "reason": reason,
            "prompt": row["prompt"],
            "completion": run.modality.stored(completion),
        }
        for reason, row, completion in zip(failures, asked, completions, strict=True)
        if reason is not None
    ]
    if rows:
        run.directory.fail(f"step-{step}-rank-{rank}", rows)
    raise RunError(
        f"step {step}: rewards failed for {share:.0%} of the answers ({reasons[0]}; see {run.directory.failures}); "
        "--resume goes on"
    )


def _compare(run: Run, config: TrainConfig, rollouts: Rollouts, judged: Judged, step: int) -> Rollouts:
    total, keep = judged.total, judged.keep
    if config.shuffle_rewards:
        everything = run.runtime.gather(list(zip(total, keep, strict=True)))
        shuffled = Random.root(config.seed, "shuffle", step).uniform(len(everything)).argsort().tolist()
        mine = run.runtime.share([everything[index] for index in shuffled])
        total, keep = [value for value, _ in mine], [kept for _, kept in mine]
    device, shape = run.runtime.device, (-1, config.answers)
    reward = torch.tensor(total, dtype=torch.float64, device=device).view(shape)
    kept = torch.tensor(keep, device=device).view(shape) & rollouts.keep.view(shape)
    kept = kept & (kept.sum(1, keepdim=True) * 2 >= config.answers)  # too few siblings left: drop the group
    advantage = config.advantage(reward, kept)
    return replace(
        rollouts,
        reward=reward.flatten().float(),
        keep=kept.flatten(),
        advantage=advantage.flatten().float(),
    )


def _score_before(
    run: Run, config: TrainConfig, rollouts: Rollouts, views: Views
) -> tuple[list[Float[Tensor, "v b t"]] | None, list[Float[Tensor, "v b t"]] | None]:
    """Log-probabilities per epoch under the policy that rolled out, and under the reference, on the same views.

    With a single update the policy has not moved when it is scored: the first update needs no old scores.
    """
    old = ref = None
    with torch.no_grad():
        if config.epochs * config.updates_per_epoch > 1:
            policy = run.learner.frozen
            skip = 1 if config.updates_per_epoch == 1 else 0
            empty = [torch.zeros(0)] * skip  # the whole first epoch is scored before the first update moves anything
            old = empty + [_all_rows(run, policy, rollouts, epoch) for epoch in views[skip:]]
        if config.objective.needs_reference:
            with run.learner.reference() as policy:
                ref = [_all_rows(run, policy, rollouts, epoch) for epoch in views]
    return old, ref


def _all_rows(run: Run, policy: Policy, rollouts: Rollouts, views: Sequence[View]) -> Float[Tensor, "v b t"]:
    def scored(view: View) -> Tensor:
        return torch.cat(
            run.in_chunks(
                len(rollouts), lambda rows: score(policy, rollouts.canvas[rows], rollouts.answer.x[rows], view[rows])
            )
        )

    return torch.stack([scored(view) for view in views])


def _improve(
    run: Run,
    config: TrainConfig,
    rollouts: Rollouts,
    views: Sequence[View],
    known: tuple[Tensor | None, ...],
    part: slice,
    fresh: bool,
) -> dict[str, float]:
    """One optimizer update on some rows; `fresh`: nothing has moved since the rollout, so old = new."""
    learner, objective, (old, ref) = run.learner, config.objective, known
    weight = torch.stack([view.weight[part] for view in views])
    valid, keep = rollouts.answer.valid[part], rollouts.keep[part]
    denominator = run.runtime.sum(objective.denominator(weight, valid, keep))
    if not denominator.any():  # every answer is dropped: nothing moves, not even by momentum or weight decay
        result = {"skipped": 1.0, "rows": 0.0, "learning_rate": learner.learning_rate}
        learner.update(skip=True)
        return result
    denominator = denominator.clamp(min=1e-9)
    rows = torch.arange(len(rollouts), device=run.runtime.device)[part]
    if not objective.needs_reference and not run.runtime.sharded:  # shards need as many forwards in every process
        live = rows[(rollouts.advantage[rows] != 0) & rollouts.keep[rows]]
        rows = live if len(live) else rows[:1]  # without advantage they pull nowhere, but count in the denominator

    def batches(size: int) -> list[MicroBatch]:
        return [
            MicroBatch(
                rollouts[index],
                [view[index] for view in views],
                None if fresh or old is None else old[:, index],
                None if ref is None else ref[:, index],
            )
            for index in rows.split(size)
        ]

    def scorer(rows: Rollouts, view: View) -> Tensor:
        return score(learner.policy, rows.canvas, rows.answer.x, view)

    stats = None
    while stats is None:
        size = run.micro_batch or len(rows)
        try:
            stats = accumulate_gradient(
                objective, scorer, batches(size), denominator, learner.backward, learner.accumulating
            )
        except (RuntimeError, MemoryError) as error:
            run.micro_batch = run.smaller(error, "micro_batch", min(size, len(rows)))
            learner.forget()
    stats["learned_from"] = torch.tensor(float(len(rows)), device=run.runtime.device)
    names = sorted(stats)
    sums = dict(
        zip(names, run.runtime.sum(torch.stack([stats[name].double() for name in names])).tolist(), strict=True)
    )
    tokens = max(sums.pop("tokens"), 1e-9)
    rows_used = sums.pop("learned_from")
    result = {name: value / tokens for name, value in sums.items() if name != "loss"}
    result["loss"] = sums["loss"] / float(denominator)
    result["grad_norm"] = learner.clip()
    sound = all(map(math.isfinite, result.values()))
    if not sound:
        run.nonfinite(
            f"loss {result['loss']:.4g} or gradient (norm {result['grad_norm']:.4g}) is",
            _unsound(run, rollouts, views, rows),
        )
        result = {"skipped": 1.0}
    result |= {"rows": rows_used, "learning_rate": learner.learning_rate}
    learner.update(skip=not sound)
    return result


def _unsound(run: Run, rollouts: Rollouts, views: Sequence[View], rows: Tensor) -> list[dict[str, Any]]:
    """The answers among `rows` with a log-probability that is no number."""
    with torch.no_grad():
        finite = _all_rows(run, run.learner.frozen, rollouts, views).isfinite().all(0).all(1)
    bad = [i for i in rows.tolist() if not finite[i]]
    completions = run.modality.decode(rollouts.answer.x[bad].cpu()) if bad else []
    return [
        {
            "where": "update",
            "prompt_index": int(rollouts.group[i]),
            "completion": run.modality.stored(completion),
            "reward": float(rollouts.reward[i]),
            "advantage": float(rollouts.advantage[i]),
        }
        for i, completion in zip(bad, completions, strict=True)
    ]


def _success(run: Run, rewards: list[Weighted], judged: Judged, completions, asked: list[Row]) -> list[Score]:
    """What the task's metric says; it is not asked again where it is one of the rewards."""
    for weighted, scores in zip(rewards, judged.components.values(), strict=True):
        if weighted.reward == run.success:
            return scores
    return run.success(completions, asked)


def _describe(run, config, metrics, rollouts: Rollouts, judged: Judged, success: list[Score], updates) -> None:
    """Fills the row of metrics; means run over all processes."""
    solved = [score.value == 1.0 for score in success if score.status in ("ok", "invalid")]
    keep = rollouts.keep.double()
    groups = rollouts.reward.double().view(-1, config.answers)
    kept = rollouts.keep.view(-1, config.answers)
    low = groups.masked_fill(~kept, torch.inf).amin(1)
    high = groups.masked_fill(~kept, -torch.inf).amax(1)
    answer, device = rollouts.answer, run.runtime.device
    length = answer.valid.sum(1).double()
    sums = {
        "rollout/reward": ((rollouts.reward.double() * keep).sum(), keep.sum()),
        "rollout/success": (torch.tensor(solved, device=device).double().sum(), len(solved)),
        "rollout/length": (length.sum(), len(length)),
        "rollout/zero_std_share": ((low >= high).double().sum(), len(groups)),
        "rollout/dropped_share": ((1 - keep).sum(), len(keep)),
    }
    x = answer.x.view(len(groups), config.answers, -1)
    differing = (x[:, :, None] != x[:, None]).double().mean(-1).sum()  # an answer does not differ from itself
    sums["rollout/diversity"] = (differing, len(groups) * config.answers * (config.answers - 1))
    if answer.entropy is not None:
        sums["rollout/entropy"] = ((answer.entropy.double() * answer.valid).sum(), answer.valid.sum())
    for name, scores in judged.components.items():
        values = [s.value for s in scores if s.status in ("ok", "invalid")]
        sums[f"reward/{name}"] = (sum(values), len(values))
        for status in ("invalid", "infra_error", "not_applicable"):
            sums[f"reward/{name}_{status}"] = (sum(s.status == status for s in scores), len(scores))
    flat = torch.tensor([[float(a), float(b)] for a, b in sums.values()], dtype=torch.float64, device=device)
    for name, (value, count) in zip(sums, run.runtime.sum(flat).tolist(), strict=True):
        if count and (value or not name.endswith("_not_applicable")):  # most rewards apply to every row
            metrics[name] = value / count
    metrics["rollout/tokens_per_second"] = answer.x.numel() * run.runtime.world / metrics["time/rollout"]
    for name in sorted({name for update in updates for name in update}):
        values = [update[name] for update in updates if name in update]
        metrics[f"update/{name}"] = sum(values) / (len(updates) if name == "skipped" else len(values))


def _keep_some(run, config, rollouts: Rollouts, judged: Judged, completions, asked, step: int) -> None:
    """Whole groups of answers for rollouts.jsonl."""
    groups = min(config.prompts, -(-config.logged_rollouts // config.answers)) if config.logged_rollouts else 0
    answer = rollouts.answer[: groups * config.answers].to("cpu")
    run.directory.append(
        run.directory.rollouts,
        [
            {
                "step": step,
                "prompt_index": int(rollouts.group[i]),
                "copy": i % config.answers,
                "prompt": asked[i]["prompt"],
                "completion": run.modality.stored(completions[i]),
                "tokens": run.modality.pieces(answer.x[i]),
                "revealed_at": answer.revealed_at[i].tolist(),
                "rewards": {
                    name: scores[i].value if scores[i].status in ("ok", "invalid") else None
                    for name, scores in judged.components.items()
                },
                "status": {name: scores[i].status for name, scores in judged.components.items()},
                "reward": float(rollouts.reward[i]),
                "advantage": float(rollouts.advantage[i]),
            }
            for i in range(len(answer.x))
        ],
    )
