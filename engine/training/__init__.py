"""Robust training procedures, one per file. Adding one is a file and a line here."""

from engine.training import gaussian, standard
from engine.training.base import Procedure

PROCEDURES: dict[str, Procedure] = {"gaussian": gaussian.PROCEDURE, "standard": standard.PROCEDURE}
