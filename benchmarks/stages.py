"""`python -m benchmarks.stages ID`: what a run of `quick` or `paper-ga-mnist` computed in each stage, and how fast.

Operations are those of plain code (benchmarks/plain.py), counted for one image or one upper step and multiplied; the
surrogates' warm-up is left out.
"""

import argparse

from benchmarks import tasks
from benchmarks.ceilings import lenet_flops
from benchmarks.child import flops
from benchmarks.measure import Table
from engine import records
from engine.config import AttackConfig, Config, ConfigError, arms_of
from engine.presets import PRESETS

COUNTED = ("quick", "paper-ga-mnist")  # presets whose attack and victims plain code has


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("id", help="a run id, or its first digits")
    parser.add_argument(
        "--rates", nargs="+", default=[], metavar="NAME=TFLOPS", help="of the machine, for shares: float32=50.7"
    )
    options = parser.parse_args()
    try:
        run = records.find(records.default_root(), options.id)
        rates = {name: float(rate) for name, _, rate in (text.partition("=") for text in options.rates)}
        print(stages(run, rates).markdown())
    except (records.RunNotFound, ConfigError, ValueError) as error:
        parser.error(str(error))


def stages(run: records.Run, rates: dict[str, float]) -> Table:
    """A row for each stage, and one for the whole. Raises: RunNotFound without a report; ConfigError, of others."""
    config, report = run.config, run.need_report()
    preset = next((name for name in COUNTED if _work(config) == _work(PRESETS[name].config)), None)
    if preset is None:
        raise ConfigError(
            f"stages are counted for the attack and the victims of {' or '.join(COUNTED)}, and {run.id} has others"
        )
    attack, settings, per_image = config.attack, config.certification, lenet_flops()
    victims = config.victim_seeds * len(arms_of(config))
    trained = victims * config.training.epochs * config.data.train_size
    votes = victims * report["certified_images"]["all"] * (settings.n0 + settings.n)
    step = tasks.plain_upper_step(preset=preset, steps=attack.linear_steps, threads=1)
    work = {
        f"attack: {attack.upper_steps} upper steps": (attack.upper_steps * flops(step), report["seconds"]["poison"]),
        f"training: {victims} victims": (
            trained * per_image["forward and gradient of the weights"],
            report["seconds"]["train"],
        ),
        f"votes: {votes:.2e}": (votes * per_image["forward"], report["seconds"]["certify"]),
    }
    whole = sum(amount for amount, _ in work.values())
    rows = []
    for name, (amount, seconds) in [*work.items(), ("all, by the run's clock", (whole, report["seconds"]["total"]))]:
        rate = amount / seconds / 1e12
        shares = (f"{rate / most:.1%}" for most in rates.values())
        rows.append((name, f"{amount:.2e}", f"{seconds:.0f}", f"{rate:.3g}", *shares))
    columns = ("stage", "operations", "s, summed over tasks", "TFLOP/s", *(f"of {name}" for name in rates))
    return Table(f"Stages of run {run.id}, {run.environment.get('device_name')}", columns, rows, [])


def _work(config: Config) -> tuple[object, str, AttackConfig]:
    """What the operations of one step, one image and one vote depend on."""
    return config.procedure, config.architecture, config.attack.model_copy(update={"poison_moments": "image"})


if __name__ == "__main__":
    main()
