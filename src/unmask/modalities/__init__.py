"""Modalities: how prompts become canvases and answers become completions."""

from unmask.modalities.base import Completion, Modality
from unmask.modalities.image import Image
from unmask.modalities.text import Text

__all__ = ["Completion", "Image", "Modality", "Text"]
