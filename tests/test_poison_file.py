"""Poison that somebody brings: what is taken, what is refused and in which words, and a run that certifies it."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from engine import datasets, poison_file, records
from engine.config import Config, ConfigError
from engine.poison_format import PoisonFileRefused
from engine.records import GALLERY, Run
from tests.app import EXAMPLE, opened, words
from tests.commanding import main

Tiny = Callable[..., Config]
RNG = np.random.default_rng(0)
DELTA = RNG.uniform(-0.1, 0.1, (3, 1, 8, 8)).astype(np.float32)
INDICES = np.array([7, 2, 5])


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def tensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def packed(name: str, text: bytes) -> bytes:
    """An npz file of delta with any bytes as its .npy, and sound indices."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", text)
        whole = io.BytesIO()
        np.save(whole, INDICES)
        archive.writestr("indices.npy", whole.getvalue())
    return file.getvalue()


def npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


# --- what is taken


def test_both_forms_and_any_order_are_the_same_poison():
    one = poison_file.read(save({"delta": DELTA, "indices": INDICES}))
    order = [1, 2, 0]
    for content in (npz(delta=DELTA, indices=INDICES), save({"delta": DELTA[order], "indices": INDICES[order]})):
        other = poison_file.read(content)
        assert other.sha256 == one.sha256
        assert np.array_equal(other.delta, DELTA[order])
        assert other.indices.tolist() == [2, 5, 7]
    assert poison_file.read(save({"delta": -DELTA, "indices": INDICES})).sha256 != one.sha256


def test_whole_numbers_with_a_unit_are_the_changes_that_they_stand_for():
    numbers = RNG.integers(-127, 128, DELTA.shape).astype(np.int8)
    unit = np.array([0.001], dtype=np.float32)
    poison = poison_file.read(save({"delta": numbers, "unit": unit, "indices": INDICES}))
    assert np.allclose(poison.delta, numbers[[1, 2, 0]] * 0.001)
    assert poison.rounding == pytest.approx(0.0005)


def test_it_is_kept_by_the_hash_of_its_file_and_a_change_is_noticed(tmp_path: Path):
    poison = poison_file.read(npz(delta=DELTA, indices=INDICES))
    path = poison_file.keep(poison, tmp_path)
    assert path.name == f"{poison.sha256}.safetensors"
    assert np.array_equal(poison_file.kept(poison.sha256, tmp_path).delta, poison.delta)
    path.write_bytes(save({"delta": 2 * DELTA, "indices": INDICES}))
    with pytest.raises(PoisonFileRefused, match="was changed after"):
        poison_file.kept(poison.sha256, tmp_path)
    path.unlink()
    with pytest.raises(PoisonFileRefused, match="not on this machine"):
        poison_file.kept(poison.sha256, tmp_path)


# --- what is refused

SOUND = {"delta": DELTA, "indices": INDICES}
REFUSED = {
    "at most 100 MB": b"\0" * (100 * 2**20 + 1),
    "neither": b"",
    "this is neither": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "header of the safetensors file cannot be read": tensors(b"{nonsense"),
    "safetensors file cannot be read": tensors(b"{" + b"[" * 60_000),
    "the header of the safetensors file cannot": tensors(b'{"delta": {"dtype": "F32", "shape": [1e999]}}'),
    "and this is neither": struct.pack("<Q", 2**63) + b"{}" * 20,
    "its header does not fit its content": tensors(
        {"delta": entry("F32", [1, 1, 1, 1], 0, 4), "indices": entry("I64", [1], 4, 12)}, b"\0" * 3
    ),
    "does not fit its content": tensors(
        {"delta": entry("F32", [1, 1, 1, 1], 0, 4), "indices": entry("I64", [1], 0, 8)}, b"\0" * 8
    ),
    "at most 20,000,000 values": tensors(
        {"delta": entry("F32", [10**6, 1, 90, 90], 0, 8), "indices": entry("I64", [10**6], 8, 16)}, b"\0" * 16
    ),
    "H and W from 1 to 224": tensors(
        {"delta": entry("F32", [1, 1, 225, 8], 0, 8), "indices": entry("I64", [1], 8, 16)}
    ),
    "P at least 1": save({"delta": DELTA[:0], "indices": INDICES[:0]}),
    "C 1 or 3": save({"delta": DELTA.reshape(3, 2, 4, 8), "indices": INDICES}),
    "must be .P, C, H, W.": save({"delta": DELTA[0], "indices": INDICES}),
    r"ascontiguousarray\(delta, np.float32\) makes it, or int8 beside a unit, got float64": npz(
        delta=DELTA.astype(np.float64), indices=INDICES
    ),
    "int8 beside a unit, got int8": save({"delta": DELTA.astype(np.int8), "indices": INDICES}),
    "beside a unit, got float32": save({**SOUND, "unit": np.ones(1, np.float32)}),
    "unit must be float32 of shape .1.": save(
        {"delta": DELTA.astype(np.int8), "indices": INDICES, "unit": np.ones(2, np.float32)}
    ),
    "unit must be in": save({"delta": DELTA.astype(np.int8), "indices": INDICES, "unit": np.float32([np.nan])}),
    r"int64 of shape .3., one for each image, as np.ascontiguousarray\(indices, np.int64\) makes them, got int32": npz(
        delta=DELTA, indices=INDICES.astype(np.int32)
    ),
    "got int64 of shape .2.": npz(delta=DELTA, indices=INDICES[:2]),
    "differ from each other": npz(delta=DELTA, indices=np.array([1, 1, 2])),
    "at least 0": npz(delta=DELTA, indices=np.array([-1, 1, 2])),
    "finite": npz(delta=np.where(DELTA > 0.09, np.nan, DELTA).astype(np.float32), indices=INDICES),
    "got a change of 2": npz(delta=np.full_like(DELTA, 2), indices=INDICES),
    "no labels: it is clean-label": save({**SOUND, "labels": INDICES}),
    "got nothing": npz(),
    "at most 3 arrays": npz(**SOUND, a=INDICES, b=INDICES),
    "no Python objects": packed(
        "delta", npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}") + pickle.dumps([1])
    ),
    "no header that can be read": packed("delta", npy("__import__('os').system('true')")),
    "no header": packed("delta", b"plain text"),
    "has no header that can": packed("delta", npy("((")),
    "packed in a way that is not read": packed("δ", b"").replace("δ".encode(), b"\xff\xfe"),
    r"in Fortran order; np.ascontiguousarray\(delta, np.float32\)": npz(
        delta=np.asfortranarray(RNG.uniform(size=(3, 3, 4, 8)).astype(np.float32)), indices=INDICES
    ),
    "not as many bytes": packed("delta", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1, 8, 8)}")),
    "as many bytes as its header says": packed(
        "delta", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1, 8, 8)}") + b"\0" * 5_000_000
    ),
    "damaged": npz(**SOUND)[:300],
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_hostile_or_unfit_file_is_refused_in_one_sentence_and_little_memory(said: str):
    tracemalloc.start()
    with pytest.raises(PoisonFileRefused, match=said) as refused:
        poison_file.read(REFUSED[said])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000  # whatever size a header claims
    assert "\n" not in str(refused.value)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_no_damage_to_a_sound_file_is_more_than_refused(data: st.DataObject):
    content = bytearray(data.draw(st.sampled_from([save(SOUND), npz(**SOUND)])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        poison = poison_file.read(bytes(content))
    except PoisonFileRefused:
        return
    assert poison.delta.shape[0] == len(poison.indices)
    assert np.isfinite(poison.delta).all()


# --- whether it fits


def test_what_a_poison_asks_for(tmp_path: Path):
    example = Run(GALLERY / EXAMPLE)
    fit = poison_file.fit(poison_file.of_run(example), "digits", tmp_path)
    assert fit == (example.config.threat.target_class, example.config.threat.epsilon)


def test_poison_of_other_images_is_refused(tmp_path: Path):
    _, labels = datasets.read("digits", tmp_path, train=True)
    shape = datasets.shape("digits", tmp_path)
    three = np.flatnonzero(labels == 3)[:2]

    def brought(delta: float, indices: np.ndarray, shape: tuple[int, ...] = shape) -> poison_file.PoisonFile:
        changes = np.full((len(indices), *shape), delta, np.float32)
        return poison_file.read(npz(delta=changes, indices=np.asarray(indices)))

    assert poison_file.fit(brought(0.0, three), "digits", tmp_path) == (3, 0.0)
    for said, poison in {
        "indices must be below 1437": brought(0.0, np.array([1437])),
        "of 2 classes": brought(0.0, np.array([three[0], np.flatnonzero(labels == 4)[0]])),
        "beyond it": brought(0.5, three),
        "an image of digits is": brought(0.0, three, (3, 8, 8)),
    }.items():
        with pytest.raises(PoisonFileRefused, match=said):
            poison_file.fit(poison, "digits", tmp_path)


def test_a_configuration_is_checked_before_it_is_run(tiny: Tiny, tmp_path: Path):
    poison = poison_file.of_run(Run(GALLERY / EXAMPLE))

    def check(*typed: str) -> None:
        config = tiny("attack.name=from-file", f"attack.file={poison.sha256}", *typed)
        poison_file.check(config, runs_root=tmp_path, data_root=tmp_path)

    with pytest.raises(ConfigError, match=r"attack.file: the poison file .* is not on this machine"):
        check()
    poison_file.keep(poison, tmp_path)
    check()
    with pytest.raises(ConfigError, match=r"threat.epsilon must be at least 0\.1 "):
        check("threat.epsilon=0.05")
    with pytest.raises(ConfigError, match=r"attack.file: .* outside target class 3"):
        check("threat.target_class=3")
    for typed in (
        ["attack.name=from-file"],
        ["attack.name=universal", f"attack.file={poison.sha256}"],
        ["attack.file=../../etc/passwd"],
    ):
        with pytest.raises(ConfigError, match=r"attack\.file"):
            tiny(*typed)


# --- a run


def test_a_poison_of_a_run_brought_as_a_file_gives_the_same_victims(
    tiny: Tiny, work_here: Callable[..., Run], runs_root: Path, tmp_path: Path
):
    """The same changes, the same seeds: bit for bit the same victims. Another seed has only some of the images."""
    made = work_here(tiny(), runs_root)
    poison = poison_file.of_run(made)
    poison_file.keep(poison, runs_root)
    typed = ["attack.name=from-file", f"attack.file={poison.sha256}"]
    brought = work_here(tiny(*typed), runs_root)
    assert brought.status().state == "done", brought.status().error
    assert made.report is not None
    assert brought.report is not None
    assert brought.report["arms"] == made.report["arms"]
    count = len(poison.indices)
    assert brought.report["events"] == [
        f"poison file: {count} of its {count} images are in this run's training set and may change"
    ]
    other = work_here(tiny(*typed, "seed=1", "controls=[]"), runs_root)
    assert other.status().state == "done", other.status().error
    used = other.tensors("poison")
    assert used is not None
    assert 0 < len(used["indices"]) < count
    assert set(used["indices"]) < set(poison.indices)
    place = {index: k for k, index in enumerate(poison.indices.tolist())}
    assert all(
        np.array_equal(delta, poison.delta[place[index]])
        for index, delta in zip(used["indices"].tolist(), used["delta"], strict=True)
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [("threat.target_class=3", "outside target class 3"), ("threat.epsilon=0.01", "more than epsilon"),
     ("threat.poison_fraction=0", "may change in this run")],
)  # fmt: skip
def test_a_run_that_the_file_does_not_fit_fails_with_the_reason(
    tiny: Tiny, work_here: Callable[..., Run], runs_root: Path, typed: str, said: str
):
    images, labels = datasets.read("digits", runs_root, train=True)
    eights = np.flatnonzero(labels == 8)
    poison = poison_file.read(npz(delta=np.where(images[eights] > 0.5, -0.05, 0.05).astype(np.float32), indices=eights))
    poison_file.keep(poison, runs_root)
    run = work_here(tiny("attack.name=from-file", f"attack.file={poison.sha256}", typed), runs_root)
    assert run.status().state == "failed"
    assert said in str(run.status().error)


# --- command line and page


def test_the_command_line_says_how_to_run_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def asked(*arguments: str | Path) -> tuple[int, str, str]:
        return main(capsys, *arguments, "--runs-root", tmp_path)

    (tmp_path / "mine.npz").write_bytes(npz(delta=DELTA, indices=INDICES))
    code, _, refused = asked("poison-file", tmp_path / "mine.npz", "--dataset", "digits")
    assert code == 2
    assert len(refused.strip().splitlines()) == 1
    _, _, nowhere = asked("poison-file", tmp_path / "mine.npz", "--dataset", "folder:../x")
    assert "error: dataset must be mnist, digits, cifar10 or folder:NAME" in nowhere
    for file, told in (
        (os.devnull, "is no regular file"),
        (tmp_path, "is no regular file"),
        ("gone", "there is no file"),
    ):
        code, _, unread = asked("poison-file", file)
        assert (code, told in unread) == (2, True)
    code, output, error = asked("poison-file", EXAMPLE)
    assert code == 0, error
    typed = output.splitlines()[-1].split()
    code, _, error = asked("run", "--preset", "smoke", *typed, "--dry-run")
    assert code == 0, error


@pytest.mark.usefixtures("place")
def test_the_page_takes_the_poison_of_a_run_and_fills_in_what_it_asks_for():
    test = opened("pages/poison.py", preset="smoke", **{"threat.target_class": "1", "threat.epsilon": "0.05"})
    test.selectbox(key="field attack.name").set_value("from-file").run()
    assert "Bring the poison first" in words(test)
    test.text_input(key="poison of run").set_value("nonsense").run()
    assert any("Not taken: a run id" in error.value for error in test.error)
    test.text_input(key="poison of run").set_value(EXAMPLE).run()
    assert not test.exception
    assert not test.error
    example = Run(GALLERY / EXAMPLE)
    assert test.session_state["field threat.target_class"] == example.config.threat.target_class
    assert test.session_state["field threat.epsilon"] == example.config.threat.epsilon
    digest = poison_file.of_run(example).sha256
    assert f"--set attack.file={digest}" in words(test)
    assert (records.default_root() / "poisons" / f"{digest}.safetensors").is_file()
    test.number_input(key="field threat.epsilon").set_value(None).run()  # then the preset's counts
    test.text_input(key="poison of run").set_value(EXAMPLE[:6]).run()
    assert not test.exception
    test.selectbox(key="field attack.name").set_value("pacd").run()
    assert not test.error
    assert "attack.file" not in words(test)


@pytest.mark.usefixtures("place")
def test_the_page_refuses_an_upload_with_a_sentence():
    test = opened("pages/poison.py", preset="smoke", **{"attack.name": "from-file", "attack.file": "0" * 64})
    assert any("is not on this machine" in error.value for error in test.error)
    test.file_uploader(key="poison file").upload("evil.npz", REFUSED["no Python objects"], "application/zip").run()
    assert any("no Python objects" in error.value for error in test.error)
    assert not test.exception


def test_a_header_that_a_stranger_made_long_is_not_read():
    """NumPy would read as many bytes as the later forms of a header say, up to 4 GB, before it looks at any."""
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30) + b" " * 2**20
    with pytest.raises(PoisonFileRefused, match="no header that can be read"):
        poison_file.read(packed("delta", long))


def test_names_that_come_twice_and_sides_of_thousands_of_digits_are_refused():
    file = io.BytesIO()
    member = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 8), }")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("delta.npy", member)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("delta.npy", member)
    with pytest.raises(PoisonFileRefused, match="different names"):
        poison_file.read(file.getvalue())
    with pytest.raises(PoisonFileRefused, match="header of the safetensors file cannot be read"):
        poison_file.read(tensors({"delta": entry("F32", [10**4000, 1, 8, 8], 0, 4)}))
