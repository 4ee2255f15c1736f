"""Robust training procedures, one per file. Adding one is a file and a line here, with its settings in config."""

from engine.config import ProcedureConfig
from engine.training import consistency, gaussian, macer, smoothadv, smoothmix, standard
from engine.training.base import Procedure

PROCEDURES: dict[str, type[Procedure]] = {
    "standard": standard.Standard,
    "gaussian": gaussian.Gaussian,
    "smoothadv": smoothadv.SmoothAdv,
    "smoothadv-pacd": smoothadv.SmoothAdvPacd,
    "macer": macer.Macer,
    "macer-pacd": macer.MacerPacd,
    "consistency": consistency.Consistency,
    "smoothmix": smoothmix.SmoothMix,
}


def make(settings: ProcedureConfig, *, sigma: float) -> Procedure:
    """The procedure of these settings at this noise level."""
    return PROCEDURES[settings.name](settings, sigma)
