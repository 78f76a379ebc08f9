"""Makes the codebook of the world `shapes`: every patch that its pictures have, then frequent ones off their grid.

Run it as `python examples/shapes_codebook.py FOLDER`; the result is the one in `unmask/tasks/shapes_codebook`.
"""

import random
import sys
from pathlib import Path

from PIL import ImageChops

from unmask.models.patch_codebook import PatchCodebook
from unmask.tasks.drawing import picture
from unmask.tasks.shapes import CATEGORIES, captions


def main(folder: Path) -> None:
    rng = random.Random("shapes codebook")
    every = [caption for category in CATEGORIES for caption in captions()["train", category]]
    pictures = [picture(rng.choice(every), rng) for _ in range(8000)]
    moved = [ImageChops.offset(one, rng.randrange(4), rng.randrange(4)) for one in pictures[:500]]
    PatchCodebook.of_pictures(pictures + moved, codes=512, patch=4).save(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
