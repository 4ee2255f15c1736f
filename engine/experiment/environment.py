"""What a number may depend on beside its configuration: env.json of a run."""

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]


def environment(device: str) -> dict[str, Any]:
    """Device, versions, commit and time, as env.json has them. device: "cpu" or "cuda"."""
    import numpy
    import torch

    from engine.votes import has_bfloat16

    graphics = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if device == "cuda" else {}
    return {
        "device": device,
        "device_name": device_name(device),
        "cpus": os.cpu_count(),
        "bfloat16": has_bfloat16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # whose import takes a second
        "numpy": numpy.__version__,
        "scipy": version("scipy"),
        **graphics,
        "platform": platform.platform(),
        "commit": commit(),
        "code": code(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def code() -> str:
    """SHA-256 of the engine's files: what ran, whatever a commit says or where there is none."""
    digest = hashlib.sha256()
    for path in sorted((PROJECT / "engine").rglob("*.py")):
        digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def device_name(device: str) -> str:
    """Of the GPU or the processor."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The project's commit, marked where the working tree differs from it; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=PROJECT, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
