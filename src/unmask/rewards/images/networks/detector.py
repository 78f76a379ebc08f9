"""Mask2Former (arXiv 2112.01527) as a detector of objects."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerModel
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

from unmask.errors import UserError
from unmask.rewards.images.geneval_rules import CLASSES, CONFIDENCE, Detection
from unmask.rewards.images.networks.loading import device_of, once, pretrained
from unmask.rewards.images.networks.pixels import stretched

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 100
"""Objects per picture, as many as mmdet's inference keeps."""
_MULTIPLE = 32  # of which sides must be, for the strides of the backbone


class Segmenter(Mask2FormerPreTrainedModel):
    """Mask2FormerForUniversalSegmentation without its loss, which needs scipy; weights have the same names."""

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, len(config.id2label or ()) + 1)
        self.post_init()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes [b q 81] (the last is none) and of masks [b q h w], a quarter of the picture's size."""
        found = self.model(pixel_values=pixels, output_hidden_states=True, return_dict=True)
        queries = found.transformer_decoder_last_hidden_state
        return self.class_predictor(queries), found.masks_queries_logits[-1]


class Detector:
    """Finds objects of the 80 classes of COCO.

    Args:
        model: in evaluation mode.
        device: to put it on.
    """

    def __init__(self, model: Segmenter, device: torch.device):
        self.model, self.device = model, device
        nn.Module.to(model, device)
        self._lock = threading.Lock()

    def __call__(self, pictures: "Sequence[Image]", short: int, long: int, batch: int) -> list[list[Detection]]:
        """Objects of at least `CONFIDENCE` in each picture; sizes: see `stretched`."""
        found: list[list[Detection]] = [[] for _ in pictures]
        sizes: dict[tuple[int, int], list[int]] = {}
        for place, picture in enumerate(pictures):
            sizes.setdefault(picture.size, []).append(place)
        for places in sizes.values():  # pictures of one size go together, so that none needs padding
            for start in range(0, len(places), batch):
                part = places[start : start + batch]
                pixels = np.stack([stretched(pictures[place], short, long, _MULTIPLE) for place in part])
                with self._lock:
                    classes, masks = self.model(torch.from_numpy(pixels).to(self.device, self.model.dtype))
                for place, kinds, shapes in zip(part, classes, masks, strict=True):
                    found[place] = objects(kinds, shapes, pictures[place].size)
        return found


def objects(classes: Tensor, masks: Tensor, size: tuple[int, int]) -> list[Detection]:
    """Detections from the logits of one picture, as mmdet makes them: confidence is that of the class times that of the
    mask, the mean probability of its pixels.

    Args:
        classes: [q 81], the last class is none.
        masks: [q h w].
        size: (width, height) of the picture.
    """
    confidence, best = classes.float().softmax(-1)[:, :-1].flatten().topk(min(MOST, classes[:, :-1].numel()))
    kept = confidence > CONFIDENCE  # that of the mask is at most 1
    confidence, best = confidence[kept], best[kept]
    if not len(best):
        return []
    labels = best % len(CLASSES)
    logits = masks.float()[best // len(CLASSES)][None]
    logits = nn.functional.interpolate(logits, size=size[::-1], mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    quality = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    detections = []
    for label, score, mask in zip(labels.tolist(), (confidence * quality).tolist(), inside.cpu().numpy(), strict=True):
        if score > CONFIDENCE:  # hence not empty
            down, right = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (int(right[0]), int(down[0]), int(right[-1]) + 1, int(down[-1]) + 1)
            detections.append(Detection(CLASSES[label], score, box, mask))
    return detections


def load_detector(source: str, device: str, dtype: str) -> Detector:
    """A detector in Hugging Face layout.

    Raises:
        UserError: it is not there or broken, or knows other classes.
    """
    return _load(source, device_of(device), dtype)


@once
def _load(source: str, device: torch.device, dtype: str) -> Detector:
    model = pretrained(Segmenter, source, dtype)
    if model.config.num_labels != len(CLASSES):
        raise UserError(
            f"{source} tells {model.config.num_labels} classes apart; the {len(CLASSES)} of COCO are needed"
        )
    return Detector(model, device)
