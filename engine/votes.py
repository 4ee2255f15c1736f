"""Votes of a base classifier under noise, for many images at once: the part of CERTIFY that takes the time.

The images of a group see the same noise draws. For each image alone they are n independent Gaussian draws, independent
of those that chose its class, and that is all that its certificate needs: it fails with probability ≤ alpha as ever,
and N certificates fail at most N·alpha times on average. What is lost is independence between the images of a group:
their failures come together, and so do their sampling errors, which an interval over images takes for independent.
What is gained: the first layer sees each draw once for all images, and two classifiers under the same noise differ by
less.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from weakref import WeakSet

import torch
from torch import Tensor

from engine.compiling import can_compile, compiled
from engine.models.lenet import LeNet, WinogradLeNet
from engine.models.network import Network
from engine.replay import ParallelMap, gpu_lock
from engine.smoothing import Classifier, gaussian_noise
from engine.streams import stream

BLOCK = {"cpu": 256, "cuda": 10_000}  # noisy copies at once: what fits the cache, in whole vectors; what fills the card
IN_FLOAT64 = 1_000  # of them at once: large images would fill the memory of a card
CALIBRATED = 512  # noisy copies on which a quicker network's error is measured
SAFETY = 4.0  # a margin below this many times the largest error seen is computed again in float32
GROUPS = 8  # of test images, by their number in the test set: each group shares its noise
ROUNDING = 1e-6  # how far, relatively, an affine stem may be from its sum in float64
SCREENED = 4_000  # votes for which a screen pays: it first needs answers to calibrate it
COMPILED = 1_500_000  # votes for which compiling pays: it takes seconds, at times twenty
_affine: WeakSet[Network] = WeakSet()  # those whose stem has been looked at: copying a large network takes a while
Margins = Callable[[Network, Tensor, Tensor], tuple[Tensor, Tensor]]  # see `_margins`
Settled = Callable[[Tensor, int], Tensor]  # (votes for the selected class [G], of so many draws) → bool [G]
Group = tuple[Tensor, torch.Generator]  # positions [G] of images that share the generator's draws


def has_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether it multiplies in bfloat16 itself; without such instructions a processor is up to ten times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def has_matrices_of_bfloat16() -> bool:
    """Whether this CPU multiplies whole matrices of bfloat16 (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def quicker(network: Network, device: torch.device) -> Network | None:
    """Nearly the same function in less time, for `Screen`: a LeNet by transforms of tiles, any network in bfloat16.

    None where neither is quicker; the transforms are on a CPU, unless it multiplies matrices of bfloat16.
    """
    if device.type == "cpu" and type(network) is LeNet and not has_matrices_of_bfloat16():  # a subclass may do more
        return WinogradLeNet(network)
    return copy.deepcopy(network).to(torch.bfloat16).eval() if has_bfloat16(device) else None


@dataclass(frozen=True)
class Votes:
    """The raw outcome of CERTIFY for N images; radii at any n' ≤ n and alpha follow from it (row by row)."""

    selection: Tensor  # int64 [N, K], votes of the n0 selection draws
    estimation: Tensor  # int64 [N, K], votes of the n estimation draws

    @property
    def selected_class(self) -> Tensor:
        """[N]: most votes of the selection draws, the lower class where two have as many."""
        return self.selection.argmax(dim=1)

    @property
    def n_top(self) -> Tensor:
        """[N]: votes for the selected class among the estimation draws."""
        return self.estimation.gather(1, self.selected_class[:, None]).squeeze(1)


def count_votes(
    base_classifier: Classifier,
    images: Tensor,
    *,
    sigma: float,
    n0: int,
    n: int,
    num_classes: int,
    block: int,
    groups: Iterable[Group],
    screened: bool = False,
    looks: Sequence[int] = (),
    settled: Settled | None = None,
    each: ParallelMap = map,
) -> Iterator[Votes]:
    """Yields after every block of draws the votes so far, at last those of n0 selection and n fresh estimation draws.

    Args:
        images: [N, C, H, W] in [0, 1].
        block: noisy copies at once. On a CPU votes do not depend on it if C·H·W is a multiple of 16, in which torch's
            generator fills; elsewhere other blocks are other draws, as good as these.
        groups: (positions of images, generator) for each group; the images of one group share its draws.
        screened: see `Screen`; the votes are float32's own with it and without, but many take half the time or
            less where there is a `quicker` network.
        looks: numbers of estimation draws after which `settled` is asked; whoever it settles gets no more draws, and
            a row of `estimation` adds up to those that its image got.
        each: an executor's map, to ask the network about the images of a block side by side; the votes are the same.
    Raises: ValueError of a network whose stem is not affine, and of logits that are not finite.
    """
    counts = [torch.zeros(len(images), num_classes, dtype=torch.int64, device=images.device) for _ in (n0, n)]
    votes = Votes(*counts)
    screen = None
    if isinstance(base_classifier, Network):
        _check_stem(base_classifier, images, sigma=sigma)
        pays = screened and len(images) * (n0 + n) >= SCREENED
        if pays and images.device.type == "cuda":
            base_classifier = base_classifier.aligned()
        quick = quicker(base_classifier, images.device) if pays else None
        if quick is not None:
            compiled_for = block if len(images) * n >= COMPILED and can_compile(images.device) else None
            screen = Screen(base_classifier, images, sigma=sigma, quick=quick, compiled_for=compiled_for)
    for positions, generator in groups:
        answers = Answers(base_classifier, images[positions], screen, each)
        for first, last in pairwise(sorted({0, n0 + n, *(n0 + look for look in looks)})):
            for start in range(first, last, block):
                shape = (min(block, last - start), *images.shape[1:])
                found = answers(gaussian_noise(shape, sigma=sigma, generator=generator))
                split = min(max(n0 - start, 0), shape[0])  # draws of the selection come first
                for count, part in zip(counts, (found[:, :split], found[:, split:]), strict=True):
                    ones = torch.ones_like(part)  # unlike bincount, scatter_add waits for no GPU
                    count[positions] = count[positions].scatter_add(1, part, ones)
                yield votes
            answers.check()
            if settled is not None:
                open_still = ~settled(votes.n_top[positions], last - n0)
                if not open_still.any():
                    break
                positions = positions[open_still]
                answers.keep(open_still)


class Answers:
    """The base classifier's answers at some images under noise that they share."""

    def __init__(
        self,
        base_classifier: Classifier,
        images: Tensor,
        screen: "Screen | None" = None,
        each: ParallelMap = map,
    ) -> None:
        """each: as for count_votes."""
        self._screen, self._each = screen, each
        self._finite = torch.ones((), dtype=torch.bool, device=images.device)
        self._stem, self._rest_of_sum = _halves(base_classifier)
        if screen is not None:
            self._stem = screen.stem
        with torch.inference_mode():
            self._at_images = self._stem(images) - self._stem(torch.zeros_like(images[:1]))

    @torch.inference_mode()
    def __call__(self, noise: Tensor) -> Tensor:
        """Answers int64 [N, M] at the N images under noise [M, C, H, W]."""
        if self._screen is None:
            answered = self._each(partial(self._answer, self._stem(noise)), self._at_images.split(1))
            return torch.stack([self._classes(logits) for logits in answered])
        quick, exact = self._screen.shared(noise)
        screened = self._each(partial(self._screen, quick), self._screen.quick.prepared(self._at_images).split(1))
        answers, sure = (torch.stack(parts) for parts in zip(*screened, strict=True))
        rows, draws = (~sure).nonzero(as_tuple=True)
        for some, of in zip(rows.split(len(noise)), draws.split(len(noise)), strict=True):
            answers[some, of] = self._classes(self._screen.exact_logits(exact(of) + self._at_images[some]))
        return answers

    @torch.inference_mode()
    def _answer(self, shared: Tensor, at: Tensor) -> Tensor:
        return self._rest_of_sum(shared, at)

    def _classes(self, logits: Tensor) -> Tensor:
        """int64 [M] of logits [M, K]; `check` looks at whether they were finite, lest a GPU be waited for here."""
        self._finite = self._finite & logits.isfinite().all()
        return logits.argmax(dim=1)

    def check(self) -> None:
        """Raises: ValueError if any logits so far were not finite: NaN would have been a vote for some class."""
        if not self._finite:
            raise ValueError("the classifier's logits are not finite, so it has no class to vote for")

    def keep(self, which: Tensor) -> None:
        """From now on answers only at the images of this mask [N]."""
        self._at_images = self._at_images[which]


class Screen:
    """Answers of a quicker network, and which of them certainly agree with the network itself in float32.

    It is sure where the two largest logits are further apart than SAFETY times the largest error of such a distance
    among CALIBRATED noisy copies. That is measured, not proved; tests/test_votes.py holds the counts to float32's. Of
    logits that are NaN it is never sure, and neither of any if an error was.
    """

    def __init__(
        self, base_classifier: Network, images: Tensor, *, sigma: float, quick: Network, compiled_for: int | None
    ) -> None:
        """quick: nearly the same function, see `quicker`."""
        self._exact = base_classifier
        if images.device.type == "cuda":  # whose float32 may be TF32
            self._exact = copy.deepcopy(base_classifier).double()
        self.quick, self._compiled_for = quick, compiled_for
        self._margins: Margins = self._first_margins
        generator = stream(0, "screen", device=images.device)
        with torch.inference_mode():
            noise = gaussian_noise((CALIBRATED, *images.shape[1:]), sigma=sigma, generator=generator)
            chosen = images[torch.arange(CALIBRATED, device=images.device) * len(images) // CALIBRATED]
        parts = list(zip(noise.split(64), chosen.split(64), strict=True))
        with torch.inference_mode():
            errors = torch.cat([self._error(*part) for part in parts])
        self.threshold = SAFETY * float((errors.amax(dim=1) - errors.amin(dim=1)).max())

    @torch.inference_mode()
    def __call__(self, shared: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """(Answers int64 [M], whether they are sure [M]) for the stem at shared [M, …] + at [1, …], both `prepared`."""
        margins = self._margins if len(shared) == self._compiled_for else _margins
        classes, margin = margins(self.quick, shared, at)
        return classes, margin > self.threshold

    def _first_margins(self, network: Network, shared: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        self._margins = compiled(_margins)
        with gpu_lock:  # it may compile
            return self._margins(network, shared, at)

    def stem(self, x: Tensor) -> Tensor:
        """The network's stem at x [M, C, H, W], as exact as `exact_logits`, in float32."""
        if len(x) > IN_FLOAT64:
            return torch.cat([self.stem(some) for some in x.split(IN_FLOAT64)])
        return self._exact.stem(self._exactly(x)).to(x.dtype)

    def shared(self, noise: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(The stem at noise, `prepared`; a function of positions that gives it there as exact as `stem`)."""
        if isinstance(self.quick, WinogradLeNet):  # whose own is as `rest_of_sum` likes it at once
            return self.quick.stem(noise), lambda of: self.stem(noise[of])
        exact = self.stem(noise)
        return self.quick.prepared(exact), lambda of: exact[of]

    def exact_logits(self, h: Tensor) -> Tensor:
        """[M, K] where the stem is h [M, …], in float32; on a GPU in float64."""
        return self._exact.rest(self._exactly(h))

    def _exactly(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self._exact.parameters()).dtype)

    def logits(self, shared: Tensor, at: Tensor) -> Tensor:
        """[M, K] for the stem at shared [M, …] + at [1, …] or [M, …], both `prepared`."""
        return self.quick.rest(shared + at).float()

    def _error(self, noise: Tensor, images: Tensor) -> Tensor:
        """Of the logits [N, K] at images [N, C, H, W] with a noise draw each."""
        at = self.stem(images) - self.stem(torch.zeros_like(images[:1]))
        quick, exact = self.shared(noise)
        exact_sum = exact(torch.arange(len(noise), device=noise.device)) + at
        return self.logits(quick, self.quick.prepared(at)) - self.exact_logits(exact_sum)


def _margins(network: Network, shared: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """(Answers int64 [M], how far the largest logit is above the next one [M]) for the stem at shared + at."""
    logits = network.rest_of_sum(shared, at).float()
    classes = logits.argmax(dim=1)
    answered = torch.arange(logits.shape[1], device=logits.device) == classes[:, None]
    return classes, logits.amax(dim=1) - logits.masked_fill(answered, -torch.inf).amax(dim=1)


def _halves(base_classifier: Classifier) -> tuple[Classifier, Callable[[Tensor, Tensor], Tensor]]:
    """(stem, rest_of_sum) of a network; any other classifier is all rest."""
    if isinstance(base_classifier, Network):
        return base_classifier.stem, base_classifier.rest_of_sum
    return lambda x: x, lambda x, shift: base_classifier(x + shift)


def _check_stem(network: Network, images: Tensor, *, sigma: float) -> None:
    """Raises ValueError unless the stem is affine at random images under noise, which the votes rest on.

    In float64, where nothing but rounding is small, and with draws that nothing else uses.
    """
    if network in _affine:
        return
    generator, exact = stream(0, "stem", device=images.device), copy.deepcopy(network).double()
    shape = (4, *images.shape[1:])  # not of the images themselves: a black one would show nothing
    x = torch.rand(shape, generator=generator, device=images.device).double()
    noise = gaussian_noise(shape, sigma=sigma, generator=generator).double()
    with torch.inference_mode():
        whole, parts = exact.stem(x + noise), exact.stem(x) + exact.stem(noise) - exact.stem(torch.zeros_like(x))
    if not torch.allclose(whole, parts, rtol=0, atol=ROUNDING * float(whole.abs().max())):
        raise ValueError(
            f"the stem of {type(network).__name__} must be affine, stem(x + e) = stem(x) + stem(e) − stem(0), and is "
            "not: put the nonlinearity into rest"
        )
    _affine.add(network)
