"""A run as one HTML file that needs nothing else: what happened, figures, numbers, settings, limits. Works offline.

All text that somebody typed, and all that a file of the run says, is escaped. Its figures are the app's.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from engine import datasets
from engine.config import ConfigError
from engine.figures import attack, pictures, radii, style, training
from engine.records import Run, write_atomically
from engine.report import citations, commands, sentences, wording
from engine.report.sentences import percent, with_spread

SHOWN_IMAGES = 8
TILE = 84  # pixels that an image is brought near to
SIZES = {  # of engine/perception.py
    "linf_max": "L∞, largest",
    "l2_mean": "L2, mean",
    "psnr_mean": "PSNR (dB), mean",
    "ssim_mean": "SSIM, mean",
    "changed_share": "pixels changed at all",
}
CAPTIONS = {
    "acr_by_arm": "How much, on average, a test image can change (L2) before its certificate no longer covers it. "
    "Open: single victims; filled: mean ± standard deviation.",
    "certified_accuracy": "Height at r: the share of test images that are classified correctly, provably so under any "
    "change smaller than r (L2). Approximate: each certificate alone holds with probability at least 1 − α.",
    "radius_histogram": "Left of the line: wrong answers and abstentions, whose radius counts as 0.",
    "radius_before_after": "A point is a test image. Below the diagonal: it lost radius.",
    "perturbation_histogram": "All pixels (and colour channels) of all poison images. An attack that uses up its "
    "budget piles up at ±ε.",
    "attack_losses": "What the attack recorded at its steps.",
    "training_curves": "Each arm's own training images: those of poisoned victims are poisoned.",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #c9c9c9; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #15171c; --line: #4a4d55; --soft: #22252c; } }
@media print { :root { --ink: #000; --paper: #fff; --line: #999; --soft: #fff; }
  figure, table { break-inside: avoid; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; overflow-wrap: anywhere; }
th { white-space: nowrap; } thead th { background: var(--soft); white-space: normal; }
pre { background: var(--soft); padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figcaption, .small { font-size: .875rem; }
img { max-width: 100%; image-rendering: pixelated; } .lead { font-size: 1.2rem; }
.partial { border: 2px solid; padding: .5rem .8rem; font-weight: bold; }
.js-plotly-plot svg text { fill: var(--ink) !important; }
.js-plotly-plot .gridlayer path, .js-plotly-plot .zerolinelayer path { stroke: var(--line) !important; }
"""


def write(run: Run, *, data_root: Path) -> str:
    """The page's text; images of training data are in it where the data set is on this machine.

    Raises: RunNotFound where the run has no report yet.
    """
    report = run.need_report()
    notes, complete = run.notes, run.status().state == "done"
    title = notes["name"] or f"Run {run.id}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "" if complete else f"<p class='partial'>Partial result: this run is {escape(run.status().state)}.</p>",
        f"<p class='lead'>{marked(sentences.headline(report))}</p>",
        f"<p class='small'>{marked(sentences.numbers_line(report))} {escape(sentences.victims_line(report))}</p>",
        f"<p>{escape(notes['note'])}</p>" if notes["note"] else "",
        *_images(run, data_root),
        "<h2>Figures</h2>",
        *_figures(run),
        "<h2>Numbers</h2>",
        numbers(report),
        "<h2>Threat model</h2>",
        _list(sentences.threat_model(run.config, sentences.target_of(run))),
        "<h2>Settings</h2>",
        *_settings(run),
        "<h2>Where these numbers come from</h2>",
        _table(("what", "value"), (run.environment | {"seconds": report.get("seconds")}).items()),
        *(["<h3>What the run reported</h3>", _list(events)] if (events := report.get("events")) else []),
        "<h2>How to read it</h2>",
        _list(sentences.HOW_TO_READ),
        "<h2>Limits</h2>",
        f"<p>{marked(sentences.limits_line(run))}</p>",
        "<h2>Cite</h2>",
        _list(work.in_words() for work in citations.works(run.config)),
        f"<details><summary>BibTeX</summary><pre>{escape(citations.of_run(run))}</pre></details>",
    ]
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)} · PACD Lab</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>{''.join(parts)}</main>"
        "</body></html>\n"
    )


def save(run: Run, path: Path, *, data_root: Path) -> None:
    """Writes the page to a file. Raises: ConfigError unless its folder is there; RunNotFound as write."""
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"an HTML report is a file in an existing folder, got {path}")
    write_atomically(path, write(run, data_root=data_root))


def figures_of(run: Run) -> dict[str, go.Figure]:
    """The run's main figures by the name of the function that makes each, as far as the run has what they show."""
    report, table, config, target = run.report, run.certificates(), run.config, sentences.target_of(run)
    poison, steps = run.tensors("poison"), run.metrics("attack")
    made = {}
    if report is not None:
        made["acr_by_arm"] = radii.acr_by_arm(report)
    if table is not None:
        made["certified_accuracy"] = radii.certified_accuracy(table, config, target=target)
        made["radius_histogram"] = radii.radius_histogram(table, config, arms=["clean", "poisoned"], target=target)
        if {"clean", "poisoned"} <= set(table["arm"]):
            made["radius_before_after"] = radii.radius_before_after(table, config, target=target)
    if poison is not None and "labels" not in poison and len(poison["delta"]):
        made["perturbation_histogram"] = attack.perturbation_histogram(poison["delta"], config.threat.epsilon)
    if len(steps) > 1:
        made["attack_losses"] = attack.attack_losses(steps, config.attack.restart_every)
    if epochs := run.metrics("training"):
        made["training_curves"] = training.training_curves(epochs)
    return made


def _figures(run: Run) -> Iterable[str]:
    for name, figure in figures_of(run).items():
        figure.layout.template = "plotly"  # Streamlit's own has colours that only its pages know
        drawing = figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config=style.SAVE | {"responsive": True}
        )
        text = escape(style.alt(figure))
        yield f"<figure><div role='img' aria-label='{text}'>{drawing}</div><figcaption>{escape(CAPTIONS[name])}"
        yield f"<details><summary>In words</summary>{text}</details></figcaption></figure>"


def _images(run: Run, data_root: Path) -> Iterable[str]:
    """Clean, poisoned, δ of the first images."""
    poison, epsilon = run.tensors("poison"), run.config.threat.epsilon
    if poison is None or not len(poison["indices"]):
        return
    yield "<h2>Can you see it?</h2>"
    if "labels" in poison:
        yield "<p>This attack changed no pixel: it gave its images wrong labels.</p>"
        return
    delta, indices = poison["delta"][:SHOWN_IMAGES], poison["indices"][:SHOWN_IMAGES]
    try:
        run.check_images(data_root)
        clean = datasets.read_training_images(run.config.dataset, data_root, indices)
    except datasets.DatasetUnavailable:
        yield "<p>The training images are not on the machine that wrote this report: only changes are shown.</p>"
        rows = []
    else:
        rows = [("Clean", pictures.shown(clean)), ("Poisoned", pictures.shown(clean + delta))]
    scale = f"the scale ends at ±ε = ±{epsilon:g} (L∞, pixel units of [0, 1])"
    for name, tiles in [*rows, (f"Change δ, magnified: {scale}", pictures.shown_changes(delta, limit=epsilon or 1.0))]:
        picture = pictures.png(
            pictures.mosaic(tiles, columns=len(tiles)), scale=pictures.enlargement(tiles.shape[1], pixels=TILE)
        )
        address = f"data:image/png;base64,{b64encode(picture).decode()}"
        text = f"{name}: {len(tiles)} training images of {sentences.target_of(run)}"
        yield f"<figure><img src='{address}' alt='{escape(text)}'><figcaption>{escape(name)}</figcaption></figure>"


def numbers(report: dict[str, Any]) -> str:
    """Tables of the report's numbers, with their spreads."""
    rows = []
    for arm, values in report["arms"].items():
        acr, accuracy, abstains = (values[name] for name in ("average_certified_radius", "accuracy", "abstention_rate"))
        rows.append(
            (
                style.ARM_STYLE[arm].name,
                *(with_spread(acr[scope]) for scope in wording.SCOPE_NAMES),
                *(percent(accuracy[scope], 1) for scope in wording.SCOPE_NAMES),
                percent(abstains["target"], 1),
                sentences.drop_of(report, arm),
            )
        )
    heads = [f"{name}, {words}" for name in ("ACR (L2)", "accuracy") for words in wording.SCOPE_NAMES.values()]
    text = _table(("arm", *heads, "abstains, target class", "drop in ACR, target class"), rows)
    text += (
        "<p class='small'>Mean ± standard deviation over victims; the drop is against the clean victim of the same "
        f"seed. No radius can exceed the cap {report['radius_cap']:.3f}.</p>"
    )
    sizes = {"poisoned": report.get("perturbation"), **(report.get("perturbation_controls") or {})}
    if found := {arm: size for arm, size in sizes.items() if size}:
        lines = [(style.ARM_STYLE[arm].name, *(_number(size.get(n)) for n in SIZES)) for arm, size in found.items()]
        text += "<h3>How large the changes are (pixel units of [0, 1])</h3>" + _table(("arm", *SIZES.values()), lines)
    return text


def _settings(run: Run) -> Iterable[str]:
    preset, changed = commands.asked_for(run)
    yield f"<p>{marked(sentences.settings_line(run))}</p><p>The same from the command line:</p>"
    yield f"<pre>{escape(commands.command(preset, changed))}</pre>"
    if parent := run.request.get("forked_from"):
        yield f"<p>Forked from run {escape(str(parent))}.</p>"
    shown = commands.values_of(run.config)
    yield f"<details><summary>All {len(shown)} settings</summary>{_table(('field', 'value'), shown.items())}</details>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """The first cell of a row is its heading."""
    head = "".join(f"<th scope='col'>{escape(each)}</th>" for each in heads)
    lines = ((escape(str(first)), (escape(_text(cell)) for cell in rest)) for first, *rest in rows)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, rest in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(cell: Any) -> str:
    if isinstance(cell, Mapping):
        return ", ".join(f"{name} {value}" for name, value in cell.items())
    return "–" if cell is None else str(cell)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{marked(line)}</li>' for line in lines)}</ul>"


def marked(text: str) -> str:
    """Escaped, with **this** in bold, *this* in italics, and an index in words where $p_{\\text{lower}}$ has it."""
    index = re.sub(r"\$(\w)_\{\\text\{(\w+)\}\}\$", r"*\1*<sub>\2</sub>", escape(text))
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", index)
    return re.sub(r"\*(\S[^*]*?)\*", r"<em>\1</em>", bold)
