r"""How long a text reward takes for one completion: median, 99th percentile and the longest.

    python benchmarks/text_rewards.py [--texts 10000] [--seed 0] [--generations FILE]

The texts are what property tests would try: pieces of answers in any order, deep nesting, long runs of one character,
cuts in the middle, other scripts. With `--generations`, a file of `unmask eval` or JSON lines, also those. Programs are
measured by `benchmarks/sandbox_throughput.py`.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from unmask.rewards import NAMES, Code, Math, Reward
from unmask.rewards.text import TextReward
from unmask.rewards.verifier import installed
from unmask.stored import read_generations

ROW = {"answer": "18", "numbers": [4, 7, 7], "target": 35, "puzzle": "3421210003121230", "operands": [478, 356]}
PIECES = [
    *(
        "\\boxed{",
        "\\fbox{",
        "\\frac{",
        "\\dfrac",
        "\\text{",
        "\\left(",
        "\\right)",
        "\\times",
        "\\sqrt{",
        "\\{",
        "\\}",
    ),
    *("{", "}", "(", ")", "[", "]", "+", "-", "*", "/", "=", ",", ".", "^", "_", "$", "%", "!", " ", "\n", "<", ">"),
    *("<reasoning>", "</reasoning>", "<answer>", "</answer>", "<|endoftext|>", "#### ", "(7*4)+7", "14,13,08:834"),
    *(
        "18",
        "0",
        "7",
        "1" * 40,
        "3421214343121234",
        "x",
        "x^2",
        "so the answer is ",
        "\u2212",
        "\u00d7",
        "\u0664",
        "\U0001f600",
    ),
]


def made(chance: random.Random) -> str:
    """One text: most are short and ordinary, some as long as rewards read, or longer."""
    kind = chance.random()
    if kind < 0.1:  # one piece over and over
        return chance.choice(PIECES) * chance.choice((100, 1000, 10_000))
    if kind < 0.2:  # opened many times, closed as often, or nearly
        opening = chance.choice(("\\boxed{", "\\frac{", "{", "(", "\\text{", "((1)/(", "<answer>"))
        closing = "}" if "{" in opening else "</answer>" if "<" in opening else ")"
        depth = chance.choice((10, 100, 1000))
        return opening * depth + chance.choice(PIECES) + closing * (depth - chance.randrange(3))
    inner = "".join(chance.choices(PIECES, k=chance.choice((1, 5, 20, 100, 1000))))
    if kind < 0.6:  # read as an answer
        return f"<reasoning>{inner}</reasoning>\n<answer>\\boxed{{{''.join(chance.choices(PIECES, k=8))}}}</answer>"
    return f"\\boxed{{{inner}}}" if kind < 0.8 else inner[: chance.randrange(len(inner) + 1)]


def timed(reward: Reward, texts: Sequence[str]) -> list[float]:
    """Milliseconds of each text by itself, sorted."""
    reward(texts[:1], [ROW])
    spent = []
    for text in texts:
        start = time.perf_counter()
        reward([text], [ROW])
        spent.append(1000 * (time.perf_counter() - start))
    return sorted(spent)


def main() -> None:
    """Prints a table per set of texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generations", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    sets = {f"{options.texts} made texts": [made(chance) for _ in range(options.texts)]}
    if options.generations is not None:
        stored = read_generations(options.generations).items
        sets[options.generations.name] = [str(item.get("generation")) for _, item in stored]
    kinds = [kind for kind in NAMES.values() if issubclass(kind, TextReward) and kind not in (Code, Math)]
    rewards: dict[str, Reward] = {kind.name: kind() for kind in kinds} | {"math": Math(second_opinion=False)}
    if installed():
        rewards["math with math-verify"] = Math(second_opinion=True)
    for name, texts in sets.items():
        print(f"\n{name}, {sum(map(len, texts)) / len(texts):.0f} characters on average\n")
        print("| reward | median, ms | 99 %, ms | longest, ms |\n|---|---|---|---|")
        for label, reward in rewards.items():
            spent = timed(reward, texts)
            late = spent[min(len(spent) - 1, int(0.99 * len(spent)))]
            print(f"| `{label}` | {statistics.median(spent):.3f} | {late:.2f} | {spent[-1]:.1f} |")


if __name__ == "__main__":
    main()
