"""The page about one run: what happened, in words, numbers, curves and answers. One file, no network."""

import importlib.resources
from html import escape
from pathlib import Path
from typing import Any

from unmask.report import answers, gallery
from unmask.report.curves import Line, chart
from unmask.report.curves import label as short
from unmask.report.data import Paired, Record, RunData, pair, read_run
from unmask.run_directory import write_text


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes `RUN/report.html`, or `out`; returns its path.

    Raises:
        UserError: there is no run.
    """
    data = read_run(Path(run))
    paired = pair(data.before, data.after)
    sections = [_head(data, paired), _results(data, paired), gallery.categories(data), gallery.galleries(paired)]
    sections += [_curves(data), answers.changed(paired)]
    sections += [answers.order(data, paired), answers.rollouts(data), _details(data)]
    target = Path(out) if out is not None else data.path / "report.html"
    write_text(target, document(f"{data.task}, {data.method}", "".join(sections)))
    return target


def document(title: str, body: str) -> str:
    """A whole HTML page."""
    style = (importlib.resources.files("unmask.report") / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.1f} %"


def span(low: float, high: float) -> str:
    """An interval of shares as percentages."""
    return f"{100 * low:.1f} \N{EN DASH} {100 * high:.1f} %"


def points(change: float) -> str:
    """A change in [-1, 1] in signed percentage points."""
    return (f"{100 * change:+.1f}" if change else "0.0").replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.0f} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _head(data: RunData, paired: Paired | None) -> str:
    facts = [("model", data.model), ("seed", data.seed), ("date", data.date), ("steps", data.steps or None)]
    facts += [("time", None if data.seconds is None else duration(data.seconds))]
    told = "".join(f"<span><i>{name}</i> {escape(str(value))}</span>" for name, value in facts if value is not None)
    warnings = _warnings(data)
    callout = f'<p class="callout">{escape(" ".join(warnings))}</p>' if warnings else ""
    return (
        f'<header><h1>{escape(data.task)} <small>{escape(data.method)}</small></h1><p class="facts">{told}</p></header>'
        f'<p class="lead">{escape(" ".join(_story(data, paired)))}</p>{callout}'
    )


def _story(data: RunData, paired: Paired | None) -> list[str]:
    """What happened, in sentences."""
    what = "supervised fine-tuning" if data.supervised else f"reinforcement learning ({data.method})"
    ran = f"{data.steps} step{'' if data.steps == 1 else 's'} of {what}" if data.steps else "training"
    told = []
    if data.before and data.after:
        was, now = data.before["score"], data.after["score"]
        items = data.after.get("items") or len(data.after["generations"])
        moved = "rose" if now > was else "fell"
        went = f"stayed at {percent(now)}" if was == now else f"{moved} from {percent(was)} to {percent(now)}"
        told.append(
            f"Over {ran}, the share of {items} {data.after.get('split') or 'held-out'} items that the model answers "
            f"correctly {went}."
        )
        if paired and paired.interval:
            low, high = paired.interval
            told.append(
                f"{_count(paired.fixed, 'item')} that it got wrong before {_are(paired.fixed)} right now, and "
                f"{paired.broken} that it got right {_are(paired.broken)} wrong now."
            )
            if low <= 0 <= high and was != now:
                told.append("A change of this size can be chance: its 95 % interval contains zero.")
        return told
    told.append(f"{ran[0].upper()}{ran[1:]} {'are' if data.steps > 1 else 'is'} recorded." if data.steps else "")
    for name, words in (("train/loss", "the loss"), ("rollout/reward", "the mean reward of rollouts")):
        values = data.series(name)[1]
        if len(values) > 1:
            end = max(1, len(values) // 10)
            first, last = sum(values[:end]) / end, sum(values[-end:]) / end
            went = "stayed at" if short(first) == short(last) else f"went from {short(first)} to"
            span = f"the first to the last {end} steps" if end > 1 else "the first to the last step"
            told.append(f"From {span}, {words} {went} {short(last)}.")
    steps, success = data.series("eval/success")
    if steps:
        best = max(success)
        peak = f", at best {percent(best)} at step {steps[success.index(best)]}" if best > success[-1] else ""
        told.append(f"Success on the validation split was {percent(success[-1])} at step {steps[-1]}{peak}.")
    for name, result in (("before", data.before), ("after", data.after)):
        if result:
            told.append(f"Only the evaluation {name} training is here: {percent(result['score'])}.")
    return [sentence for sentence in told if sentence] or ["No step is recorded yet."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _warnings(data: RunData) -> list[str]:
    """What a reader must know before believing the numbers."""
    told = []
    wanted = data.config.get("steps")
    if isinstance(wanted, int) and data.steps < wanted and not data.summary:
        told.append(f"{data.steps} of {wanted} steps are recorded: the run goes on, was stopped early or failed.")
    if data.config.get("shuffle_rewards"):
        told.append("Control run: rewards were shuffled among the answers, so nothing should be learned.")
    if data.before and data.after:
        keys = ("task", "split", "protocol", "parser", "sampler")
        differing = [key for key in keys if data.before.get(key) != data.after.get(key)]
        if differing:
            told.append(f"Before and after are not comparable: they differ in {', '.join(differing)}.")
    broken = data.broken_values()
    if broken:
        told.append(f"Not finite at some step: {', '.join(broken)}.")
    return told + data.notes


def _results(data: RunData, paired: Paired | None) -> str:
    scored = [(name, result) for name, result in (("before", data.before), ("after", data.after)) if result]
    if not scored:
        return ""
    rows = ""
    for name, result in scored:
        right = sum(bool(item.get("correct")) for item in result["generations"])
        of = f"{right} / {len(result['generations'])}" if result["generations"] else "\N{EN DASH}"
        low, high = _interval(result)
        told = "\N{EN DASH}" if low is None else span(low, high)
        rows += (
            f'<tr><th>{name}</th><td class="number strong">{percent(result["score"])}</td>'
            f'<td class="number">{told}</td><td class="number">{of}</td>'
            f'<td class="wide">{_whisker(result["score"], low, high)}</td></tr>'
        )
    if paired and paired.interval:
        low, high = paired.interval
        kind = "good" if low > 0 else "wrong" if high < 0 else ""
        rows += (
            f'<tr class="total"><th>change</th><td class="number strong {kind}">{points(paired.change)}</td>'
            f'<td class="number">{points(low)} to {points(high)}</td>'
            f'<td class="number">{len(paired.pairs)} pairs</td><td class="wide quiet small">percentage points, '
            "the same items compared one by one</td></tr>"
        )
    return (
        '<h2>Before and after</h2><div class="scroll"><table class="plain"><tr><th></th><th class="number">correct</th>'
        '<th class="number">95 % interval</th><th class="number">answers</th>'
        f'<th class="wide axis"><span>0</span><span>50</span><span>100 %</span></th></tr>{rows}</table></div>'
        f"{_transitions(paired)}{_protocol(scored[-1][1])}"
    )


def _interval(result: Record) -> tuple[Any, Any]:
    found = result.get("interval")
    return (found[0], found[1]) if isinstance(found, list) and len(found) == 2 else (None, None)


def _whisker(score: float, low: float | None, high: float | None) -> str:
    """A share on the unit interval with its interval around it."""
    band = ""
    if low is not None and high is not None:
        band = f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b>'
    return f'<div class="bar"><i style="width:{100 * score:.2f}%"></i>{band}</div>'


def _transitions(paired: Paired | None) -> str:
    """What became of the items: one stacked bar."""
    if not paired:
        return ""
    kinds = (
        ("both", paired.both, "right both times"),
        ("fixed", paired.fixed, "fixed"),
        ("broken", paired.broken, "broken"),
        ("neither", paired.neither, "wrong both times"),
    )
    bar = "".join(f'<i class="{kind}" style="flex:{count}"></i>' for kind, count, _ in kinds if count)
    keys = "".join(f'<span class="{kind}"><b>{count}</b> {words}</span>' for kind, count, words in kinds)
    return f'<div class="stack">{bar}</div><p class="keys">{keys}</p>'


def _short(value: Any) -> Any:
    """A component of a sampler as its class and settings; everything else as it is."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    name, settings = str(value["class_path"]).rpartition(".")[2], value.get("init_args")
    return " ".join([name, *(f"{key} {one}" for key, one in settings.items())]) if isinstance(settings, dict) else name


def _protocol(result: Record) -> str:
    found = result.get("sampler")
    sampler = found if isinstance(found, dict) else {}
    facts = [(key, result.get(key)) for key in ("split", "protocol", "parser", "infra_errors")]
    facts += [("sampler", sampler.get("class"))]
    facts += [(key.replace("_", " "), _short(value)) for key, value in sampler.items() if key != "class"]
    told = " · ".join(f"{name} {value}" for name, value in facts if value not in (None, "", 0) or name == "temperature")
    return f'<p class="quiet small">How it was measured: {escape(told)}.</p>' if told else ""


_SMALL = (
    ("update/kl", "KL from the reference", False),
    ("update/clip_fraction", "share of clipped tokens", False),
    ("update/grad_norm", "gradient norm, before clipping", False),
    ("rollout/zero_std_share", "groups whose rewards are all equal", True),
    ("update/log_ratio", "mean log-ratio new / old", False),
    ("rollout/entropy", "entropy per token, nats", False),
    ("rollout/diversity", "slots that differ between siblings", True),
    ("rollout/length", "tokens per answer", False),
    ("rollout/dropped_share", "answers without a valid reward", True),
    ("rollout/tokens_per_second", "tokens per second, rollouts", False),
    ("update/loss", "loss", False),
    ("update/learning_rate", "learning rate", False),
    ("train/grad_norm", "gradient norm, before clipping", False),
    ("train/learning_rate", "learning rate", False),
    ("train/tokens_per_second", "tokens per second", False),
)

_JUDGED = "eval/reward/"


def _line(data: RunData, metric: str, label: str) -> Line:
    return Line(label, *data.series(metric))


def _curves(data: RunData) -> str:
    success = [_line(data, "rollout/success", "rollouts (train)")]
    steps, values = data.series("eval/success")
    low, high = (data.series(f"eval/{name}") for name in ("low", "high"))
    band = (low[1], high[1]) if low[0] == high[0] == steps else (None, None)
    success.append(Line("evaluation, 95 % interval (validation)", steps, values, *band, dots=True))
    reward = _line(data, "rollout/reward", "mean reward")
    components = [name for name in dict.fromkeys(key for row in data.metrics for key in row) if _is_component(name)]
    same = bool(reward.values) and reward.values == success[0].values
    if reward.values and not same:
        parts = [_line(data, name, name.removeprefix("reward/")) for name in components]
        shown = [reward, *parts] if len(components) > 1 else [reward]
    else:
        shown = []
    loss = [_line(data, "train/loss", "loss")]
    judged = [name for name in dict.fromkeys(key for row in data.metrics for key in row) if name.startswith(_JUDGED)]
    validation = [Line(name.removeprefix(_JUDGED), *data.series(name), dots=True) for name in judged]
    large = [
        ("share of correct answers", success, True, 0),
        ("reward of rollouts", shown, False, 2),
        ("reward (validation)", validation, False, 0),
        ("training loss", loss, False, 0),
    ]
    large = [plot for plot in large if any(line.steps for line in plot[1])]
    size = (490, 210) if len(large) > 1 else (1010, 280)
    wide = [chart(lines, name, *size, unit=unit, first=first) for name, lines, unit, first in large]
    small = [chart([_line(data, name, title)], title, unit=unit) for name, title, unit in _SMALL if _moves(data, name)]
    if not wide and not any(small):
        return ""
    told = "The reward is 1 for a correct answer and 0 otherwise, so its curve is the one of success. " if same else ""
    told += "Horizontally: steps. Noisy curves: faint every step, strong the running mean. Numbers: last value."
    return (
        f'<h2>Training</h2><p class="quiet">{told}</p><div class="plots {"two" if len(wide) > 1 else "one"}">'
        f'{"".join(wide)}</div><div class="plots">{"".join(small)}</div>{_statuses(data)}{_clock(data)}'
    )


_STATUSES = ("invalid", "not_applicable", "infra_error")


def _is_component(name: str) -> bool:
    return name.startswith("reward/") and not name.endswith(tuple(f"_{status}" for status in _STATUSES))


def _statuses(data: RunData) -> str:
    """Per reward what it said of the answers of the run, where it did not judge all of them."""
    keys = dict.fromkeys(key for row in data.metrics for key in row if key.startswith("reward/"))
    names = [key.removesuffix("_invalid") for key in keys if key.endswith("_invalid")]
    rows = ""
    for name in (name for name in names if f"{name}_infra_error" in keys):
        steps = len(data.series(f"{name}_invalid")[1])
        shares = [sum(data.series(f"{name}_{status}")[1]) / max(1, steps) for status in _STATUSES]
        if any(shares):
            cells = "".join(f'<td class="number">{percent(share)}</td>' for share in (1 - sum(shares), *shares))
            rows += f"<tr><th>{escape(name.removeprefix('reward/'))}</th>{cells}</tr>"
    if not rows:
        return ""
    heads = "".join(f'<th class="number">{name.replace("_", " ")}</th>' for name in ("ok", *_STATUSES))
    return (
        '<p class="quiet">What rewards said of the answers of the run. Invalid: it could not be read and counts 0. Not '
        "applicable: left out of that reward. Infra error: the machinery failed, and the answer was left out.</p>"
        f'<div class="scroll"><table class="plain"><tr><th>reward</th>{heads}</tr>{rows}</table></div>'
    )


def _moves(data: RunData, name: str) -> bool:
    """Whether a metric is worth a picture: shares of failures only where something failed."""
    return name != "rollout/dropped_share" or any(data.series(name)[1])


def _clock(data: RunData) -> str:
    rollout, update = (sum(data.series(f"time/{phase}")[1]) for phase in ("rollout", "update"))
    total = sum(data.series("time/step")[1]) or rollout + update
    if not rollout or not total:
        return ""
    told = f"Of {duration(total)} of training, rollouts took {100 * rollout / total:.0f} %"
    return f'<p class="quiet small">{told}, scoring and updates {100 * update / total:.0f} %.</p>'


def _details(data: RunData) -> str:
    html = "<h2>How it was made</h2>"
    if data.env.get("command"):
        html += f'<p class="quiet small">Command</p><pre class="command">{escape(str(data.env["command"]))}</pre>'
    facts = [(key, value) for key, value in data.env.items() if key != "command" and not isinstance(value, dict)]
    versions = data.env.get("versions")
    facts += list(versions.items()) if isinstance(versions, dict) else []
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts if v is not None)
    if rows:
        html += f"<details><summary>Environment</summary><dl>{rows}</dl></details>"
    if data.config_text:
        html += f"<details><summary>config.yaml</summary><pre>{escape(data.config_text)}</pre></details>"
    return f"{html}<footer>Made by unmask from {escape(_sources(data))}.</footer>"


def _sources(data: RunData) -> str:
    counted = (("metrics.jsonl", len(data.metrics)), ("rollouts.jsonl", len(data.rollouts)))
    read = [f"{_count(rows, 'row')} of {name}" for name, rows in counted if rows]
    read += [f"evaluation/{name}.json" for name, result in (("before", data.before), ("after", data.after)) if result]
    return f"the run directory {data.path.resolve().name}" + (f": {', '.join(read)}" if read else "")
