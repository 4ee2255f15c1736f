"""What is compared: the engine's way of working with plain code, and with the peer where it does the same work.

The engine's side is one worker thread for each core; the others have torch's default threads.
"""

from dataclasses import replace
from typing import Any

from benchmarks.measure import Comparison, Side
from benchmarks.ours import N0
from engine.costs import workers_for
from engine.votes import has_bfloat16, has_matrices_of_bfloat16

CERTIFIED = dict(victims=2, images=16, n=1000)
LONG, SHORT = dict(victims=2, images=100, n=20_000), dict(victims=2, images=16, n=5000)  # as for a paper, and less
PAPER = 100_000  # draws of each image, for which those of LONG and SHORT stand
TRAINED = {"gaussian": 3000, "smoothadv": 1000, "macer": 400}  # images, in batches of 200
NINE = dict(victims=9, epochs=2, images=20, n=400)  # three arms of three seeds; quick has 6 epochs and 118 images
TRAINERS = {
    "gaussian": "ART's Gaussian trainer",
    "smoothadv": "ART's SmoothAdv trainer, other work: its attack is in L∞",
    "macer": "ART's MACER trainer",
}
# The engine's products, in training and in votes; the attack's are float32's.
TRAINED_IN = "bfloat16" if has_bfloat16() else "float32"
VOTED_IN = "bfloat16" if has_matrices_of_bfloat16() else "float32"


def certification() -> list[Comparison]:
    what = "{victims} victims, {images} images each, n = {n}".format(**CERTIFIED)
    engine = Side("engine", "tasks.engine_certification", CERTIFIED, "engine", precision=VOTED_IN)
    plain = _plain("Cohen's loop, batch 400", "tasks.plain_certification", CERTIFIED)
    peers = [
        Side(label, "tasks.peer_certification", CERTIFIED | dict(batch_size=size))
        for label, size in (("ART's certify, batch 400", 400), ("ART's certify, its own batch of 32", 32))
    ]
    return [
        Comparison(what, engine, (*plain, *peers)),
        Comparison(f"{what}, beside a busy process", engine, plain[:1], busy=1),
        Comparison(
            f"{LONG['victims']} victims, {LONG['images']} images each, n = {PAPER}; scaled: the engine from "
            f"n = {LONG['n']}, others from {SHORT['images']} images, n = {SHORT['n']}",
            replace(engine, settings=LONG, part=_share(LONG)),
            (
                replace(plain[0], settings=SHORT, part=_share(SHORT)),
                replace(peers[0], settings=SHORT | dict(batch_size=400), part=_share(SHORT)),
            ),
        ),
    ]


def training() -> list[Comparison]:
    found = []
    for procedure, images in TRAINED.items():
        settings = dict(procedure=procedure, victims=workers_for("cpu"), images=images, batch_size=200)
        what = f"{procedure}: an epoch of {images} images for each of {settings['victims']} victims, batch 200"
        engine = Side("engine", "tasks.engine_training", settings, "engine", precision=TRAINED_IN)
        plain = _plain("plain loop", "tasks.plain_training", settings)
        found.append(Comparison(what, engine, (*plain, Side(TRAINERS[procedure], "tasks.peer_training", settings))))
        if procedure == "gaussian":
            found.append(Comparison(f"{what}, beside a busy process", engine, plain[:1], busy=1))
    return found


def attack() -> list[Comparison]:
    found = []
    for preset, sizes, steps in (("paper-ga-mnist", "the authors'", 10), ("quick", "quick's", 3)):
        settings = dict(preset=preset, steps=steps)
        what = f"an upper step of {sizes} sizes, {steps} lower and {steps} linear steps"
        plain = (
            *_plain("plain ApproxGrad", "tasks.plain_upper_step", settings),
            Side("plain ApproxGrad, one thread", "tasks.plain_upper_step", settings | dict(threads=1)),
        )
        for solver, system in (
            ("adam", "drawn afresh for each"),
            ("adam-shared", "drawn once"),
            ("minres", "drawn once, MINRES"),
            ("one-step", "left out (one-step)"),
        ):
            engine = Side("engine", "tasks.engine_upper_step", settings | dict(solver=solver), "engine")
            found.append(Comparison(f"{what}; the engine's linear system {system}", engine, plain))
    return found


def quick() -> list[Comparison]:
    what = "{victims} victims, each {epochs} epochs of 3000 images, {images} certified at n = {n}".format(**NINE)
    engine = Side("engine", "tasks.engine_victims", NINE, "engine", precision=TRAINED_IN)
    half = NINE | dict(epochs=NINE["epochs"] // 2, images=NINE["images"] // 2)
    others = (
        replace(engine, label="engine, in threads", settings=NINE | dict(threads=True)),
        Side("torch.func: all as one program", "tasks.vectorised_victims", half, part=0.5),
    )
    return [Comparison(what, engine, (*_plain("one after the other", "tasks.plain_victims", NINE), *others))]


def _share(sizes: dict[str, int]) -> float:
    """Of the votes of LONG's images at PAPER's n."""
    return sizes["images"] * (sizes["n"] + N0) / (LONG["images"] * (PAPER + N0))


def _plain(label: str, task: str, settings: dict[str, Any]) -> tuple[Side, Side]:
    """Plain code as anyone would start it, and with the engine's malloc."""
    return Side(label, task, settings), Side(label, task, settings, "malloc")
