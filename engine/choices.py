"""What a configuration can choose from: architectures, attacks, arms, linear solvers, training procedures, data sets.

A further one has its line here; what it does is in a file of its own.
"""

from typing import Literal, NamedTuple, get_args

Architecture = Literal[
    "mlp",
    "lenet-narrow",
    "lenet",
    "lenet-torch",
    "convnet",
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet20-pacd",
    "resnet18",
]
# Pixels a side that an architecture needs; those that are not named do with the 8 that any data set has.
SMALLEST_SIDE = {"lenet": 16, "lenet-narrow": 16, "lenet-torch": 16}
AttackName = Literal[
    "none",
    "pacd",
    "universal",
    "watermark",
    "brightness",
    "white-pattern",
    "low-frequency-pattern",
    "error-minimising",
    "error-maximising",
    "gradient-matching",
    "random-noise",
    "label-flip",
    "from-file",
]


class AttackTraits(NamedTuple):
    """What the program must know of an attack besides its function."""

    derivatives: int = 0  # of the training loss that it takes at surrogates of its own; 0: it has none
    bilevel: bool = False  # whether it solves the linear system
    changes_pixels: bool = True
    changes_labels: bool = False  # and so is not clean-label
    may_start_from_file: bool = False  # of an earlier poison

    @property
    def surrogates(self) -> bool:
        """Whether it optimises through networks that it trains; else it is made at once."""
        return self.derivatives > 0


ATTACK_TRAITS: dict[str, AttackTraits] = dict.fromkeys(get_args(AttackName), AttackTraits()) | {
    "none": AttackTraits(changes_pixels=False),
    "pacd": AttackTraits(derivatives=2, bilevel=True, may_start_from_file=True),
    "universal": AttackTraits(derivatives=2, bilevel=True),
    "gradient-matching": AttackTraits(derivatives=2),
    "error-minimising": AttackTraits(derivatives=1),
    "error-maximising": AttackTraits(derivatives=1),
    "label-flip": AttackTraits(changes_pixels=False, changes_labels=True),
}
Augmentation = Literal["none", "crop-flip", "crop-flip-batch"]
Control = Literal["random_noise", "shuffled_signs"]
CONTROLS = get_args(Control)
ARMS = ("clean", "poisoned", *CONTROLS)
LinearSolver = Literal[
    "adam", "adam-shared", "cg", "minres", "neumann", "nystrom", "one-step", "gauss-newton-cg", "unrolled", "penalty"
]

# Training procedures and the settings that each takes, with their values where nothing else is said.
PROCEDURES: dict[str, dict[str, float]] = {
    "standard": {},
    "gaussian": {"draws": 1},
    "smoothadv": {"draws": 4, "adversary_steps": 10, "adversary_size": 255 / 256, "warmup": 0.11},
    "smoothadv-pacd": {"draws": 1, "adversary_steps": 2, "adversary_size": 1.0, "warmup": 0.1},
    "macer": {"draws": 16, "weight": 16.0, "warmup": 1 / 3},
    "macer-pacd": {"draws": 16, "weight": 16.0},
    "consistency": {"draws": 2, "weight": 5.0},
    "smoothmix": {"draws": 4, "weight": 1.0, "adversary_steps": 4, "adversary_size": 1.0, "warmup": 0.11},
}

FOLDER = "folder:"  # a data set of this prefix is the folder of that name under the data root
CLASS_NAME = r"[^\[\]<>`$|\\]+"  # printable; these would be taken for links, pictures or markup where a name is shown
FOLDER_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"


class DataSet(NamedTuple):
    """What is known of a data set before it is read."""

    description: str  # its name and a few words, for the middle of a sentence
    shape: tuple[int, int, int]  # (C, H, W) of its images
    training_images: int
    test_images: int
    class_names: tuple[str, ...]  # in the order of their labels


_TEN = tuple("0123456789")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS = "embedded digits (scikit-learn's 1,797 handwritten digits, 8×8 brought to 28×28), not MNIST"
_CIFAR10 = "CIFAR-10 (60,000 photographs of ten kinds of things, 32×32 in colour)"
DATASETS = {
    "mnist": DataSet("MNIST (70,000 handwritten digits, 28×28)", (1, 28, 28), 60_000, 10_000, _TEN),
    "digits": DataSet(_DIGITS, (1, 28, 28), 1_437, 360, _TEN),
    "cifar10": DataSet(_CIFAR10, (3, 32, 32), 50_000, 10_000, _THINGS),
}
