"""How visible a perturbation is: L∞, L2, PSNR, SSIM, image by image."""

from dataclasses import dataclass

import numpy as np
from skimage.metrics import structural_similarity


@dataclass(frozen=True)
class Perturbation:
    """Per image [P], pixel units of [0, 1]; PSNR in decibels, infinite for an unchanged image; SSIM in [−1, 1]."""

    linf: np.ndarray
    l2: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    changed_share: np.ndarray  # of pixels that differ at all


def measure(x_clean: np.ndarray, delta: np.ndarray) -> Perturbation:
    """How visible each image's change is: x_clean and delta [P, C, H, W], arrays [P] in what it returns.

    SSIM: Wang et al. 2004 with scikit-image's 7×7 windows, data range 1.
    """
    flat = np.abs(delta.reshape(len(delta), int(np.prod(delta.shape[1:]))))
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10((flat.astype(np.float64) ** 2).mean(axis=1))
    ssim = [
        structural_similarity(clean, clean + change, data_range=1.0, channel_axis=0)
        for clean, change in zip(x_clean, delta, strict=True)
    ]
    return Perturbation(
        linf=flat.max(axis=1, initial=0),
        l2=np.linalg.norm(flat, axis=1),
        psnr=psnr,
        ssim=np.array(ssim, dtype=np.float64),
        changed_share=(flat > 0).mean(axis=1) if len(flat) else np.zeros(0),
    )


def summarise(found: Perturbation) -> dict[str, float | None]:
    """The record's five numbers; a mean over no image, or an infinite one, is None."""

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) and np.isfinite(values).all() else None

    return {
        "linf_max": float(found.linf.max(initial=0)),
        "l2_mean": mean(found.l2),
        "psnr_mean": mean(found.psnr),
        "ssim_mean": mean(found.ssim),
        "changed_share": mean(found.changed_share),
    }
