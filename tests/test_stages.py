"""Stages are shared between runs by the hash of what they depend on, and go when no run uses them."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from engine.stages import StageCache

KEY = StageCache.key("poison", {"epsilon": 0.1})
POISON = save({"delta": np.ones(100, np.float32)})


@pytest.fixture
def cache(runs_root: Path) -> StageCache:
    (runs_root / "first").mkdir(parents=True)
    (runs_root / "second").mkdir()
    return StageCache(runs_root)


def finished_file(runs_root: Path) -> Path:
    path = runs_root / "first" / "poison.safetensors"
    path.write_bytes(POISON)
    return path


def test_a_key_depends_on_the_stage_and_on_every_value_but_not_on_their_order() -> None:
    key = StageCache.key("poison", {"a": 1, "b": {"c": 2.0, "d": None}})
    assert key == StageCache.key("poison", {"b": {"d": None, "c": 2.0}, "a": 1})
    others = [
        StageCache.key("victim", {"a": 1, "b": {"c": 2.0, "d": None}}),
        StageCache.key("poison", {"a": 2, "b": {"c": 2.0, "d": None}}),
        StageCache.key("poison", {"a": 1, "b": {"c": 2.5, "d": None}}),
        StageCache.key("poison", {"a": 1, "b": {"c": 2.0}}),
    ]
    assert len({key, *others}) == 5


def test_what_nobody_published_is_not_fetched(cache: StageCache, runs_root: Path) -> None:
    assert not cache.fetch(KEY, runs_root / "second" / "poison.safetensors")
    assert list((runs_root / "second").iterdir()) == []


def test_a_stage_that_was_cut_off_is_computed_anew(cache: StageCache, runs_root: Path) -> None:
    source, destination = finished_file(runs_root), runs_root / "second" / "poison.safetensors"
    cache.share(KEY, source)
    source.write_bytes(POISON[:-1])
    assert not cache.fetch(KEY, destination)
    assert not destination.exists()
    source.write_bytes(POISON)
    cache.share(KEY, source)
    assert cache.fetch(KEY, destination)


def test_a_published_stage_is_the_same_file_in_every_run(cache: StageCache, runs_root: Path) -> None:
    source = finished_file(runs_root)
    cache.share(KEY, source)
    destination = runs_root / "second" / "victims" / "clean-0.safetensors"
    assert cache.fetch(KEY, destination)
    assert destination.samefile(source)
    assert [path.name for path in destination.parent.iterdir()] == [destination.name]


def test_replacing_a_file_in_one_run_leaves_the_others_as_they_were(cache: StageCache, runs_root: Path) -> None:
    from engine.records import write_atomically

    source, destination = finished_file(runs_root), runs_root / "second" / "poison.safetensors"
    cache.share(KEY, source)
    cache.fetch(KEY, destination)
    write_atomically(source, b"partial")
    assert destination.read_bytes() == POISON


def test_pruning_removes_what_no_run_links_to_and_nothing_else(cache: StageCache, runs_root: Path) -> None:
    source, destination = finished_file(runs_root), runs_root / "second" / "poison.safetensors"
    cache.share(KEY, source)
    cache.fetch(KEY, destination)
    source.unlink()
    cache.prune()
    assert len(list(cache.folder.iterdir())) == 1
    destination.unlink()
    cache.prune()
    assert list(cache.folder.iterdir()) == []
    assert not cache.fetch(KEY, destination)


def test_many_threads_may_share_the_same_stage_at_once(cache: StageCache, runs_root: Path) -> None:
    source, barrier = finished_file(runs_root), threading.Barrier(8)

    def share() -> None:
        barrier.wait()
        cache.share(KEY, source)

    threads = [threading.Thread(target=share) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.safetensors"]
    assert cache.fetch(KEY, runs_root / "second" / "poison.safetensors")


def test_without_hard_links_nothing_is_shared_and_nothing_breaks(
    cache: StageCache, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    cache.share(KEY, finished_file(runs_root))
    assert not cache.fetch(KEY, runs_root / "second" / "poison.safetensors")
    cache.prune()


def test_sharing_does_not_bring_back_a_deleted_runs_root(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        StageCache(tmp_path / "deleted").share(KEY, tmp_path / "poison.safetensors")
    assert not (tmp_path / "deleted").exists()
