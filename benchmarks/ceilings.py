"""What the machine can do at most, measured, and what a LeNet asks of it, counted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from benchmarks import plain
from benchmarks.child import flops
from benchmarks.measure import Side, Table, children
from engine.costs import workers_for
from engine.votes import has_bfloat16

ROUNDS = 30  # a ceiling is the best of them; seconds in all, so that a moment's other work does not lower it
SIZE = 2048  # rows and columns of the matrices
IMAGES, CHANNELS, PIXELS, KERNEL = 32, 128, 56, 3  # of the convolution
NUMBERS = 64_000_000  # copied, in float32: far more than the caches hold
DRAWS = 10_000_000
CONVOLVED = 2.0 * IMAGES * CHANNELS**2 * KERNEL**2 * (PIXELS - KERNEL + 1) ** 2
# what, in which type, how much of it, its unit
KINDS = {
    "GEMM float32": ("gemm", "float32", 2.0 * SIZE**3, "GFLOP/s"),
    "GEMM bfloat16": ("gemm", "bfloat16", 2.0 * SIZE**3, "GFLOP/s"),
    "convolution float32": ("convolution", "float32", CONVOLVED, "GFLOP/s"),
    "convolution bfloat16": ("convolution", "bfloat16", CONVOLVED, "GFLOP/s"),
    "memory copy": ("copy", "float32", 8.0 * NUMBERS, "GB/s read and written"),
    "normal draws": ("normals", "float32", 1.0 * DRAWS, "G/s"),
}
PRODUCTS = [name for name, (kind, *_) in KINDS.items() if kind in ("gemm", "convolution")]


def rates(*names: str) -> dict[str, float]:
    """Operations, bytes or draws per second of these kinds, as "KIND, one core" and "KIND, all cores".

    Without those in a type that the processor does not multiply in, which would take it half an hour.
    """
    found = {}
    for name in names:
        kind, dtype, amount, _ = KINDS[name]
        if dtype == "bfloat16" and not has_bfloat16():
            continue
        for where, threads in (("one core", 1), ("all cores", workers_for("cpu"))):
            side = Side(name, f"ceilings.{kind}", dict(dtype=dtype, threads=threads), "malloc")
            with children([side]) as (child,):
                found[f"{name}, {where}"] = amount / min(child.seconds() for _ in range(ROUNDS))
    return found


def measured(found: dict[str, float]) -> Table:
    rows = [
        (name, unit, *(f"{found[f'{name}, {where}'] / 1e9:.3g}" for where in ("one core", "all cores")))
        for name, (_, _, _, unit) in KINDS.items()
        if f"{name}, one core" in found
    ]
    return Table("Ceilings", ("what", "unit", "one core", "all cores"), rows, [found])


def counted(found: dict[str, float]) -> Table:
    """The work of a LeNet for one 28×28 image, and how many images a second the ceilings allow at most."""
    rows, raw = [], []
    for name, needed in lenet_flops().items():
        rates = {kind: found.get(f"convolution {kind}, all cores") for kind in ("float32", "bfloat16")}
        most = {kind: rate and rate / needed for kind, rate in rates.items()}
        raw.append({"what": name, "flops": needed, "most_images_per_second": most})
        rows.append((name, f"{needed / 1e6:.3f}", *(f"{images:,.0f}" if images else "–" for images in most.values())))
    moved = lenet_bytes()
    copied = found["memory copy, all cores"] / moved
    raw.append({"what": "forward, bytes", "bytes": moved, "most_images_per_second": {"memory copy": copied}})
    rows.append((f"forward, {moved / 1e3:.0f} kB read and written if no cache held any", "", f"{copied:,.0f}", ""))
    columns = ("a LeNet, per image", "MFLOP", "at most images/s in float32", "in bfloat16")
    return Table("Counted work", columns, rows, raw)


def lenet_flops() -> dict[str, float]:
    """Floating-point operations of products and convolutions for one image; a multiply-add is two."""
    model, image, label = plain.lenet(), torch.rand(1, 1, 28, 28), torch.zeros(1, dtype=torch.long)
    weights = list(model.parameters())
    vector = [torch.ones_like(weight) for weight in weights]

    def product() -> None:
        first = torch.autograd.grad(cross_entropy(model(image), label), weights, create_graph=True)
        torch.autograd.grad(first, weights, vector)

    work: dict[str, Callable[[], object]] = {
        "forward": lambda: model(image),
        "forward and gradient of the weights": lambda: cross_entropy(model(image), label).backward(),
        "Hessian-vector product from scratch": product,
    }
    return {name: flops(task) for name, task in work.items()}


def lenet_bytes() -> float:
    """Bytes of float32 that each layer reads and writes in one forward, weights aside."""
    moved, model = [], plain.lenet()

    def count(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        moved.append(4 * (given[0].numel() + result.numel()))

    for layer in model:
        if not isinstance(layer, nn.Flatten):  # which moves nothing
            layer.register_forward_hook(count)
    model(torch.rand(1, 1, 28, 28))
    return float(sum(moved))


def gemm(*, dtype: str, threads: int) -> Callable[[], Tensor]:
    torch.set_num_threads(threads)
    a, b = torch.rand(2, SIZE, SIZE).to(getattr(torch, dtype)).unbind()
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def convolution(*, dtype: str, threads: int) -> Callable[[], Tensor]:
    torch.set_num_threads(threads)
    how: dict[str, Any] = dict(dtype=getattr(torch, dtype), memory_format=torch.channels_last)
    images = torch.rand(IMAGES, CHANNELS, PIXELS, PIXELS).to(**how)
    weight = torch.rand(CHANNELS, CHANNELS, KERNEL, KERNEL).to(**how)
    return lambda: conv2d(images, weight)


def copy(*, dtype: str, threads: int) -> Callable[[], Tensor]:
    torch.set_num_threads(threads)
    source, target = (torch.ones(NUMBERS, dtype=getattr(torch, dtype)) for _ in range(2))
    return lambda: target.copy_(source)


def normals(*, dtype: str, threads: int) -> Callable[[], Tensor]:
    """One generator draws on one core however many there are; each of the engine's workers has its own."""
    torch.set_num_threads(threads)
    drawn, generator = torch.empty(DRAWS, dtype=getattr(torch, dtype)), torch.Generator()
    return lambda: drawn.normal_(generator=generator)
