"""Named random generators: every draw that a run's numbers rest on comes from one, none from the global RNG."""

from hashlib import blake2b

import torch


def stream(seed: int, purpose: str, index: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator that depends on (seed, purpose, index) alone.

    A point's draws therefore never depend on how many points came before it, on threads, or on other runs.
    The three are hashed to 32 bits because torch's CPU generator reads only the low 32 bits of a seed.
    """
    digest = blake2b(repr((seed, purpose, index)).encode(), digest_size=4).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
