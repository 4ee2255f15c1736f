"""Robust training procedures, one file each, found by the names and settings that choices.PROCEDURES lists.

Adding one is a file here, whose PROCEDURES names its classes, and a line there. A name's part before "-" is the file.
"""

from importlib import import_module

from engine import choices
from engine.config import ProcedureConfig
from engine.training.base import Procedure

PROCEDURES: dict[str, type[Procedure]] = {
    name: import_module(f"engine.training.{name.partition('-')[0]}").PROCEDURES[name] for name in choices.PROCEDURES
}


def make(settings: ProcedureConfig, *, sigma: float) -> Procedure:
    """The procedure of these settings at this noise level."""
    return PROCEDURES[settings.name](settings, sigma)
