"""Attacks, one per file: a line here for each. The two controls are functions of the images, and one is both."""

from engine.attacks import random_noise
from engine.attacks.base import Attack
from engine.attacks.error_maximising import error_maximising
from engine.attacks.error_minimising import error_minimising
from engine.attacks.from_file import from_file
from engine.attacks.gradient_matching import gradient_matching
from engine.attacks.label_flip import label_flip
from engine.attacks.pacd import pacd
from engine.attacks.patterns import brightness, low_frequency_pattern, white_pattern
from engine.attacks.universal import universal
from engine.attacks.watermark import watermark

ATTACKS: dict[str, Attack] = {
    "pacd": pacd,
    "universal": universal,
    "watermark": watermark,
    "brightness": brightness,
    "white-pattern": white_pattern,
    "low-frequency-pattern": low_frequency_pattern,
    "error-minimising": error_minimising,
    "error-maximising": error_maximising,
    "gradient-matching": gradient_matching,
    "random-noise": random_noise.as_attack,
    "label-flip": label_flip,
    "from-file": from_file,
}
