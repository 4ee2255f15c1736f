"""Weights, and vectors like them, as Keras keeps them: to compare with another implementation of the same network.

Arrays come in the order in which the layers were made, kernel before bias, scale before shift; of a block of PACD's
ResNet the shortcut last. Kernels of convolutions are [H, W, in, out], of dense layers [in, out]. The LeNet flattens
(H, W, C), as Keras does, so that its first dense kernel is turned over like any other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.models.network import Network

_TURNED = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # axes of a kernel, from Keras's order to torch's
_BACK = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def from_keras(model: Network, arrays: Sequence[np.ndarray]) -> Tensor:
    """The vector [W], in the order of `flat_weights`, that these arrays are; of their own floating-point type.

    Raises: ValueError where number or shapes are not the model's.
    """
    wanted = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    if len(arrays) != len(wanted):
        raise ValueError(f"the network has {len(wanted)} arrays of weights, got {len(arrays)}")
    pieces = []
    for (name, shape), array in zip(wanted, arrays, strict=True):
        piece = torch.from_numpy(np.ascontiguousarray(array))
        turned = piece.permute(_TURNED[piece.ndim]) if piece.ndim in _TURNED else piece
        if tuple(turned.shape) != shape:
            keras = [shape[axis] for axis in _BACK[len(shape)]]
            raise ValueError(f"{name} is {keras} in Keras's order, got {list(piece.shape)}")
        pieces.append(turned.reshape(-1))
    return torch.cat(pieces)


def to_keras(model: Network, vector: Tensor) -> list[np.ndarray]:
    """The arrays that a vector [W] is, say a gradient or a solution of the linear system."""
    parameters = list(model.parameters())
    pieces = vector.split([parameter.numel() for parameter in parameters])
    shaped = (piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True))
    return [each.permute(_BACK[each.ndim]).cpu().numpy() for each in shaped]


def from_nhwc(images: np.ndarray) -> Tensor:
    """Images, or noise with any axes before those of an image: [..., H, W, C] → [..., C, H, W]."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).copy())
