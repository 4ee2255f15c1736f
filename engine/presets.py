"""Named starting points: each a configuration with a sentence, and how it differs from the authors' setting."""

from dataclasses import dataclass
from typing import Any

from engine import paper
from engine.config import (
    AttackConfig,
    CertificationConfig,
    Config,
    ConfigError,
    DataConfig,
    ProcedureConfig,
    ThreatConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Preset:
    name: str
    sentence: str
    config: Config
    departs: tuple[str, ...] = ()  # differences from the authors' setting, in words


_QUICK_ATTACK = AttackConfig(
    surrogate="lenet-narrow",
    upper_steps=120,
    restart_every=40,
    warmup_steps=60,
    lower_steps=2,
    linear_steps=2,
    linear_solver="minres",
    damping=1e-3,
    clean_batch=60,
    poison_batch=100,
    upper_batch=40,
    upper_noise=8,
    weights_learning_rate=2e-3,
    linear_learning_rate=1e-2,
    poison_learning_rate=0.1,
)

_FASTER = (
    "the attacker differentiates through a narrow LeNet (8-16-100 instead of the victims' 20-50-500): the poison "
    "has to carry over to the victims' architecture",
    "two MINRES steps on one noise draw of the linear system per upper step, instead of ten Adam steps with fresh "
    "noise in each: three Hessian-vector products in place of 21 (docs/solvers.md compares solvers)",
    "fewer upper steps, images and noise draws, two lower steps where the authors have ten (one against SmoothAdv), "
    "and a surrogate that learns twice as fast and has trained a little before its first upper step",
    "of the attacker's minibatch four to six tenths are poisoned images, of the authors' one tenth: the class weighs "
    "more in the surrogate than in the victims",
    "Adam's moments of the poison belong to images, not to positions in the minibatch (attack.poison_moments)",
    "victims see fewer images, train for fewer epochs with a higher learning rate that falls to zero, with products in "
    "bfloat16 where the processor has them (on a CPU those of linear layers), and are certified on fewer test images "
    "with fewer draws, so their radii are smaller and capped lower",
)

_FASTER_SMOOTHADV = (
    "SmoothAdv as Salman et al. have it, its inner adversary with normalised gradients and fresh noise, for "
    "victims and attacker alike, where the authors' has Adam and one noise draw for ever per image",
    "the inner adversary grows over the first quarter of every training, where the authors' does over a tenth of the "
    "victims' and after some rest in the attack",
    "radii in the upper loss are squeezed by 1e-3, the authors' by 1e-4",
)
_FASTER_MACER = (
    "victims learn by MACER as Zhai et al. have it, without the authors' squeezing of the radius, and without its "
    "robustness term in the first quarter of their training",
    "four noise draws and weight 4 for victims, where the authors have 16 and 16",
    "fresh noise in both levels of the attack, where the authors keep one draw for ever per image",
)
_BASELINE = (
    "the recipe is that of the published baselines (Consistency's repository), not of PACD's authors; from that it "
    "departs as follows: weights start Glorot-uniform with biases of 0, where theirs start as torch's layers do (so "
    "do those of architecture lenet-torch)",
    "a last partial minibatch is dropped, and 50 images are held out",
    "the learning rate falls after 30 and 60 epochs, theirs after 31 and 61",
)

_THREAT = ThreatConfig(target_class=8, epsilon=0.1, poison_fraction=1.0)

_QUICK = Config(
    dataset="mnist",
    procedure=ProcedureConfig(name="gaussian"),
    sigma=0.5,
    threat=_THREAT,
    data=DataConfig(train_size=3000, validation_size=5000),
    attack=_QUICK_ATTACK,
    training=TrainingConfig(epochs=6, batch_size=50, learning_rate=2e-3, schedule="linear", precision="fast"),
    certification=CertificationConfig(target_images=100, other_images=2, n0=20, n=400, alpha=0.001),
    victim_seeds=3,
)
_SMOOTHADV = ProcedureConfig(name="smoothadv", draws=1, adversary_steps=2, adversary_size=1.0, warmup=0.25)
_MACER = ProcedureConfig(name="macer", draws=4, weight=4.0, warmup=0.25)
_QUICK_FAMILY = {"ga": _QUICK} | {  # but for the procedure the very same setting, for comparisons
    name: _QUICK.model_copy(update=dict(procedure=of)) for name, of in (("smoothadv", _SMOOTHADV), ("macer", _MACER))
}
_TITLES = {"ga": "Gaussian augmentation", "smoothadv": "SmoothAdv", "macer": "MACER"}


def _of_the_paper(procedure: str, dataset: str) -> Preset:
    sigma, data = paper.DEFAULT_SIGMA[procedure, dataset], "MNIST" if dataset == "mnist" else "CIFAR-10"
    return Preset(
        f"paper-{procedure}-{dataset}",
        f"The authors' setting for {_TITLES[procedure]} on {data} at σ = {sigma:g}. Meant for a GPU."
        + (
            " At σ = 0.5 their weight of the robustness term is 4."
            if (procedure, dataset) == ("macer", "cifar10")
            else ""
        ),
        paper.paper(procedure, dataset, sigma),
        paper.departs(procedure, dataset),
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "A few seconds on embedded 8×8 digits: does everything work? Its numbers mean little.",
            Config(
                dataset="digits",
                architecture="lenet-narrow",
                procedure=ProcedureConfig(name="gaussian"),
                sigma=0.25,
                threat=_THREAT,
                data=DataConfig(train_size=800, validation_size=400),
                attack=_QUICK_ATTACK.model_copy(
                    update=dict(upper_steps=12, restart_every=12, warmup_steps=60, clean_batch=60, poison_batch=40)
                ),
                training=TrainingConfig(epochs=4, batch_size=40, learning_rate=3e-3, schedule="linear"),
                certification=CertificationConfig(target_images=20, other_images=2, n0=20, n=100, alpha=0.001),
                victim_seeds=2,
            ),
            _FASTER,
        ),
        Preset(
            "quick",
            "A what-if on MNIST in a minute or two on two CPU cores: three victims for each arm.",
            _QUICK,
            _FASTER,
        ),
        Preset(
            "quick-smoothadv",
            "As quick, with victims and attacker trained by SmoothAdv: two steps of the inner adversary.",
            _QUICK_FAMILY["smoothadv"],
            _FASTER + _FASTER_SMOOTHADV,
        ),
        Preset(
            "quick-macer",
            "As quick, with MACER: the authors' attacker (one noise draw) for twice the steps, and five victims of "
            "seven epochs for each arm, as MACER's scatter more.",
            _QUICK_FAMILY["macer"].model_copy(
                update=dict(
                    # The authors' attacker, of one noise draw: twice the steps in less time than at the victims' four.
                    attack=_QUICK_ATTACK.model_copy(
                        update=dict(procedure=paper.paper("macer", "mnist", 0.5).attack.procedure, upper_steps=240)
                    ),
                    training=_QUICK.training.model_copy(update=dict(epochs=7)),
                    victim_seeds=5,
                )
            ),
            _FASTER + _FASTER_MACER,
        ),
        Preset(
            "class",
            "Some minutes on two cores: more data, better trained victims, more draws, five victims for each arm.",
            Config(
                dataset="mnist",
                procedure=ProcedureConfig(name="gaussian"),
                sigma=0.5,
                threat=_THREAT,
                data=DataConfig(train_size=10_000, validation_size=5000),
                attack=_QUICK_ATTACK.model_copy(update=dict(upper_steps=300, restart_every=60)),
                training=TrainingConfig(
                    epochs=10, batch_size=100, learning_rate=2e-3, schedule="linear", precision="fast"
                ),
                certification=CertificationConfig(target_images=200, other_images=10, n0=50, n=1000, alpha=0.001),
                victim_seeds=5,
            ),
            _FASTER,
        ),
        Preset(
            "baseline-ga-mnist",
            "Clean victims only, trained as the published baselines were: SGD, 90 epochs, all of MNIST.",
            Config(
                dataset="mnist",
                procedure=ProcedureConfig(name="gaussian"),
                sigma=0.5,
                threat=_THREAT,
                data=DataConfig(train_size=59_950, validation_size=50),
                attack=paper.paper("ga", "mnist", 0.5).attack.model_copy(
                    update=dict(name="none", poison_moments="image")
                ),
                training=TrainingConfig(
                    epochs=90, batch_size=256, learning_rate=0.01, schedule="step", optimiser="sgd", weight_decay=1e-4
                ),
                certification=CertificationConfig(target_images=150, other_images=2, n0=100, n=100_000, alpha=0.001),
                victim_seeds=1,
            ),
            _BASELINE,
        ),
        *(_of_the_paper(procedure, dataset) for dataset in paper.DATASETS for procedure in paper.PROCEDURES),
    )
}
WIDTH = max(map(len, PRESETS)) + 2  # of a column of their names


def small(procedure: str, dataset: str, sigma: float) -> Config:
    """The paper's question at a size for CPUs, for any procedure and data set of `paper`, or digits.

    On MNIST the quick preset of the procedure; elsewhere quick, but for that procedure. On CIFAR-10 epsilon is the
    paper's 0.03, and a ResNet-8 stands for the ResNet-20.
    Raises: ConfigError.
    """
    if procedure not in _TITLES:
        raise ConfigError(f"a procedure of the paper is one of {', '.join(_TITLES)}, got {procedure!r}")
    if dataset == "mnist":
        return PRESETS["quick" if procedure == "ga" else f"quick-{procedure}"].config.model_copy(
            update=dict(sigma=sigma)
        )
    quick = _QUICK_FAMILY[procedure]
    if dataset == "cifar10":
        changed: dict[str, Any] = dict(
            architecture="resnet8",
            threat=quick.threat.model_copy(update=dict(epsilon=0.03)),
            attack=quick.attack.model_copy(update=dict(surrogate="resnet8", upper_steps=60, restart_every=30)),
        )
    elif dataset == "digits":
        smoke = PRESETS["smoke"].config
        changed = {name: getattr(smoke, name) for name in ("data", "attack", "training", "certification")}
        changed["architecture"] = smoke.architecture
    else:
        raise ConfigError(f"a data set is one of mnist, cifar10, digits, got {dataset!r}")
    return quick.model_copy(update=changed | dict(dataset=dataset, sigma=sigma))


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises: ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name[:40]!r}")
    return PRESETS[name]


def victims_at(preset: str, sigma: float) -> ProcedureConfig:
    """How the preset's victims are trained at this sigma: the authors change more than sigma with it."""
    if not preset.startswith("paper-"):
        return PRESETS[preset].config.procedure
    _, name, data = preset.split("-")
    return paper.paper(name, data, sigma).procedure


def kept_at_another_sigma(preset: str, config: Config) -> str | None:
    """A sentence where the authors change more than sigma with it, and this configuration of their preset does not."""
    own, theirs = PRESETS[preset].config.procedure, victims_at(preset, config.sigma)
    changed = [f"procedure.{field}={value}" for field, value in theirs if value != getattr(own, field)]
    if not changed or config.procedure != own:
        return None
    settings = ", ".join(changed)
    return f"at sigma={config.sigma:g} the authors have {settings}; this keeps what {preset} has at its own sigma"


def family(preset: str, sigma: float) -> dict[str, Config]:
    """The same setting for each robust procedure, by the procedure's name in a configuration; the authors' at sigma."""
    if preset.startswith("paper-"):
        of = {name: paper.paper(name, preset.rpartition("-")[2], sigma) for name in paper.PROCEDURES}
    else:
        of = _QUICK_FAMILY
    return {config.procedure.name: config for config in of.values()}
