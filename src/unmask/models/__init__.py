"""Models: one backbone, families of checkpoints, reading and writing them."""

from unmask.models.backbone import Backbone, BackboneConfig
from unmask.models.checkpoint import Model, load
from unmask.models.families import Family, SpecialIds

__all__ = ["Backbone", "BackboneConfig", "Family", "Model", "SpecialIds", "load"]
