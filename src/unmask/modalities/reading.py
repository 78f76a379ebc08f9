"""Pictures in prompts: from files to the ids that a model reads."""

import math
from collections.abc import Sequence

from unmask.modalities.codes import Codes
from unmask.modalities.layouts import Layout
from unmask.pictures import StoredPicture, stored_picture


class PictureReader:
    """Ids of the pictures in prompts.

    Attributes:
        most_codes: of a picture, where the model does not say a size: then pictures keep their shape, are made smaller
            if they have more codes, and are cut to whole ones. Lumina-DiMOO is trained with 4096.

    Args:
        layout: of the family.
        offset: id of code 0.
        grid: (height, width) in codes that every picture is scaled and cut to; None: its own.
        codes: through the image tokenizer.
    """

    def __init__(self, layout: Layout, offset: int, grid: tuple[int, int] | None, codes: Codes):
        self.layout, self.offset, self.grid, self.codes = layout, offset, grid, codes
        self.most_codes = 4096

    def __call__(self, sources: Sequence[str]) -> list[list[int]]:
        """Ids of pictures, each with its marks.

        Args:
            sources: files or `data:` URIs.

        Raises:
            UserError: one that cannot be read; the model has no image tokenizer.
        """
        pictures = [stored_picture(source) for source in sources]
        grids = [self.grid or self._own(picture) for picture in pictures]
        ids: dict[int, list[int]] = {}
        for grid in dict.fromkeys(grids):
            places = [place for place, one in enumerate(grids) if one == grid]
            for place, codes in zip(places, self.codes([pictures[place] for place in places], grid), strict=True):
                ids[place] = self.layout.picture((codes + self.offset).tolist())
        return [ids[place] for place in range(len(pictures))]

    def _own(self, picture: StoredPicture) -> tuple[int, int]:
        """Height and width of a picture in codes."""
        factor = self.codes.tokenizer.factor
        width, height = picture.extent()
        scale = min(1.0, math.sqrt(self.most_codes / (width * height)) * factor) / factor
        rows = min(max(1, int(height * scale)), self.most_codes)
        return rows, min(max(1, int(width * scale)), self.most_codes // rows)
