"""Plain names for what a configuration calls by code names, and what each attack does in a sentence."""

from dataclasses import dataclass

from engine.choices import DATASETS, FOLDER, PROCEDURES
from engine.config import Config, ProcedureConfig


class Names(dict[str, str]):
    """Plain names of code names; what has none yet goes by its code name."""

    def __missing__(self, key: str) -> str:
        return key


PROCEDURE_NAMES = Names(
    {
        "standard": "Standard (no robustness)",
        "gaussian": "Gaussian augmentation",
        "smoothadv": "SmoothAdv",
        "smoothadv-pacd": "SmoothAdv as PACD ran it",
        "macer": "MACER",
        "macer-pacd": "MACER as PACD ran it",
        "consistency": "Consistency regularisation",
        "smoothmix": "SmoothMix",
    }
)
ARCHITECTURE_NAMES = Names(
    {
        "mlp": "Perceptron (MLP)",
        "lenet-narrow": "LeNet, narrow (8-16-100)",
        "lenet": "LeNet (20-50-500)",
        "lenet-torch": "LeNet, torch's first weights",
        "convnet": "ConvNet",
        "resnet8": "ResNet-8",
        "resnet20": "ResNet-20",
        "resnet32": "ResNet-32",
        "resnet44": "ResNet-44",
        "resnet56": "ResNet-56",
        "resnet20-pacd": "ResNet-20 as PACD ran it",
        "resnet18": "ResNet-18 (torchvision)",
    }
)
SETTING_NAMES = {  # of procedures
    "draws": "Noise draws per image",
    "weight": "Robustness term's weight",
    "adversary_steps": "Inner adversary's steps",
    "adversary_size": "Inner adversary's size (L2)",
    "warmup": "Warm-up (share of epochs)",
}


@dataclass(frozen=True)
class Attack:
    """An attack for a reader; `changes` says what is done to each of the images that may change."""

    name: str
    changes: str


_EACH = "each image gets a change of its own, found by"
ATTACKS = {
    "pacd": Attack("PACD", f"{_EACH} bilevel optimisation against the certified radius"),
    "universal": Attack(
        "PACD, one shared δ",
        "all images get one and the same δ, found by bilevel optimisation against the certified radius",
    ),
    "watermark": Attack("Watermark", "an image of another class shines through each image, cut at ε"),
    "brightness": Attack("Brightness", "all images get brighter by ε, every pixel alike"),
    "white-pattern": Attack("White pattern", "all images get one and the same random pattern of ±ε"),
    "low-frequency-pattern": Attack("Low-frequency pattern", "all images get one and the same smooth pattern of ±ε"),
    "error-minimising": Attack("Error-minimising noise", f"{_EACH} making it easy for surrogates"),
    "error-maximising": Attack("Error-maximising noise", f"{_EACH} making it hard for surrogates"),
    "gradient-matching": Attack("Gradient matching", f"{_EACH} turning training steps against the soft radius"),
    "random-noise": Attack("Random noise", "each image gets independent random signs of ±ε"),
    "label-flip": Attack("Label flips (visible, not clean-label)", "each image gets a wrong label"),
    "from-file": Attack("Poison from a file", "each image gets the change that a file holds for it"),
    "none": Attack("None: clean victims only", "nothing is changed"),
}
FIELD_NAMES = {  # of a configuration, as in a form
    "dataset": "Data set",
    "threat.target_class": "Target class",
    "threat.epsilon": "Budget ε (L∞, pixel units)",
    "threat.poison_fraction": "Poison fraction (of the class)",
    "threat.attacker_share": "Attacker's share (of the data)",
    "sigma": "Noise level σ (pixel units)",
    "procedure": "Victims' training procedure",
    "architecture": "Victims' architecture",
    "attack.name": "Attack",
    "attack.procedure": "Procedure it assumes",
    "attack.sigma": "Noise level σ it assumes",
    "attack.augmentation": "Augmentation it assumes",
    "attack.surrogate": "Its surrogates' architecture",
    "attack.file": "Poison file (SHA-256)",
    "data.train_size": "Training images",
    "data.validation_size": "Held-out images",
    "attack.upper_steps": "Upper steps",
    "attack.restart_every": "Upper steps of a surrogate's life",
    "attack.warmup_steps": "Warm-up steps of a surrogate",
    "attack.lower_steps": "Lower steps for each upper one",
    "attack.linear_steps": "Linear steps",
    "attack.linear_solver": "Linear solver",
    "attack.damping": "Damping",
    "attack.clean_batch": "Clean images in a minibatch",
    "attack.poison_batch": "Poison images in a minibatch",
    "attack.upper_batch": "Held-out images in a minibatch",
    "attack.upper_noise": "Noise draws for each of them",
    "attack.weights_learning_rate": "Learning rate, surrogate",
    "attack.linear_learning_rate": "Learning rate, linear system",
    "attack.poison_learning_rate": "Learning rate, poison",
    "attack.poison_moments": "Adam's moments of the poison",
    "attack.inverse_temperature": "Inverse temperature",
    "attack.squeeze": "Squeeze of the soft radius",
    "attack.fixed_lower_noise": "Lower noise fixed",
    "attack.fixed_upper_noise": "Upper noise fixed",
    "training.epochs": "Epochs",
    "training.batch_size": "Images in a minibatch",
    "training.learning_rate": "Learning rate",
    "training.schedule": "Its schedule",
    "training.optimiser": "Optimiser",
    "training.weight_decay": "Weight decay",
    "training.augmentation": "Augmentation",
    "training.squeezing": "Squeezing (a defence)",
    "training.precision": "Precision",
    "training.fine_tune_epochs": "Fine-tuning epochs",
    "certification.target_images": "Test images, target class",
    "certification.other_images": "Test images, each other class",
    "certification.n0": "Selection draws n0",
    "certification.n": "Estimation draws n",
    "certification.alpha": "Failure probability α",
    "controls": "Controls (arms beside clean and poisoned)",
    "seed": "Seed",
    "victim_seeds": "Victims for each arm",
}
SCOPE_NAMES = {"target": "target class", "all": "all classes"}  # of test images
MOMENTS_NAMES = {"image": "per image", "position": "per minibatch position"}
CONTROL_NAMES = {"random_noise": "Random noise", "shuffled_signs": "Shuffled signs"}
KIND_NAMES = {  # of studies
    "transfer-procedure": "Transfer: training procedures",
    "transfer-architecture": "Transfer: architectures",
    "transfer-sigma": "Transfer: noise levels σ",
    "sweep": "Sweep of two settings",
    "rivals": "Rival attacks",
    "reproduce": "The paper's table: procedures × data sets × σ",
    "reproduce-full": "Reproduction, full scale",
    "reproduce-small": "Reproduction, small scale",
}


def field_name(name: str) -> str:
    """A field of a configuration, as in a form."""
    head, _, last = name.rpartition(".")
    return FIELD_NAMES.get(name, SETTING_NAMES.get(last, name) + " it assumes" * (head == "attack.procedure"))


def dataset_name(dataset: str) -> str:
    """As in a list: without what is in brackets; a folder of one's own by its name."""
    known = DATASETS.get(dataset)
    return known.description.partition(" (")[0] if known else dataset.removeprefix(FOLDER)


def procedure_line(procedure: ProcedureConfig) -> str:
    """The procedure with what was set otherwise than it is by default: "MACER (draws 4)"."""
    defaults = PROCEDURES[procedure.name]
    other = [f"{name} {getattr(procedure, name):g}" for name in defaults if getattr(procedure, name) != defaults[name]]
    return PROCEDURE_NAMES[procedure.name] + (f" ({', '.join(other)})" if other else "")


def attack_name(attack: str) -> str:
    """As in a list: without what is in brackets."""
    return ATTACKS[attack].name.partition(" (")[0] if attack in ATTACKS else attack


def attack_of(config: Config) -> Attack:
    return ATTACKS[config.attack.name]
