"""Whose work a run rests on."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import attacks, training
from engine.__main__ import main
from engine.config import Config
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from engine.report import citations

FROGS = {"shafahi2018poison"}
QUICK = PRESETS["quick"].config
EVERYTHING = {name: value for name, value in vars(citations).items() if isinstance(value, citations.Work)}


def keys(config: Config) -> set[str]:
    return {work.key for work in citations.works(config)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"lecun1998gradient", "zhai2020macer"}),
        (["attack.name=none"], {"lecun1998gradient"}),
        (["attack.name=label-flip"], {"lecun1998gradient"}),
        (
            ["procedure=smoothadv", "attack.name=watermark"],
            {"lecun1998gradient", "salman2019provably", "shafahi2018poison"},
        ),
        (["attack.procedure=smoothmix"], {"lecun1998gradient", "zhai2020macer", "jeong2021smoothmix"}),
        (["attack.name=none", "attack.procedure=smoothmix"], {"lecun1998gradient"}),
        (["attack.linear_solver=nystrom"], {"lecun1998gradient", "zhai2020macer", "hataya2023nystrom"}),
        (["attack.name=watermark", "attack.linear_solver=nystrom"], {"lecun1998gradient", "shafahi2018poison"}),
        (["architecture=resnet8", "attack.name=none"], {"lecun1998gradient", "he2016deep"}),
        (["training.squeezing=median", "attack.name=none"], {"lecun1998gradient", "xu2018feature"}),
    ],
)
def test_a_run_rests_on_what_its_configuration_uses(overrides: list[str], expected: set[str]) -> None:
    always = {"mehra2021robust", "cohen2019certified"}
    assert keys(with_overrides(QUICK, overrides)) == always | expected


@pytest.mark.parametrize(
    ("table", "sources"),
    [(citations.OF_ATTACK, attacks.ATTACKS), (citations.OF_PROCEDURE, training.PROCEDURES)],
    ids=["attacks", "procedures"],
)
def test_what_the_code_names_as_its_source_is_cited(
    table: dict[str, tuple[citations.Work, ...]], sources: dict[str, Callable]
) -> None:
    found = 0
    for name, made_by in sources.items():
        module = Path(__import__(made_by.__module__, fromlist=["_"]).__file__ or "").read_text()
        named = set(re.findall(r"arXiv:(\d{4}\.\d{5})", module.split('"""')[1]))
        if name in table:
            cited = {work.arxiv for work in table[name]}
            assert cited <= {work.arxiv for work in EVERYTHING.values()}
            assert not named or cited & named, f"{name} comes from {named}, cited are {cited}"
            found += bool(named)
        else:
            assert not named or name in ("brightness",), f"{name} comes from {named}, and nobody is cited"
    assert found >= 4


def test_entries_are_bibtex() -> None:
    assert len({work.key for work in EVERYTHING.values()}) == len(EVERYTHING)
    for work in EVERYTHING.values():
        text = work.bibtex()
        assert text.count("{") == text.count("}")
        assert re.match(r"@\w+\{\w+,\n(  \w+ = \{.+\},\n)+\}\n$", text)
        assert 1990 < work.year < 2027
        assert " and " in work.authors or work is citations.CIFAR10
        assert work.title in work.in_words()


def test_the_command_line_prints_them_for_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run = next(Run(path) for path in sorted(GALLERY.iterdir()) if (path / "report.json").exists())
    assert main(["report", run.id, "--cite"]) == 0
    text = capsys.readouterr().out
    assert text == citations.of_run(run)
    assert f"note = {{run {run.id}, commit {run.environment['commit']}}}" in text
    assert text.count("@") == len(citations.works(run.config)) + 1
