"""The configuration of one experiment: frozen, validated, canonical. Importing this imports no torch."""

import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PROTOCOL_VERSION: Literal[1] = (
    1  # raise it when the same configuration no longer gives the same numbers: ids and caches follow
)

Architecture = Literal["lenet", "lenet-narrow"]
TRAINING_IMAGES = {"mnist": 60_000, "digits": 1_437}  # how many the data sets have to be split


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, what is allowed and what was given."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Settings):
    train_size: int = Field(ge=100, le=60_000, description="training images, drawn at random by the seed")
    validation_size: int = Field(ge=50, le=20_000, description="held-out images; the attacker uses the target class's")


class ThreatConfig(Settings):
    target_class: int = Field(ge=0, le=9, description="class whose average certified radius the attacker lowers")
    epsilon: float = Field(ge=0, le=1, description="L∞ budget of each poison pixel's change, pixel units of [0, 1]")
    poison_fraction: float = Field(
        default=1.0, ge=0, le=1, description="share of the class's training images that may change"
    )


class AttackConfig(Settings):
    surrogate: Architecture = Field(description="architecture that the attacker differentiates through")
    upper_steps: int = Field(ge=1, le=100_000, description="updates of a poison minibatch")
    restart_every: int = Field(ge=1, description="upper steps until the surrogate starts again from new weights")
    warmup_steps: int = Field(default=0, ge=0, description="lower steps of a new surrogate before its first upper step")
    lower_steps: int = Field(ge=1, description="surrogate training steps per upper step")
    linear_steps: int = Field(ge=1, description="steps of the linear solver per upper step")
    linear_solver: Literal["adam", "cg"] = Field(description="adam: as PACD's code, fresh noise in each step; cg")
    damping: float = Field(gt=0, description="added to the Hessian's diagonal")
    clean_batch: int = Field(ge=1, description="clean images in a lower-level minibatch")
    poison_batch: int = Field(ge=1, description="poison images in a lower-level minibatch, updated together")
    upper_batch: int = Field(ge=1, description="held-out target-class images in the upper loss")
    upper_noise: int = Field(ge=1, description="noise draws for each of them")
    weights_learning_rate: float = Field(gt=0, description="Adam, surrogate")
    linear_learning_rate: float = Field(gt=0, description="Adam, linear system (unused by cg)")
    poison_learning_rate: float = Field(gt=0, description="Adam, poison, pixel units of [0, 1]")
    inverse_temperature: float = Field(default=16.0, gt=0, description="multiplies logits in the soft radius")
    squeeze: float = Field(default=1e-3, ge=1e-6, lt=0.5, description="keeps the soft radius finite")


class TrainingConfig(Settings):
    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, description="Adam")
    decay: bool = Field(description="lower the learning rate linearly to 0; constant otherwise")


class CertificationConfig(Settings):
    target_images: int = Field(ge=1, description="test images of the target class to certify")
    other_images: int = Field(ge=1, description="test images of each other class to certify")
    n0: int = Field(ge=1, description="selection draws")
    n: int = Field(ge=1, le=1_000_000, description="estimation draws")
    alpha: float = Field(gt=0, lt=0.5, description="failure probability of one certificate")


class Config(Settings):
    """Everything that an experiment's numbers depend on, and nothing else."""

    protocol_version: Literal[1] = PROTOCOL_VERSION
    dataset: Literal["mnist", "digits"] = Field(description="mnist, or scikit-learn's embedded digits")
    architecture: Architecture = Field(default="lenet", description="architecture of the victims")
    procedure: Literal["gaussian", "standard"] = Field(default="gaussian", description="how victims are trained")
    sigma: float = Field(gt=0, le=4, description="noise level in attack, training and certification, pixel units")
    threat: ThreatConfig
    data: DataConfig
    attack: AttackConfig
    training: TrainingConfig
    certification: CertificationConfig
    victim_seeds: int = Field(ge=1, le=100, description="victims trained from scratch for each arm")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="every random draw follows from it")

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        images, wanted = TRAINING_IMAGES[self.dataset], self.data.train_size + self.data.validation_size
        if wanted > images:
            raise ValueError(
                f"data.train_size + data.validation_size must be at most {images} for {self.dataset}, got {wanted}"
            )
        if self.training.batch_size > self.data.train_size:
            raise ValueError(
                f"training.batch_size must be at most data.train_size = {self.data.train_size}, "
                f"got {self.training.batch_size}"
            )
        n, alpha = self.certification.n, self.certification.alpha
        if alpha ** (1 / n) <= 0.5:
            raise ValueError(
                f"certification.n must be at least {smallest_useful_n(alpha)} at alpha = {alpha}, got {n}: "
                "with fewer draws even a unanimous vote certifies nothing, and every point abstains"
            )
        return self

    def canonical(self) -> str:
        """The one text of this configuration; its SHA-256 names the run."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def smallest_useful_n(alpha: float) -> int:
    """The fewest estimation draws that can certify anything: alpha^(1/n) must exceed 1/2."""
    return math.floor(math.log(alpha) / math.log(0.5)) + 1


def parse(values: dict[str, Any]) -> Config:
    """A validated configuration. Raises: ConfigError, one line, naming field, what is allowed, and what was given."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem) for problem in error.errors())) from None


def _in_words(problem: Any) -> str:
    field = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"there is no field {field}; the fields are {', '.join(field_names())}"
    if problem["type"] == "value_error":
        return message
    message = message[0].lower() + message[1:]
    return f"{field}: {message}" if problem["type"] == "missing" else f"{field}: {message}, got {problem['input']!r}"


def field_names(settings: type[Settings] = Config, prefix: str = "") -> list[str]:
    """All fields, dotted, as --set takes them."""
    names = []
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            names += field_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """The configuration with dotted fields replaced, each given as "field=value" (value: JSON, or a plain word).

    Raises: ConfigError.
    """
    values = config.model_dump()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"an override is field=value, got {override!r}")
        if name not in field_names():
            raise ConfigError(f"there is no field {name!r}; the fields are {', '.join(field_names())}")
        *path, last = name.split(".")
        part = values
        for key in path:
            part = part[key]
        try:
            part[last] = json.loads(text)
        except ValueError:
            part[last] = text
    return parse(values)
