"""The bytes of a poison file, which a stranger may have written: its headers are checked before any of it is read.

Two forms are read: safetensors, as a run's poison.safetensors has it, and NumPy's .npz without pickled content. Inside:

    delta    float32 [P, C, H, W], pixel units of [0, 1]; or int8, of which `unit` float32 [1] says how large 1 is
    indices  int64 [P]: which images of the original training set these are the changes of
"""

import json
import math
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
from safetensors.numpy import load

LARGEST_FILE = 100 * 2**20  # bytes: 20 million values of float32 and more; .streamlit/config.toml allows browsers less
LARGEST_HEADER = 2**16  # bytes
MOST_VALUES = 20_000_000  # of delta: the 5 000 images of a class of CIFAR-10 have 15 million
LARGEST_SIDE = 224  # pixels
DTYPES = {"F32": "<f4", "I8": "|i1", "I64": "<i8"}  # safetensors' name → NumPy's


class PoisonFileRefused(ValueError):
    """The file is no poison that can be used; the message says what was wrong, and what is allowed."""


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file by name, of the kinds and shapes above. Raises: PoisonFileRefused, in one sentence."""
    if len(content) > LARGEST_FILE:
        raise PoisonFileRefused(
            f"a poison file has at most {LARGEST_FILE >> 20} MB, got {len(content) / 2**20:.1f} MB; a large one fits "
            "as int8 with a unit"
        )
    found = _from_npz(content) if content[:2] == b"PK" else _from_safetensors(content)
    _check_headers({name: (array.dtype.str, array.shape) for name, array in found.items()})
    return found


def _check_headers(headers: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Names, kinds and shapes, before anything is read."""
    if not {"delta", "indices"} <= set(headers) <= {"delta", "indices", "unit"}:
        raise PoisonFileRefused(
            "a poison file has delta and indices, and unit where delta is int8, and nothing else (no labels: it is "
            f"clean-label), got {', '.join(sorted(headers))[:100] or 'nothing'}"
        )
    (kind, shape), (index_kind, index_shape) = headers["delta"], headers["indices"]
    unit = headers.get("unit")
    wanted = "|i1" if unit else "<f4"
    if kind != wanted:
        raise PoisonFileRefused(
            f"delta must be float32, as np.ascontiguousarray(delta, np.float32) makes it, or int8 beside a unit, got "
            f"{_name(kind)}"
        )
    if unit and unit != ("<f4", (1,)):
        raise PoisonFileRefused(f"unit must be float32 of shape [1], got {_name(unit[0])} of shape {list(unit[1])}")
    if len(shape) != 4 or shape[0] < 1 or shape[1] not in (1, 3) or not all(1 <= s <= LARGEST_SIDE for s in shape[2:]):
        raise PoisonFileRefused(
            f"delta must be [P, C, H, W] with P at least 1, C 1 or 3, H and W from 1 to {LARGEST_SIDE}, got "
            f"{list(shape)[:8]}"
        )
    if math.prod(shape) > MOST_VALUES:
        raise PoisonFileRefused(f"delta may have at most {MOST_VALUES:,} values, got {math.prod(shape):,}")
    if index_kind != "<i8" or index_shape != shape[:1]:
        raise PoisonFileRefused(
            f"indices must be int64 of shape [{shape[0]}], one for each image, as np.ascontiguousarray(indices, "
            f"np.int64) makes them, got {_name(index_kind)} of shape {list(index_shape)[:8]}"
        )


def _from_safetensors(content: bytes) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or not 2 <= length <= min(LARGEST_HEADER, len(content) - 8) or content[8:9] != b"{":
        raise PoisonFileRefused("a poison file is a safetensors file or an .npz file, and this is neither")
    try:
        header = json.loads(content[8 : 8 + length])
        headers = {
            str(name): (DTYPES.get(entry["dtype"], str(entry["dtype"])), tuple(int(side) for side in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if any(side >= 2**63 for _, shape in headers.values() for side in shape):
            raise ValueError
    except Exception:  # whatever the parser makes of what a stranger wrote
        raise PoisonFileRefused("the header of the safetensors file cannot be read") from None
    _check_headers(headers)
    try:
        return load(content)
    except Exception:
        raise PoisonFileRefused("the safetensors file is damaged: its header does not fit its content") from None


def _from_npz(content: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > 3:
                raise PoisonFileRefused(f"a poison file has at most 3 arrays, got {len(members)}")
            headers = {member.filename.removesuffix(".npy"): _header(archive, member) for member in members}
            if len(headers) < len(members):
                raise PoisonFileRefused("the arrays of a poison file have different names")
            _check_headers(headers)
            return {
                member.filename.removesuffix(".npy"): _array(
                    archive, member, *headers[member.filename.removesuffix(".npy")]
                )
                for member in members
            }
    except PoisonFileRefused:
        raise
    except Exception:  # of zipfile, and of each way of packing
        raise PoisonFileRefused("the .npz file is damaged, or packed in a way that is not read") from None


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[str, tuple[int, ...]]:
    """(kind, shape) of an .npy file within."""
    with archive.open(member) as file:
        return _npy_header(file)


def _npy_header(file: Any) -> tuple[str, tuple[int, ...]]:
    try:
        if np.lib.format.read_magic(file) != (
            1,
            0,
        ):  # what NumPy writes for plain arrays; later ones have no small limit
            raise ValueError
        shape, in_columns, kind = np.lib.format.read_array_header_1_0(file)
    except Exception:  # NumPy gives the header to Python's parser
        raise PoisonFileRefused("an array of the .npz file has no header that can be read") from None
    if kind.hasobject or kind.fields:
        raise PoisonFileRefused("arrays of a poison file hold plain numbers, and no Python objects")
    if in_columns:
        raise PoisonFileRefused(
            "arrays of a poison file must be in C order, and one is in Fortran order; "
            "np.ascontiguousarray(delta, np.float32) is in C order"
        )
    return kind.str, tuple(shape)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * np.dtype(kind).itemsize
    with archive.open(member) as file:
        _npy_header(file)
        data = file.read(size + 1)
    if len(data) != size:
        raise PoisonFileRefused(f"{member.filename} has not as many bytes as its header says")
    return np.frombuffer(data, dtype=kind).reshape(shape)


def _name(kind: str) -> str:
    """NumPy's "<f8" as a reader knows it."""
    try:
        return str(np.dtype(kind))
    except TypeError:
        return kind[:20]
