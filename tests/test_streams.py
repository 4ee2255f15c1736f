"""Named random streams: they depend on their name alone."""

from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.streams import stream

NAMES = [
    (0, "a", 0),
    (1, "a", 0),
    (1 + 2**32, "a", 0),
    (0, "b", 0),
    (0, "a", 1),
    (0, "a", 1 + 2**32),
    (2**63 - 1, "", 0),
]


def draws(seed: int, purpose: str, index: int) -> torch.Tensor:
    return torch.randn(32, generator=stream(seed, purpose, index))


def test_a_name_always_gives_the_same_draws():
    for name in NAMES:
        assert torch.equal(draws(*name), draws(*name))


def test_names_that_differ_anywhere_even_beyond_32_bits_give_different_draws():
    for one, other in combinations(NAMES, 2):
        assert not torch.equal(draws(*one), draws(*other)), (one, other)


def test_a_stream_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), draws(0, "a", 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draws(0, "a", 0), first)


def test_the_seeds_behind_the_names_stay_what_they_were():
    """Golden values: a change would silently change every number that a configuration gives."""
    assert stream(0, "test").initial_seed() == 3355547599
    assert stream(2**63 - 1, "victim", 7).initial_seed() == 798132076


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(st.integers(-(2**70), 2**70), st.text(max_size=10), st.integers(0, 2**40))
def test_every_seed_fits_the_32_bits_that_torch_reads(seed, purpose, index):
    assert 0 <= stream(seed, purpose, index).initial_seed() < 2**32


def test_a_thousand_indices_give_a_thousand_seeds():
    # with random 32-bit seeds, two of 1000 coincide with probability 1.2e-4; these are fixed
    assert len({stream(0, "certification 0", index).initial_seed() for index in range(1000)}) == 1000


def test_neighbouring_streams_are_uncorrelated():
    # 5 standard errors of a correlation over 100 000 draws: false alarm 5.7e-7
    first, second = (torch.randn(100_000, generator=stream(0, "test", index), dtype=torch.float64) for index in (0, 1))
    assert abs(float((first * second).mean())) < 5 / 100_000**0.5
