"""Modalities: how prompts become canvases and answers become completions."""

from unmask.modalities.base import Modality
from unmask.modalities.text import Text

__all__ = ["Modality", "Text"]
