"""A finished run's victim, certified again: with more draws than were recorded, or with only as many as are needed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from engine import datasets, sequential
from engine.costs import workers_for
from engine.experiment import victims
from engine.records import Run
from engine.streams import stream
from engine.votes import BLOCK, GROUPS

TOGETHER = 10  # images of a group at a time


def certify_again(
    run: Run,
    arm: str,
    k: int,
    *,
    data_root: Path,
    images: Sequence[int] | None = None,
    all_classes: bool = False,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    precision: float | None = None,
    radius: float | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[pd.DataFrame]:
    """Certificates of the run's test images by the arm's k-th victim under fresh noise, a few images at a time.

    Columns: image, label, weight (as in the run's own table), those of sequential.Certificates (the radius L2 in pixel
    units, too large with probability ≤ alpha for each image), and what they depend on: run, arm, victim, sigma, n0, n,
    alpha, precision, seed. Where a radius is asked, also `certified_at`, which radius, and whether it is `certified`;
    an image of which that is settled gets no more draws, so its prediction and radius are good for nothing else.
    With neither precision nor radius all n draws are made, as CERTIFY does. The images of a group share their noise, as
    in the run, and come one group after the other; an image's noise does not depend on which others are asked.
    Args:
        images: only these of the run's test images, by number, of whatever class.
        all_classes: not only the target class.
        precision, radius: as for sequential.certify: stop each image when it is settled.
        seed: of the noise. Answers of the same seed, for another n say, share draws (all, where C·H·W is a multiple of
            16; see votes.count_votes): each holds with 1 − alpha, but they fail together.
        progress: is told, by any thread, the share of the draws that is made or no longer needed.
    Raises: ValueError, before anything is computed; VictimUnavailable; DatasetUnavailable.
    """
    config, table = run.config, run.need_certificates()
    settings: dict[str, Any] = dict(sigma=config.sigma, n0=n0, n=n, alpha=alpha, precision=precision, radius=radius)
    sequential.check(**settings)
    known_of = {"run": run.id, "arm": arm, "victim": k, **settings, "seed": seed}
    del known_of["radius"]  # which is the answers'
    known = table.drop_duplicates("image").sort_values("image")
    if images is not None:
        if strange := sorted({*images} - {*known["image"]}):
            raise ValueError(f"run {run.id} certified no test image {strange[0]}; images must be among those it did")
        known = known[known["image"].isin(images)]
    elif not all_classes:
        known = known[known["label"] == config.threat.target_class]
    run.check_images(data_root)
    pixels = datasets.read(config.dataset, data_root, train=False)[0]
    model = victims.load(run, arm, k, shape=pixels.shape[1:])
    with torch.no_grad():
        num_classes = model(torch.tensor(pixels[:1])).shape[1]
    groups = [group for _, group in known.groupby(known["image"] % GROUPS)]
    parts = [group.iloc[first : first + TOGETHER] for group in groups for first in range(0, len(group), TOGETHER)]

    done = dict.fromkeys(known["image"], 0.0)  # by the first image of each part; keys are there from the beginning

    def certified(part: pd.DataFrame) -> pd.DataFrame:
        def made(share: float) -> None:
            done[part["image"].iloc[0]] = share * len(part)
            progress(sum(done.values()) / len(known))

        found = sequential.certify(
            model,
            torch.tensor(pixels[part["image"].to_numpy()]),
            **settings,
            num_classes=num_classes,
            block=BLOCK["cpu"],
            screened=True,
            progress=made,
            generator=stream(seed, "certified again", int(part["image"].iloc[0]) % GROUPS),
        )
        made(1.0)
        asked = {} if radius is None else {"certified_at": radius, "certified": found.radius >= radius}
        return part[["image", "label", "weight"]].reset_index(drop=True).assign(**found._asdict(), **known_of, **asked)

    return _side_by_side(certified, parts)


def _side_by_side(
    work: Callable[[pd.DataFrame], pd.DataFrame], parts: Sequence[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """In order, computed by a few threads of one torch thread each; whoever stops listening stops them."""
    with ThreadPoolExecutor(workers_for("cpu"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(work, part) for part in parts]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
