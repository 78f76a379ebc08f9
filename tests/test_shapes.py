"""The world of coloured shapes: captions, splits, pictures, and the verifier that reads pictures."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.errors import UserError
from unmask.models.image_files import load_image_tokenizer
from unmask.models.patch_codebook import PatchCodebook
from unmask.pictures import from_uri, to_uri
from unmask.rewards.detector import detect
from unmask.rewards.shapes import COLOURS, OPPOSITE, SHAPES, ShapesDrawn
from unmask.tasks.drawing import picture
from unmask.tasks.shapes import CATEGORIES, Caption, Shapes, _row, captions

REWARD = ShapesDrawn()
EVERY = [caption for members in captions().values() for caption in members]


def by_category(count: int, seed: int) -> list[tuple[Caption, Image.Image]]:
    rng = random.Random(seed)
    members = {category: [one for one in EVERY if one.category == category] for category in CATEGORIES}
    chosen = [rng.choice(members[CATEGORIES[i % 6]]) for i in range(count)]
    return [(caption, picture(caption, rng)) for caption in chosen]


def through_the_codebook(pictures: list[Image.Image]) -> list[Image.Image]:
    assert Shapes.image_tokenizer is not None
    tokenizer = load_image_tokenizer(Shapes.image_tokenizer)
    return tokenizer.to_pictures(tokenizer.decode(tokenizer.encode(tokenizer.from_pictures(pictures, (32, 32)))))


def accepted(pictures, rows) -> float:
    return sum(score.value for score in REWARD(pictures, rows))


def test_true_pictures_are_accepted_before_and_after_the_codebook():
    drawn = by_category(600, seed=0)
    rows = [_row(caption) for caption, _ in drawn]
    pictures = [one for _, one in drawn]
    assert accepted(pictures, rows) >= 0.99 * 600
    decoded = through_the_codebook(pictures)
    assert accepted(decoded, rows) >= 0.99 * 600
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(pictures, decoded, strict=True))


def near_miss(caption: Caption, rng: random.Random) -> Caption:
    """The caption with one word changed, so that no picture fits both."""
    (shape, colour, count), *rest = caption.include
    changes = [replace(caption, include=((shape, colour, count % 4 + 1), *rest))]
    if not rest:
        changes.append(replace(caption, include=((next(s for s in SHAPES if s != shape), colour, count),)))
    if colour is not None and all(colour != other for _, other, _ in rest):
        other = rng.choice([c for c in COLOURS if c not in (colour, *(one for _, one, _ in rest))])
        changes.append(replace(caption, include=((shape, other, count), *rest)))
    if caption.relation is not None:
        changes.append(replace(caption, relation=rng.choice([r for r in OPPOSITE if r != caption.relation])))
    return rng.choice(changes)


def test_contradicted_captions_are_never_accepted():
    rng = random.Random(1)
    drawn = by_category(1500, seed=1)
    pictures = [one for _, one in drawn]
    assert accepted(pictures, [_row(near_miss(caption, rng)) for caption, _ in drawn]) == 0
    careless = [picture(caption.careless(), rng) for caption, _ in drawn]
    assert accepted(careless, [_row(caption) for caption, _ in drawn]) == 0


def test_pictures_of_nothing_are_never_accepted():
    rng = np.random.default_rng(2)
    drawn = by_category(300, seed=2)
    rows = [_row(caption) for caption, _ in drawn]
    assert Shapes.image_tokenizer is not None
    tokenizer = load_image_tokenizer(Shapes.image_tokenizer)
    codes = tokenizer.encode(tokenizer.from_pictures([one for _, one in drawn], (32, 32))).flatten(1)
    shuffled = torch.stack([one[torch.from_numpy(rng.permutation(64))] for one in codes])
    garbage = {
        "blank": [Image.new("RGB", (32, 32), (236, 236, 236))] * 300,
        "noise": [Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)) for _ in range(300)],
        "solid": [Image.new("RGB", (32, 32), list(COLOURS.values())[i % 6]) for i in range(300)],
        "codes": tokenizer.to_pictures(tokenizer.decode(torch.from_numpy(rng.integers(0, 512, (300, 8, 8))))),
        "shuffled": tokenizer.to_pictures(tokenizer.decode(shuffled.unflatten(1, (8, 8)))),
    }
    assert {name: accepted(pictures, rows) for name, pictures in garbage.items()} == dict.fromkeys(garbage, 0)


def test_the_detector_survives_noise():
    rng = np.random.default_rng(3)
    drawn = by_category(120, seed=3)
    rows = [_row(caption) for caption, _ in drawn]
    noisy = [
        Image.fromarray((np.asarray(one) + rng.normal(0, 8, (32, 32, 3))).round().clip(0, 255).astype(np.uint8))
        for _, one in drawn
    ]
    assert accepted(noisy, rows) >= 118


def test_what_the_verifier_saw_is_told():
    caption = Caption("position", (("circle", "red", 1), ("square", "blue", 1)), "left of")
    drawn = picture(caption, random.Random(0))
    score = REWARD.judge(drawn, _row(caption))
    assert (score.value, score.details["answer"]) == (1.0, "blue square, red circle")
    red, blue = sorted(detect(drawn), key=lambda one: one.x)
    assert (red.colour, blue.shape) == ("red", "square")


@pytest.mark.parametrize(
    "odd", ["", "a red circle", "data:image/png;base64,", "data:image/png;base64,AAAA", "x" * 10**6]
)
def test_what_is_no_picture_is_invalid(odd):
    assert REWARD.judge(odd, _row(EVERY[0])).status == "invalid"


def test_huge_and_tiny_pictures_are_invalid_and_stored_ones_are_read():
    assert REWARD.judge(Image.new("RGB", (4000, 2)), _row(EVERY[0])).status == "invalid"
    caption, drawn = by_category(1, seed=4)[0]
    assert REWARD.judge(to_uri(drawn), _row(caption)).value == 1.0
    assert (np.asarray(from_uri(to_uri(drawn))) == np.asarray(drawn)).all()


def test_splits_share_no_combination_and_no_caption():
    seen: dict[str, str] = {}
    for (split, _), members in captions().items():
        for caption in members:
            assert seen.setdefault(caption.combination, split) == split
    assert len({caption.text for caption in EVERY}) == len(EVERY)
    assert {split for split, category in captions() if captions()[split, category]} == {"train", "validation", "test"}
    turned = Caption("position", (("square", None, 1), ("circle", None, 1)), "right of")
    assert turned.combination == Caption("position", (("circle", None, 1), ("square", None, 1)), "left of").combination


def test_fixed_sets_hold_every_category_equally_often_and_do_not_depend_on_the_seed():
    task = Shapes()
    test, validation = task.rows("test"), task.rows("validation")
    assert Counter(row["category"] for row in test) == dict.fromkeys(CATEGORIES, 80)
    assert len(validation) == 240 and len({row["id"] for row in test}) == 480
    assert test == Shapes(data_seed=5, careless_at_most=1.0).rows("test")
    assert {row["cluster"] for row in test}.isdisjoint(task.rows("train")[i]["cluster"] for i in range(300))
    with pytest.raises(UserError, match="no split 'dev'"):
        task.rows("dev")


def test_training_rows_are_pure_and_right_unless_careless():
    task = Shapes(careless_at_most=1.0)
    rows = [task.rows("train")[i] for i in range(400)]
    again = Shapes(careless_at_most=1.0).rows("train")
    assert all((np.asarray(again[i]["completion"]) == np.asarray(rows[i]["completion"])).all() for i in range(20))
    right = {category: [] for category in CATEGORIES}
    for row in rows:
        right[row["category"]].append(REWARD.judge(row["completion"], row).value)
    shares = [sum(values) / len(values) for values in right.values()]
    assert shares[0] == 1.0 and shares[-1] == 0.0 and 0.2 < shares[2] < 0.9
    careful = Shapes().rows("train")
    assert all(REWARD.judge(careful[i]["completion"], careful[i]).value == 1.0 for i in range(100))


def test_every_word_of_every_caption_is_a_token():
    assert set(Shapes.alphabet) == {word for caption in EVERY for word in caption.text.split()}


def test_stored_generations_know_their_row_by_the_caption():
    caption = EVERY[50]
    assert Shapes().stored_row(caption.text, None) == _row(caption)
    with pytest.raises(ValueError, match="no caption"):
        Shapes().stored_row("a pink elephant", None)


def test_the_codebook_is_the_one_of_its_recipe(tmp_path):
    import runpy
    from pathlib import Path

    recipe = runpy.run_path(str(Path(__file__).parents[1] / "examples/shapes_codebook.py"))
    recipe["main"](tmp_path / "codebook")
    assert Shapes.image_tokenizer is not None
    made, kept = (load_image_tokenizer(folder) for folder in (tmp_path / "codebook", Shapes.image_tokenizer))
    assert isinstance(made, PatchCodebook) and isinstance(kept, PatchCodebook)
    assert torch.equal(made.codebook, kept.codebook) and kept.codes == 512 and kept.factor == 4
