"""The report of a run, made from its certificate table and poison alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine import metrics
from engine.certification import ABSTAIN, radius_cap
from engine.choices import ARMS
from engine.config import Config
from engine.datasets import class_in_words
from engine.overrides import with_overrides
from engine.records import Run
from engine.spread import Summary

SCOPES = ("target", "all")


def certificate_rows(arm: str, victim: int, votes: dict[str, np.ndarray], *, config: Config) -> pd.DataFrame:
    """A victim's certificate table from its votes: image, label, weight [N], selection and estimation [N, K]."""
    of_whom = {"arm": arm, "victim": victim, **{name: votes[name] for name in ("image", "label", "weight")}}
    counts, alpha = (votes["selection"], votes["estimation"]), config.certification.alpha
    return pd.DataFrame(of_whom).join(metrics.certificates(*counts, sigma=config.sigma, alpha=alpha))


def of_scope(table: pd.DataFrame, scope: str, config: Config) -> pd.DataFrame:
    """The rows of the target class ("target"), or all."""
    return table[table["label"] == config.threat.target_class] if scope == "target" else table


def per_victim(table: pd.DataFrame, value: Any) -> pd.DataFrame:
    """value(table of one victim) as a frame: a row per victim, a column per arm, nan where a victim is missing."""
    series = {key: value(part) for key, part in table.groupby(["arm", "victim"], sort=True)}
    frame = pd.Series(series, dtype=float).unstack(level=0)
    return frame.reindex(columns=[arm for arm in ARMS if arm in frame.columns])


def summary(values: pd.Series) -> Summary:
    """Of one number per victim, indexed by the victim's own; nan, where there is none, is left out."""
    there = values[np.isfinite(values)]
    finite, victims = [float(value) for value in there], [int(k) for k in there.index]
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "sd": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        "seeds": finite,
        **({} if victims == list(range(len(victims))) else {"victims": victims}),
    }


def estimates(table: pd.DataFrame, scope: str, config: Config) -> pd.DataFrame:
    """ACR (L2, pixel units), its drop, accuracy and abstention of each arm, means over victims; a row per arm.

    Columns: acr, acr_low, acr_high, accuracy, accuracy_low, accuracy_high, abstains; drop, drop_low, drop_high (nan for
    clean victims, and where there is none to compare with). The intervals are approximate 95 % ones over test images,
    taken as independent: normal for ACR and drop, Wilson's for the share.
    """
    part, lines = of_scope(table, scope, config), {}
    part = part.assign(
        value=metrics.correct_radius(part),
        correct=metrics.is_correct(part).astype(float),
        abstained=(part["prediction"] == ABSTAIN).astype(float),
    )
    for arm in ARMS:
        rows = part[part["arm"] == arm]
        if rows.empty:
            continue
        images = rows.groupby("image")[["value", "correct", "abstained", "weight"]].mean()
        acr = metrics.interval_of_mean(images["value"], images["weight"])
        share = float(np.average(images["correct"], weights=images["weight"]))
        accuracy = metrics.interval_of_share(share, metrics.effective_count(images["weight"]))
        drop = _drop_over_images(part, arm)
        lines[arm] = {
            "acr": acr.value,
            "acr_low": acr.low,
            "acr_high": acr.high,
            "accuracy": share,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "abstains": float(np.average(images["abstained"], weights=images["weight"])),
            "drop": drop.value,
            "drop_low": drop.low,
            "drop_high": drop.high,
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _drop_over_images(part: pd.DataFrame, arm: str) -> metrics.Estimate:
    """Of the arm's ACR against clean victims', of all pairs of victims that are there."""
    radii = part.pivot_table(index="victim", columns=["arm", "image"], values="value")
    if arm == "clean" or "clean" not in radii:
        return metrics.Estimate(np.nan, np.nan, np.nan)
    clean, other = radii["clean"], radii[arm]
    pairs = (clean.notna().all(axis=1) & other.notna().all(axis=1)).to_numpy()
    weights = part.groupby("image")["weight"].first().reindex(clean.columns)
    try:
        return metrics.interval_of_drop(clean[pairs].to_numpy(), other[pairs].to_numpy(), weights.to_numpy())
    except ValueError:
        return metrics.Estimate(np.nan, np.nan, np.nan)


def drops(table: pd.DataFrame, config: Config) -> dict[str, dict[str, Any]]:
    """Relative drop of the target class's ACR against the clean victim of the same seed, for each other arm present."""
    acr = per_victim(of_scope(table, "target", config), metrics.average_certified_radius)
    if "clean" not in acr:
        return {}
    return {
        arm: summary(pd.Series(metrics.relative_drop(acr["clean"].to_numpy(), acr[arm].to_numpy()), index=acr.index))
        for arm in acr.columns
        if arm != "clean"
    }


READING = {  # what the numbers of a report are, for whoever has nothing but its file
    "average_certified_radius": "L2, pixel units of [0, 1]; a wrong or abstaining answer counts as 0",
    "relative_drop": "share of the clean victims' ACR of the target class that an arm's lack; below 0 they have more",
    "mean, sd": "over victims; sd is the sample standard deviation",
    "seeds": "the value of each victim seed, 0, 1, 2 … or those named by victims",
    "config.seed": "of the whole protocol; config.victim_seeds says how many victims each arm has",
    "config.certification.alpha": "for each image, the probability that its radius is too large is at most this",
}


def build_report(
    table: pd.DataFrame, config: Config, *, class_names: Sequence[str] = (), **facts: Any
) -> dict[str, Any]:
    """The content of report.json; facts are what a table does not know (id, seconds, perturbation …)."""
    arms: dict[str, Any] = {}
    for arm, rows in table.groupby("arm", sort=False):
        arms[str(arm)] = {
            name: {scope: summary(per_victim(of_scope(rows, scope, config), value)[arm]) for scope in SCOPES}
            for name, value in (
                ("average_certified_radius", metrics.average_certified_radius),
                ("accuracy", metrics.accuracy),
                ("abstention_rate", metrics.abstention_rate),
            )
        }
    settings = config.certification
    return {
        **facts,
        "reading": READING,
        "config": config.model_dump(mode="json"),
        "class_names": list(class_names),
        "target_name": class_in_words(config.dataset, config.threat.target_class, class_names),
        "arms": {arm: arms[arm] for arm in ARMS if arm in arms},
        "relative_drop": drops(table, config),
        "radius_cap": radius_cap(n=settings.n, sigma=config.sigma, alpha=settings.alpha),
        "certified_images": {scope: int(of_scope(table, scope, config)["image"].nunique()) for scope in SCOPES},
    }


def with_draws(table: pd.DataFrame, config: Config, n: int) -> tuple[pd.DataFrame, Config]:
    """Both as if only n of the recorded estimation draws had been made, so that runs may be compared at equal n.

    Raises: ConfigError, ValueError where n is too small for alpha, or more than were recorded.
    """
    fewer = with_overrides(config, [f"certification.n={n}"])
    return metrics.recertify(table, sigma=config.sigma, alpha=config.certification.alpha, n=n), fewer


def certificates_csv(table: pd.DataFrame, run: Run) -> str:
    """A run's certificate table as CSV, with what is needed to read it alone: run, seed, sigma, alpha, correct_radius.

    Its other columns: metrics.py. A wrong answer has a radius, too; the ACR is the mean of correct_radius. Votes for
    each class are numbers with spaces between.
    """
    votes = {
        name: [" ".join(map(str, each)) for each in table[name]]
        for name in ("selection_votes", "estimation_votes")
        if name in table
    }
    config, radii = run.config, metrics.correct_radius(table)
    known = dict(run=run.id, seed=config.seed, sigma=config.sigma, alpha=config.certification.alpha)
    return table.assign(**votes, correct_radius=radii, **known).to_csv(index=False)


def losses(table: pd.DataFrame) -> pd.DataFrame:
    """What poisoning cost each test image: a row per image that clean and poisoned victims certified, by its number.

    Of these two arms only victims of the same numbers count: a run that was stopped may have more of one.

    Returns: label; the mean radius over victims of each arm, a column each (0 where wrong or abstaining); `lost`, clean
        minus poisoned; `certified`, whether some clean victim certifies the right class; of the poisoned victims,
        `lost_with`, how many do not, `victims`, how many there are, and `flipped`, how many answer another class;
        `flipped_to`, the other class that most of them answer (the lower one of two), or ABSTAIN for none.
    """
    paired = set.intersection(*(set(table.loc[table["arm"] == arm, "victim"]) for arm in ("clean", "poisoned")))
    table = table[table["victim"].isin(paired) | ~table["arm"].isin(["clean", "poisoned"])]
    values = table.assign(value=metrics.correct_radius(table))
    means = values.pivot_table(index="image", columns="arm", values="value", aggfunc="mean")
    means = means[[arm for arm in ARMS if arm in means.columns]]
    if not {"clean", "poisoned"} <= set(means.columns):
        return pd.DataFrame()
    poisoned = values[values["arm"] == "poisoned"]
    wrong = poisoned[(poisoned["prediction"] != poisoned["label"]) & (poisoned["prediction"] != ABSTAIN)]
    lost = poisoned["value"].eq(0).groupby(poisoned["image"])
    found = means.assign(
        label=table.groupby("image")["label"].first(),
        lost=means["clean"] - means["poisoned"],
        certified=means["clean"] > 0,
        lost_with=lost.sum(),
        victims=lost.size(),
        flipped=wrong.groupby("image").size(),
        flipped_to=wrong.groupby("image")["prediction"].agg(lambda answers: answers.mode().iloc[0]),
    ).dropna(subset=["lost"])
    whole = {"label": int, "lost_with": int, "victims": int, "flipped": int, "flipped_to": int}
    return found.fillna({"flipped": 0, "flipped_to": ABSTAIN}).astype(whole)
