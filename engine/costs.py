"""How much work a configuration is, and what that means in seconds and memory before anything has run."""

import math
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from engine.choices import DATASETS
from engine.config import AttackConfig, Config, arms_of, lower_level

CGROUP = Path("/sys/fs/cgroup/cpu.max")

# The forward pass of one 28×28 image, in units of the 20-50-500 LeNet's: measured on one CPU thread, in batches of 100.
# Networks with batch normalisation take a sixth less than this in certification, and a third more in training.
RELATIVE_COST = {
    "mlp": 0.08,
    "lenet-narrow": 0.4,
    "lenet": 1.0,
    "lenet-torch": 1.0,
    "convnet": 6.5,
    "resnet8": 4.0,
    "resnet20": 12.0,
    "resnet32": 19.0,
    "resnet44": 26.0,
    "resnet56": 34.0,
    "resnet20-pacd": 11.0,
    "resnet18": 115.0,
}
IMAGE_COST = {"cifar10": 1.4}  # of an image, where it is not one of 28×28 in one channel
BACKWARD, HESSIAN_VECTOR = 2.0, 8.0  # in forward passes
TOGETHER = 0.7  # of a training image's work where several noise draws of it make minibatches large: quick-macer
VOTE = 0.6  # of a forward pass: the first layer is shared, and most of the rest is done in a quicker way
UNITS_PER_SECOND = 17_000.0  # of a worker on a CPU that multiplies in bfloat16
UNITS_PER_SECOND_IN_FLOAT32 = 15_000.0  # on one that does not: an AMD EPYC with AVX2
UNITS_PER_SECOND_OF_A_GPU = 3_700_000.0  # of all workers together: paper-ga-mnist on an H200
MOST_WORKERS = 8
STARTUP_SECONDS = 6.0
# Bytes that the backward pass of one 28×28 image keeps, counted (tests/test_costs.py counts them again).
KEPT = {
    "mlp": 5e3,
    "lenet-narrow": 10.6e3,
    "lenet": 23.6e3,
    "lenet-torch": 23.6e3,
    "convnet": 202e3,
    "resnet8": 493e3,
    "resnet20": 1.20e6,
    "resnet32": 1.90e6,
    "resnet44": 2.60e6,
    "resnet56": 3.30e6,
    "resnet20-pacd": 1.24e6,
    "resnet18": 3.66e6,
}
# Weights of the first dense layer for each pixel more than 28×28: a few million for photographs, and nothing before.
DENSE = {"mlp": 768, "lenet-narrow": 91, "lenet": 1420, "lenet-torch": 1420, "convnet": 1020}
WEIGHTS_HELD = 20  # vectors as long as the weights: those of Adam and of the linear system, gradients, copies
Shape = tuple[int, int, int]  # (C, H, W)
CLASSES = 10  # of every data set but folders
# Bytes, fitted on the CPU to what `python -m benchmarks memory` measures, which prints both.
BASE_MEMORY = 0.95e9  # a process that has imported all and done nothing
COPIES = 3.1  # of the data set, and again of the training images
FIRST_GRAPH, SECOND_GRAPH = 1.5, 4.0  # times what a backward pass keeps, for first and second derivatives


@dataclass
class Work:
    """Work of the three kinds of stage, in units."""

    poison: float = 0.0
    train: float = 0.0
    certify: float = 0.0

    @property
    def total(self) -> float:
        return self.poison + self.train + self.certify


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take. Rough: within a factor of two on a machine of this kind."""

    seconds: float
    memory_bytes: float


def work_of(config: Config, *, classes: int = CLASSES) -> Work:
    """The whole run's work, nothing reused."""
    victims, votes = len(arms_of(config)) * config.victim_seeds, work_of_votes(config, classes=classes)
    return Work(work_of_attack(config), victims * work_of_training(config), victims * votes)


def work_of_attack(config: Config) -> float:
    """Of the whole poison, in units, as all work here; 0 where nothing is optimised."""
    attack, (procedure, _) = config.attack, lower_level(config)
    if not attack.traits.surrogates:
        return 0.0
    images = (attack.clean_batch + attack.poison_batch) * procedure.loss_passes
    first = 1 + BACKWARD
    lives = -(-attack.upper_steps // attack.restart_every)
    adversary = (attack.clean_batch + attack.poison_batch) * first * procedure.draws * procedure.adversary_steps
    direction = _direction(attack, images) if attack.traits.derivatives == 2 else images * first
    step = adversary + images * first * attack.lower_steps + direction
    warmup = lives * attack.warmup_steps * (adversary + images * first)
    return _unit(config, attack.surrogate) * (attack.upper_steps * step + warmup)


def _direction(attack: AttackConfig, images: int) -> float:
    """Forward passes for what the poison descends, of an attack of second order with minibatches of so many images."""
    first, steps = 1 + BACKWARD, attack.linear_steps
    upper = attack.upper_batch * attack.upper_noise * first
    poison = images * attack.poison_batch / (attack.clean_batch + attack.poison_batch)
    cross_term = poison * (first + HESSIAN_VECTOR)
    solver = attack.linear_solver if attack.traits.bilevel else "one-step"
    if solver == "one-step":
        return upper + cross_term
    if solver == "unrolled":
        return upper + steps * cross_term
    if solver == "penalty":
        return (steps + 1) * (upper + cross_term)
    if solver == "adam":  # a new system for each linear step, and two products
        linear = steps * (upper + images * (first + 2 * HESSIAN_VECTOR)) + images * HESSIAN_VECTOR
    else:
        more = 4 if solver == "neumann" else 1  # products beside those of the steps
        each = 2 if solver == "adam-shared" else 1
        linear = upper + images * (first + (each * steps + more) * HESSIAN_VECTOR)
    return linear + cross_term


def work_of_training(config: Config, *, epochs: int | None = None) -> float:
    """One victim's training, or these epochs of it."""
    epochs = config.training.epochs + config.training.fine_tune_epochs if epochs is None else epochs
    images = epochs * config.data.train_size * config.procedure.passes
    together = TOGETHER if config.procedure.draws > 1 else 1.0
    return _unit(config, config.architecture) * images * (1 + BACKWARD) * together


def work_of_votes(config: Config, *, classes: int = CLASSES) -> float:
    """One victim's votes on images of so many classes."""
    settings = config.certification
    images = settings.target_images + (classes - 1) * settings.other_images
    return _unit(config, config.architecture) * images * (settings.n0 + settings.n) * VOTE


def workers_for(device: str) -> int:
    """One per CPU that this process may use; on a GPU as many as fill it with small kernels."""
    if device == "cuda":
        return MOST_WORKERS
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _container_cpus(), MOST_WORKERS))


def _container_cpus() -> int:
    """Whole CPUs that a Linux container's quota allows; without one, more than there are."""
    try:
        quota, period = CGROUP.read_text().split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no cgroup, or "max"
        return sys.maxsize


def estimate(config: Config, *, device: str, shape: Shape | None = None, classes: int = CLASSES) -> Estimate:
    """Wall seconds and peak memory of the whole run, nothing reused; shape (of an image), classes: of a folder."""
    work, workers = work_of(config, classes=classes), workers_for(device)
    seconds = work.total / units_per_second(device)
    if device == "cpu":  # a training is one worker's task; so is the attack, and half of the victims wait for it
        count = len(arms_of(config)) * config.victim_seeds
        alone = -(-count // workers) / count * work.train / _of_a_cpu() + work.certify / units_per_second(device)
        after = (work.train + work.certify) / 2 / units_per_second(device)
        seconds = max(seconds, alone, work.poison / _of_a_cpu() + after)
    seconds *= pixel_ratio(config, shape)
    return Estimate(STARTUP_SECONDS + seconds, memory_of(config, workers=workers, shape=shape))


def pixel_ratio(config: Config, shape: Shape | None) -> float:
    """How many times an image of a folder has the pixels that work is counted for; 1 of other data sets."""
    return 1.0 if shape is None or config.dataset in DATASETS else shape[1] * shape[2] / 784


def units_per_second(device: str) -> float:
    """Of all workers together: CPUs have one each, a GPU is shared by its own."""
    return UNITS_PER_SECOND_OF_A_GPU if device == "cuda" else _of_a_cpu() * workers_for(device)


@cache
def _of_a_cpu() -> float:
    """A worker's units a second; asks Linux what torch would say, and assumes bfloat16 where it says nothing."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return UNITS_PER_SECOND
    return UNITS_PER_SECOND if words & {"avx512_bf16", "amx_bf16", "bf16"} else UNITS_PER_SECOND_IN_FLOAT32


def memory_of(config: Config, *, workers: int, shape: Shape | None = None) -> float:
    """Peak bytes: data, noise that is fixed for ever, and what is differentiated at once."""
    known, training = DATASETS.get(config.dataset), config.data.train_size
    shape = known.shape if known else shape or DATASETS["cifar10"].shape  # what a folder's is taken for if not given
    images = known.training_images + known.test_images if known else training + config.data.validation_size
    image = 4 * math.prod(shape)
    data = COPIES * image * (images + training)
    batch = config.training.batch_size * config.procedure.loss_passes
    victim = FIRST_GRAPH * batch * _kept(config.architecture, shape) + _weights(config.architecture, shape)
    if config.procedure.name == "smoothadv-pacd":
        victim += image * training
    return BASE_MEMORY + data + max(workers * victim, _memory_of_attack(config, shape) + (workers - 1) * victim)


def _memory_of_attack(config: Config, shape: Shape) -> float:
    attack, (procedure, _) = config.attack, lower_level(config)
    if not attack.traits.surrogates:
        return 0.0
    lower = (attack.clean_batch + attack.poison_batch) * procedure.loss_passes
    graphs = FIRST_GRAPH * lower
    if attack.traits.derivatives == 2:
        graphs = SECOND_GRAPH * lower + FIRST_GRAPH * attack.upper_batch * attack.upper_noise
    fixed = config.data.train_size * procedure.draws if attack.fixed_lower_noise else 0
    kept = graphs * _kept(attack.surrogate, shape) + 4 * math.prod(shape) * fixed
    return kept + _weights(attack.surrogate, shape)


def _kept(architecture: str, shape: Shape) -> float:
    return KEPT[architecture] * shape[1] * shape[2] / 784


def _weights(architecture: str, shape: Shape) -> float:
    return 4 * WEIGHTS_HELD * DENSE.get(architecture, 0) * max(0, shape[1] * shape[2] - 784)


def _unit(config: Config, architecture: str) -> float:
    return RELATIVE_COST[architecture] * IMAGE_COST.get(config.dataset, 1.0)


@cache
def expected_device() -> str:
    """ "cuda" where an NVIDIA GPU and a torch that can use it seem to be here, else "cpu"; asks no torch."""
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    try:
        able = not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        able = False
    return "cuda" if has_gpu and able and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") else "cpu"
