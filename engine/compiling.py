"""Functions of networks that are worth compiling on a GPU; torch.compile's import alone takes seconds."""

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch


def can_compile(device: torch.device) -> bool:
    """Whether it is a GPU, and torch.compile finds what it needs beside itself: Triton and a C++ compiler."""
    return device.type == "cuda" and find_spec("triton") is not None and shutil.which("c++") is not None


@cache
def compiled(function: Callable) -> Callable:
    """The function, compiled once for all networks of an architecture and for each shape of what it is given.

    Nothing is chosen by measuring, so that the same code comes out each time.
    """
    return torch.compile(function, dynamic=False, options={"deterministic": True})
