"""The page about one run: what happened, in words, numbers, curves and answers. One file, no network."""

import importlib.resources
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask.report.curves import Line, plot
from unmask.report.data import Paired, RunData, pair, read_run
from unmask.report.strips import board, difference, is_board, strip
from unmask.run_directory import write_text

_SHOWN_GROUPS = 4
_SHOWN_FIXED = 4


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes `RUN/report.html`, or `out`; returns its path.

    Raises:
        UserError: there is no run, or matplotlib is missing.
    """
    data = read_run(run)
    paired = pair(data.before, data.after)
    parts = [_head(data, paired), _results(data, paired), _curves(data), _fixed(paired), _order(data, paired)]
    parts += [_rollouts(data), _details(data)]
    target = out or run / "report.html"
    write_text(target, document(data.title, "".join(parts)))
    return target


def document(title: str, body: str) -> str:
    """A whole HTML page."""
    style = (importlib.resources.files("unmask.report") / "style.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _head(data: RunData, paired: Paired | None) -> str:
    facts = [f"started from {data.model}", f"seed {data.config.get('seed', '?')}"]
    facts += [f"{len(data.metrics)} steps"] if data.metrics else []
    if "seconds" in data.summary:
        facts.append(f"{data.summary['seconds']:.0f} s in all")
    if paired and data.before and data.after:
        change = data.after["score"] - data.before["score"]
        lead = (
            f"Before training, the model solved {_percent(data.before['score'])} of {data.after['items']} test items; "
            f"afterwards {_percent(data.after['score'])}. Of the items it failed at first, {paired.fixed} are solved "
            f"now, and {paired.broken} that it solved are lost: a change of {100 * change:+.1f} points."
        )
    elif data.metrics:
        lead = f"{len(data.metrics)} steps are recorded."
    else:
        lead = "No step is recorded yet."
    return (
        f"<h1>{escape(data.title)}</h1><p class=quiet>{escape(' · '.join(facts))}</p><p class=lead>{escape(lead)}</p>"
    )


def _results(data: RunData, paired: Paired | None) -> str:
    cards = []
    for name, result in (("before", data.before), ("after", data.after)):
        if result:
            low, high = result["interval"]
            cards.append(
                f"<div class=card><div class=quiet>{name}</div><div class=big>{_percent(result['score'])}</div>"
                f'<div class=bar><i style="width:{100 * result["score"]:.1f}%"></i>'
                f'<b style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></b></div>'
                f"<div class='quiet small'>95 % interval {_percent(low)} to {_percent(high)}</div></div>"
            )
    if paired:
        cards.append(
            f"<div class=card><div class=quiet>fixed / broken</div><div class=big><span class=good>+{paired.fixed}"
            f"</span> <span class=wrong>−{paired.broken}</span></div><div class='quiet small'>{paired.both} solved "
            f"both times, {paired.neither} never</div></div>"
        )
    if not cards:
        return ""
    about = data.after or data.before or {}
    sampler = about.get("sampler", {})
    told = (
        f"split {about.get('split')}, {about.get('items')} items, protocol {about.get('protocol')}, parser "
        f"{about.get('parser')}, {sampler.get('class')} with {sampler.get('steps')} steps at temperature "
        f"{sampler.get('temperature')}; items with the same solution count as one cluster in the interval"
    )
    return f"<h2>Result</h2><div class=cards>{''.join(cards)}</div><p class='quiet small'>{escape(told)}</p>"


_SMALL = (
    ("rollout/reward", "mean reward", False),
    ("update/kl", "KL penalty estimate", False),
    ("update/clip_fraction", "share of clipped tokens", False),
    ("rollout/zero_std_share", "share of groups with equal rewards", True),
    ("rollout/entropy", "entropy per token, nats", False),
    ("update/grad_norm", "gradient norm before clipping", False),
    ("rollout/length", "valid tokens per answer", False),
    ("rollout/tokens_per_second", "tokens per second of rollout", False),
    ("train/loss", "loss", False),
    ("train/grad_norm", "gradient norm before clipping", False),
    ("train/tokens_per_second", "tokens per second", False),
)


def _curves(data: RunData) -> str:
    if not data.metrics:
        return ""
    main = []
    steps, values = data.series("rollout/success")
    if steps:
        main.append(Line("success of rollouts (train)", steps, values))
    steps, values = data.series("eval/success")
    if steps:
        band = (data.series("eval/low")[1], data.series("eval/high")[1])
        main.append(Line("greedy success (validation)", steps, values, *band, dots=True))
    html = "<h2>Training</h2>"
    if main:
        html += f"<div class=wide>{plot('success', main, 9.0, 2.8, unit=True)}</div>"
    plots = []
    for name, title, unit in _SMALL:
        steps, values = data.series(name)
        if steps:
            plots.append(plot(title, [Line(title, steps, values)], unit=unit))
    return html + f"<div class=plots>{''.join(plots)}</div>"


def _fixed(paired: Paired | None) -> str:
    if not paired:
        return ""
    fixed = [(old, new) for old, new in paired.pairs if new["correct"] and not old["correct"]][:_SHOWN_FIXED]
    if not fixed:
        return ""
    html = "<h2>Items that training fixed</h2>"
    if all(is_board(item) for two in fixed for item in two):
        html += "<p class=quiet>Givens are bold; the darker a cell, the earlier it was written; clashes are marked.</p>"
        figures = [
            f"<figure><figcaption>{name}</figcaption>{board(item)}</figure>"
            for two in fixed
            for name, item in zip(("before", "after"), two, strict=True)
        ]
        return html + f"<div class=boards>{''.join(figures)}</div>"
    rows = "".join(
        f"<tr><td class=text>{escape(_prompt(new['question']))}</td><td class=text>{escape(old['generation'])}</td>"
        f"<td class=text>{difference(old['tokens'], new['tokens'])}</td></tr>"
        for old, new in fixed
    )
    return html + f"<table class=plain><tr><th>prompt<th>before<th>after, changes marked</tr>{rows}</table>"


def _order(data: RunData, paired: Paired | None) -> str:
    if paired and paired.pairs:
        fixed = [two for two in paired.pairs if two[1]["correct"] and not two[0]["correct"]]
        old, new = (fixed or paired.pairs)[0]
        shown = [("before", old), ("after", new)]
    else:
        shown = [("a rollout", item) for item in data.rollouts[-1:]]
    if not shown:
        return ""
    html = "<h2>In which order the tokens appeared</h2><p class=quiet>Each row is a denoising step, each column an "
    html += "answer slot. Dots are still masked; what is new in a step stands out.</p>"
    for name, item in shown:
        prompt = _prompt(item.get("question", item.get("prompt")))
        judged = item.get("correct")
        verdict = (
            "" if judged is None else " <span class=good>right</span>" if judged else " <span class=wrong>wrong</span>"
        )
        html += f"<h3>{name}: <code>{escape(prompt[:120])}</code>{verdict}</h3>{strip(item)}"
    return html


def _rollouts(data: RunData) -> str:
    if not data.rollouts:
        return ""
    last = data.rollouts[-1]["step"]
    html = "<h2>Rollouts</h2><p class=quiet>Best and worst answers to the same prompt, early and late in training.</p>"
    html += "<table class=plain><tr><th>step<th>prompt<th>answer<th>reward<th>advantage</tr>"
    for step in dict.fromkeys((data.rollouts[0]["step"], last)):
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in data.rollouts:
            if row["step"] == step:
                groups.setdefault(row["prompt_index"], []).append(row)
        ordered = sorted(groups.values(), key=lambda group: -_spread(group))
        for group in ordered[: _SHOWN_GROUPS - 1]:
            ranked = sorted(group, key=lambda row: -row["reward"])
            for row in (ranked[0], ranked[-1]):
                parts = ", ".join(f"{name} {_number(value)}" for name, value in row["rewards"].items())
                html += (
                    f"<tr><td>{step}</td><td class=text>{escape(_prompt(row['prompt'])[:400])}</td>"
                    f"<td class=text>{escape(row['completion'][:400])}</td>"
                    f"<td title='{escape(parts)}'>{row['reward']:.2f}</td><td>{row['advantage']:+.2f}</td></tr>"
                )
    return html + "</table>"


def _spread(group: Sequence[dict[str, Any]]) -> float:
    rewards = [row["reward"] for row in group]
    return max(rewards) - min(rewards)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _prompt(prompt: Any) -> str:
    """A prompt as text: its last message if it is a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""


def _details(data: RunData) -> str:
    command = data.env.get("command")
    html = "<h2>How it was made</h2>"
    if command:
        html += f"<p>Command: <code>{escape(command)}</code></p>"
    versions = ", ".join(f"{name} {number}" for name, number in (data.env.get("versions") or {}).items() if number)
    facts = {key: data.env.get(key) for key in ("platform", "python", "device", "threads", "precision", "commit")}
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    html += f"<p class='quiet small'>{escape(told)}; {escape(versions)}</p>"
    return html + f"<details><summary>config.yaml</summary><pre>{escape(data.config_text)}</pre></details>"
