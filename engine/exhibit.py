"""Small copies of finished runs, for the gallery that comes with the project."""

import shutil
from pathlib import Path

import numpy as np

from engine.records import Run, write_atomically, write_tensors


def small_copy(run: Run, folder: Path, *, weights: bool) -> Run:
    """A small copy of a finished run, without votes, its changes to images in whole multiples of max |delta| / 127.

    Args:
        weights: whether the first clean and the first poisoned victim come along, as float16; and all recorded steps
            of the attack, not only half of them.
    """
    copy = Run(folder / run.id)
    copy.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(copy.directory / "config.json", run.config.canonical())
    content = {name: run.read_json(f"{name}.json") or {} for name in ("request", "env", "status", "report")}
    content["request"]["data_root"] = None
    content["report"].pop("directory", None)  # another path on this machine, in reports of older runs
    for name, value in content.items():
        copy.write_json(f"{name}.json", value)
    for name in ("metrics.jsonl", "certificates.parquet"):
        if (run.directory / name).exists():  # a run that reused every stage has no metrics
            shutil.copyfile(run.directory / name, copy.directory / name)
    for name in ("poison", "evolution"):
        tensors = run.tensors(name)
        if tensors is not None:
            if name == "evolution" and not weights:
                tensors |= {part: tensors[part][1::2] for part in ("steps", "delta")}
            write_tensors(copy.directory / f"{name}.safetensors", **tensors | _in_units(tensors["delta"]))
    if weights:
        (copy.directory / "victims").mkdir(exist_ok=True)
        for victim in ("victims/clean-0", "victims/poisoned-0"):
            if (tensors := run.tensors(victim)) is not None:
                small = {name: t.astype(np.float16) if t.dtype == np.float32 else t for name, t in tensors.items()}
                write_tensors(copy.directory / f"{victim}.safetensors", **small)
    return copy


def _in_units(delta: np.ndarray) -> dict[str, np.ndarray]:
    unit = np.float32(np.abs(delta).max(initial=0) / 127 or 1)
    return {"delta": np.rint(delta / unit).astype(np.int8), "unit": unit.reshape(1)}
