"""What a running experiment writes down: progress, events, seconds, metrics, and the report so far."""

import time
from typing import Any

import numpy as np
import pandas as pd

from engine import perception
from engine.choices import ARMS, CONTROLS
from engine.config import arms_of
from engine.costs import work_of
from engine.datasets import describe
from engine.records import Run, write_atomically
from engine.report.numbers import build_report


class Recorder:
    """Writes a run's metrics, certificates and report as they come in; phase, detail and fraction say how far it is."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.phase, self.detail = "reading data", ""
        self.class_names: tuple[str, ...] = ()
        self.events: list[str] = []
        self.products = 0  # of the lower level's Hessian with a vector, in the attack, whenever it ran
        self._seconds = {"poison": 0.0, "train": 0.0, "certify": 0.0}  # of each task's own worker, whoever helps it
        self._reused: list[str] = []
        self._whole, self._done, self._saved = work_of(self.config).total, 0.0, 0.0
        self._tables: dict[tuple[int, int], pd.DataFrame] = {}
        self._perturbations: dict[str, dict[str, float | None]] = {}
        self._started = time.monotonic()

    def begin(self, class_names: tuple[str, ...]) -> None:
        """Takes up what is known once the data is read, before anything else is added."""
        self.class_names, self._whole = class_names, work_of(self.config, classes=len(class_names)).total

    @property
    def fraction(self) -> float:
        """Share of the run's work that is done, in [0, 1], in reused stages too: a resumed run begins where it was."""
        return _share(self._done + self._saved, self._whole)

    @property
    def fraction_of_rest(self) -> float:
        """The same of what had to be computed: how fast it goes shows there."""
        return _share(self._done, self._whole - self._saved)

    def add_work(self, units: float, detail: str | None = None) -> None:
        """Counts finished work; see costs."""
        self._done += units
        self.detail = detail or self.detail

    def add_seconds(self, kind: str, seconds: float) -> None:
        """Counts computing time of a kind of stage."""
        self._seconds[kind] += seconds

    def add_reused(self, stage: str | None, saved: float) -> None:
        """Notes a stage that came from an earlier run (None: from this one), and the work that this saves."""
        self._reused += [stage] if stage is not None and stage not in self._reused else []
        self._saved += saved

    def add_products(self, count: int) -> None:
        """Counts products of the lower level's Hessian with a vector."""
        self.products += count

    def add_event(self, event: str) -> None:
        """What a reader of the run should know, in words: what went wrong without ending it, say."""
        self.events.append(event)

    def add_metrics(self, kind: str, **values: Any) -> None:
        """A line of metrics.jsonl; numbers that are not finite become None."""
        finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
        self.run.append_metrics({"kind": kind, **finite})

    def add_perturbation(self, arm: str, x_clean: np.ndarray, delta: np.ndarray) -> None:
        """Measures how visible an arm's changes [P, C, H, W] are."""
        self._perturbations[arm] = perception.summarise(perception.measure(x_clean, delta))

    def add_certificates(self, arm: str, victim: int, table: pd.DataFrame) -> None:
        """Adds a victim's certificates to the record and brings the report up to date."""
        self._tables[ARMS.index(arm), victim] = table
        whole = pd.concat([self._tables[key] for key in sorted(self._tables)], ignore_index=True)
        write_atomically(self.run.directory / "certificates.parquet", whole.to_parquet())
        seconds = self._seconds | {"total": time.monotonic() - self._started}
        report = build_report(
            whole,
            self.config,
            class_names=self.class_names,
            run_id=self.run.id,
            preset=self.run.request.get("preset"),
            dataset=self.config.dataset,
            dataset_note=describe(self.config.dataset),
            complete=len(self._tables) == len(arms_of(self.config)) * self.config.victim_seeds,
            seconds={name: round(value, 2) for name, value in seconds.items()},
            reused=sorted(self._reused),
            events=self.events,
            products=self.products,
            perturbation=self._perturbations.get("poisoned"),
            perturbation_controls={arm: self._perturbations.get(arm) for arm in CONTROLS},
        )
        self.run.write_json("report.json", report)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 1.0
