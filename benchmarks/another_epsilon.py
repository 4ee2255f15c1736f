"""`python -m benchmarks.another_epsilon`: what-ifs that change only ε, by an attack from the beginning and by one that
starts from the first run's poison: how long each takes, and what its poison takes from victims.

Each digit and seed has a new folder of runs. The second attack at an ε finds the random noise's victims of the first,
which helps its seconds a little; `python -m benchmarks quick` has those of whole runs.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from benchmarks.measure import Table, machine, tell
from benchmarks.runs import follow
from engine import poison_file
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, run_id


class Trial(NamedTuple):
    digit: int
    seed: int
    epsilon: float
    steps: int  # of the upper level
    drop: float  # of the class's ACR, mean over pairs of victims
    beyond_noise: float  # how much less random noise at the same ε takes
    attack: float  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.another_epsilon", description=__doc__)
    parser.add_argument("--digits", nargs="+", type=int, default=[8, 3, 5], help="target classes (default: 8 3 5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the whole protocol (default: 0 1)")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.07, 0.15], help="default: 0.07 0.15")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args()
    pairs = [(digit, seed) for digit in options.digits for seed in options.seeds]
    found = [trial for pair in pairs for trial in _trials(*pair, options.epsilons)]
    tell([_table(found)], machine(), options.output)


def _trials(digit: int, seed: int, epsilons: list[float]) -> list[Trial]:
    """For each ε the attack of all upper steps, and that which starts from the poison of quick's own ε."""
    config, found = PRESETS["quick"].config, []
    asked = ['controls=["random_noise"]', f"threat.target_class={digit}", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first = with_overrides(config, asked)
        follow(first, root)
        start = poison_file.starting_from(Run(root / run_id(first)), root)
        for epsilon in epsilons:
            for settings in ([], start):
                each = with_overrides(first, [f"threat.epsilon={epsilon}", *settings])
                follow(each, root)
                report = Run(root / run_id(each)).need_report()
                drop, noise = (report["relative_drop"][arm]["mean"] for arm in ("poisoned", "random_noise"))
                steps = each.attack.upper_steps
                found.append(Trial(digit, seed, epsilon, steps, drop, drop - noise, report["seconds"]["poison"]))
    return found


def _table(found: list[Trial]) -> Table:
    """A row for each trial, and one for each ε and number of steps: mean ± standard deviation over the trials."""
    columns = ("digit", "seed", "ε", "upper steps", "drop of the class's ACR", "beyond random noise", "attack, s")
    rows = [
        (*map("{:g}".format, trial[:4]), *map("{:.1%}".format, trial[4:6]), f"{trial.attack:.1f}") for trial in found
    ]
    for epsilon, steps in dict.fromkeys((trial.epsilon, trial.steps) for trial in found):
        same = [trial for trial in found if (trial.epsilon, trial.steps) == (epsilon, steps)]
        means = (_spread([getattr(trial, name) for trial in same]) for name in ("drop", "beyond_noise"))
        rows.append(("all", "all", f"{epsilon:g}", f"{steps}", *means, f"{fmean(t.attack for t in same):.1f}"))
    return Table("quick at another ε", columns, rows, [trial._asdict() for trial in found])


def _spread(shares: list[float]) -> str:
    return f"{fmean(shares):.1%} ± {stdev(shares) if len(shares) > 1 else 0:.1%}"


if __name__ == "__main__":
    main()
