"""The configuration of one experiment: frozen, validated, canonical. Importing this imports no torch."""

import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from engine.choices import (
    ATTACK_TRAITS,
    DATASETS,
    FOLDER,
    FOLDER_NAME,
    PROCEDURES,
    Architecture,
    AttackName,
    AttackTraits,
    Augmentation,
    Control,
    LinearSolver,
)

# Raise it when the same configuration no longer gives the same numbers: ids and caches follow.
PROTOCOL_VERSION: Literal[3] = 3

LEAST_TRAINING, LEAST_VALIDATION = 100, 50  # images
MOST_DRAWS = 1_000_000  # for a selection or an estimation


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, what is allowed and what was given."""


def dataset_name(name: str) -> str:
    """The name, if a data set can have it. Raises: ConfigError."""
    if name not in DATASETS and not re.fullmatch(FOLDER + FOLDER_NAME, name):
        raise ConfigError(
            f"dataset must be {', '.join(DATASETS)} or {FOLDER}NAME, where NAME has only letters a-z and A-Z, digits, "
            f"_, - and ., and does not begin with a dot, got {name!r}"
        )
    return name


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Pydantic would take it for 1."""
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            if isinstance(values.get(name), bool) and field.annotation in (int, float, float | None):
                raise ValueError(f"{name} must be a number, got {str(values[name]).lower()}")
        return values


class ProcedureConfig(Settings):
    """How a classifier is trained. A setting that the procedure does not take is 0, and may not be anything else."""

    name: str
    draws: int = Field(default=0, ge=0, le=64, description="noise draws per image and step")
    weight: float = Field(default=0.0, ge=0, description="of the robustness term beside the cross-entropy")
    adversary_steps: int = Field(default=0, ge=0, le=100, description="ascent steps of the inner adversary")
    adversary_size: float = Field(default=0.0, ge=0, description="L2 radius, or length of each step for smoothmix")
    warmup: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the epochs until the adversary or the robustness term has its full strength; fine-tuning "
        "has a warm-up of its own",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """A name stands for the procedure as it is by default."""
        values = {"name": values} if isinstance(values, str) else values
        if not isinstance(values, dict) or "name" not in values:
            return values
        if not isinstance(values["name"], str) or values["name"] not in PROCEDURES:
            raise ValueError(f"a procedure is one of {', '.join(PROCEDURES)}, got {values['name']!r}")
        return PROCEDURES[values["name"]] | values

    @model_validator(mode="after")
    def _takes_only_its_own(self) -> "ProcedureConfig":
        takes = PROCEDURES[self.name]
        for field in ProcedureConfig.model_fields:
            if field != "name" and field not in takes and getattr(self, field):
                raise ValueError(f"procedure {self.name} takes no {field}; it takes {', '.join(takes) or 'nothing'}")
        if "draws" in takes and self.draws == 0:
            raise ValueError(f"procedure {self.name} needs draws of at least 1, got 0")
        return self

    @property
    def loss_passes(self) -> int:
        """How often the loss takes an image of a minibatch through the network and back."""
        on_adversary = bool(self.adversary_steps and self.weight)  # a robustness term of its own, beside that on noise
        return max(1, self.draws) * (1 + on_adversary)

    @property
    def passes(self) -> int:
        """How often a step of training does, its adversary's steps included."""
        return self.loss_passes + self.draws * self.adversary_steps


class DataConfig(Settings):
    train_size: int = Field(ge=LEAST_TRAINING, le=60_000, description="training images, drawn at random by the seed")
    validation_size: int = Field(
        ge=LEAST_VALIDATION, le=20_000, description="held-out images; the attacker uses the target class's"
    )


class ThreatConfig(Settings):
    target_class: int = Field(ge=0, le=999, description="class whose average certified radius the attacker lowers")
    epsilon: float = Field(ge=0, le=1, description="L∞ budget of each poison pixel's change, pixel units of [0, 1]")
    poison_fraction: float = Field(
        default=1.0, ge=0, le=1, description="share of the class's images in the attacker's hands that may change"
    )
    attacker_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the training images in the attacker's hands"
    )


class AttackConfig(Settings):
    name: AttackName = Field(default="pacd", description="how the poison is made")
    procedure: ProcedureConfig | None = Field(
        default=None, description="how the attacker's surrogates are trained; the victims' procedure if null"
    )
    sigma: float | None = Field(
        default=None, gt=0, le=4, description="the attacker's noise level; the victims' if null"
    )
    augmentation: Augmentation | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # it came later than the ids of shipped runs
        description="what the attacker does to images that surrogates train on; as the victims' training if null",
    )
    surrogate: Architecture = Field(description="architecture that the attacker differentiates through")
    upper_steps: int = Field(ge=1, le=100_000, description="updates of a poison minibatch")
    restart_every: int = Field(ge=1, description="upper steps until the surrogate starts again from new weights")
    warmup_steps: int = Field(default=0, ge=0, description="lower steps of a new surrogate before its first upper step")
    lower_steps: int = Field(ge=1, description="surrogate training steps per upper step")
    linear_steps: int = Field(
        ge=1, description="steps of the linear solver per upper step; nystrom: the rank; unrolled: lower steps"
    )
    linear_solver: LinearSolver = Field(
        description="adam: as PACD's code, with fresh noise in each step; adam-shared: one noise draw for all steps, "
        "as for all that follow; cg; minres; neumann: the Neumann series; nystrom: an approximation of low rank; "
        "one-step: the upper gradient in place of a solution; gauss-newton-cg: cg without the network's own curvature; "
        "unrolled: differentiates through descent on the lower loss; penalty: weights minimise the upper loss and a "
        "penalty on the lower loss's gradient"
    )
    damping: float = Field(
        gt=0,
        description="added to the Hessian's diagonal; the weight of penalty grows by 1/damping in each upper step "
        "(unused by one-step and unrolled)",
    )
    clean_batch: int = Field(ge=1, description="clean images in a lower-level minibatch")
    poison_batch: int = Field(ge=1, description="poison images in a lower-level minibatch, updated together")
    upper_batch: int = Field(ge=1, description="held-out target-class images in the upper loss")
    upper_noise: int = Field(ge=1, description="noise draws for each of them")
    weights_learning_rate: float = Field(gt=0, description="Adam, surrogate")
    linear_learning_rate: float = Field(
        gt=0, description="Adam, linear system or penalty; of the unrolled descent (unused by other solvers)"
    )
    poison_learning_rate: float = Field(gt=0, description="Adam, poison, pixel units of [0, 1]")
    poison_moments: Literal["image", "position"] = Field(
        default="image",
        exclude_if=lambda value: value == "image",  # it came later than the ids of shipped runs
        description="what Adam's moments of the poison belong to: each image; or, as in PACD's code, each position in "
        "the minibatch, whichever image is there (unused by universal)",
    )
    inverse_temperature: float = Field(default=16.0, gt=0, description="multiplies logits in the soft radius")
    squeeze: float = Field(default=1e-3, ge=1e-6, lt=0.5, description="keeps the soft radius finite")
    fixed_lower_noise: bool = Field(
        default=False, description="one noise draw per image that never changes, lower level"
    )
    fixed_upper_noise: bool = Field(
        default=False, description="one noise draw per image that never changes, upper level"
    )
    file: str = Field(
        default="",
        description="SHA-256 of a poison file that was brought here: from-file's poison; where pacd starts, scaled to "
        "epsilon (if empty, at the clean images); empty for all others",
    )

    @property
    def traits(self) -> AttackTraits:
        return ATTACK_TRAITS[self.name]

    @model_validator(mode="after")
    def _file_and_name(self) -> "AttackConfig":
        sha256, optional = "[0-9a-f]{64}", "?" * self.traits.may_start_from_file
        if not re.fullmatch(f"({sha256}){optional}" if self.name == "from-file" or optional else "", self.file):
            raise ValueError(
                f"attack.file must be the SHA-256 of a poison file for attack from-file, that or empty for pacd, and "
                f"empty for all others, got attack {self.name} and file {self.file!r}"
            )
        return self


class TrainingConfig(Settings):
    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "step"] = Field(
        description="of the learning rate: linearly to 0, or a tenth after each third of the epochs"
    )
    optimiser: Literal["adam", "sgd"] = Field(default="adam", description="sgd: momentum 0.9")
    weight_decay: float = Field(default=0.0, ge=0)
    augmentation: Augmentation = Field(
        default="none", description="crop out of 4 pixels of padding and flip, per image, or one crop for a whole batch"
    )
    squeezing: Literal["none", "median", "one-bit", "three-bit"] = Field(
        default="none", description="a defence: what is done to every training image of every arm before victims see it"
    )
    precision: Literal["float32", "fast"] = Field(
        default="float32",
        description="of victims' arithmetic; fast: products in bfloat16 where the processor or GPU has it (env.json "
        "says; of a LeNet on a CPU those of its linear layers), and on a GPU all others, the attack's too, in TF32",
    )
    fine_tune_epochs: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="more epochs on the arm's data after training on clean data; 0: from scratch",
    )


class CertificationConfig(Settings):
    target_images: int = Field(ge=1, description="test images of the target class to certify")
    other_images: int = Field(ge=1, description="test images of each other class to certify")
    n0: int = Field(ge=1, le=MOST_DRAWS, description="selection draws")
    n: int = Field(ge=1, le=MOST_DRAWS, description="estimation draws")
    alpha: float = Field(gt=0, lt=0.5, description="failure probability of one certificate")


class Config(Settings):
    """Everything that an experiment's numbers depend on, and nothing else."""

    protocol_version: Literal[3] = PROTOCOL_VERSION
    dataset: Annotated[str, AfterValidator(dataset_name)] = Field(
        description="mnist, cifar10, digits (embedded), or folder:NAME for your own images"
    )
    architecture: Architecture = Field(default="lenet", description="architecture of the victims")
    procedure: ProcedureConfig = Field(description="how victims are trained")
    sigma: float = Field(gt=0, le=4, description="noise level in attack, training and certification, pixel units")
    threat: ThreatConfig
    data: DataConfig
    attack: AttackConfig
    training: TrainingConfig
    certification: CertificationConfig
    controls: tuple[Control, ...] = Field(
        default=("random_noise", "shuffled_signs"), description="arms beside clean and poisoned"
    )
    victim_seeds: int = Field(ge=1, le=100, description="victims trained from scratch for each arm")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="every random draw follows from it")

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        known, target = DATASETS.get(self.dataset), self.threat.target_class
        if known and target >= (classes := len(known.class_names)):
            raise ValueError(f"threat.target_class must be less than {classes} for {self.dataset}, got {target}")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls must differ, got {', '.join(self.controls)}")
        if known and (wanted := self.data.train_size + self.data.validation_size) > known.training_images:
            raise ValueError(
                f"data.train_size + data.validation_size must be at most {known.training_images} for {self.dataset}, "
                f"got {wanted}"
            )
        if self.training.batch_size > self.data.train_size:
            raise ValueError(
                f"training.batch_size must be at most data.train_size = {self.data.train_size}, "
                f"got {self.training.batch_size}"
            )
        n, alpha = self.certification.n, self.certification.alpha
        if n < smallest_useful_n(alpha):
            raise ValueError(
                f"certification.n must be at least {smallest_useful_n(alpha)} at alpha = {alpha}, got {n}: "
                "with fewer draws even a unanimous vote certifies nothing, and every point abstains"
            )
        return self

    def canonical(self) -> str:
        """The one text of this configuration; its SHA-256 names the run."""
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def smallest_useful_n(alpha: float) -> int:
    """The fewest estimation draws that can certify anything: alpha^(1/n) must exceed 1/2."""
    return math.floor(math.log(alpha) / math.log(0.5)) + 1


def arms_of(config: Config) -> tuple[str, ...]:
    """The arms that an experiment trains victims for: controls last, in the order of the configuration."""
    if config.attack.name == "none":
        return ("clean",)
    return ("clean", "poisoned", *config.controls)


def poison_depends_on(config: Config) -> dict[str, Any]:
    """The settings that determine a poison, with data and seed: configurations that agree in them share it."""
    procedure, sigma = lower_level(config)
    return {
        "threat": config.threat.model_dump(),
        "attack": config.attack.model_dump(exclude={"procedure", "sigma", "augmentation"}),
        "procedure": procedure.model_dump(),
        "sigma": sigma,
        "augmentation": attackers_augmentation(config),
    }


def lower_level(config: Config) -> tuple[ProcedureConfig, float]:
    """(procedure, sigma) that the attacker assumes: the victims' own unless the attack says otherwise."""
    attack = config.attack
    return attack.procedure or config.procedure, config.sigma if attack.sigma is None else attack.sigma


def attackers_augmentation(config: Config) -> Augmentation:
    """What the attacker's lower level does to images: as the victims' training unless the attack says otherwise."""
    return config.attack.augmentation or config.training.augmentation
