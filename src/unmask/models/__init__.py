"""Models: one backbone, families of checkpoints, reading and writing them."""

from unmask.models.backbone import Backbone, BackboneConfig
from unmask.models.checkpoint import Model, load
from unmask.models.families import Family
from unmask.models.image_tokenizer import ImageTokenizer
from unmask.models.special import ImageIds, SpecialIds

__all__ = ["Backbone", "BackboneConfig", "Family", "ImageIds", "ImageTokenizer", "Model", "SpecialIds", "load"]
