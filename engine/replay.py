"""Steps that a GPU repeats without Python: launched once, recorded as a CUDA graph, and replayed from then on.

A small network's kernels run for microseconds, less than it takes to launch them one by one.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

ORDINARY = 1  # calls before one is recorded: libraries choose their algorithms and optimisers make their state in them
KEPT = 2  # graphs
AHEAD = 2  # replays in the GPU's queue: where it is full, the next launch blocks, and with it every thread
SPARE = 0.2  # of a GPU's memory, that should be free for a graph to be recorded
ParallelMap = Callable[[Callable, Iterable], Iterable]  # as `map`; an executor's computes side by side
gpu_lock = threading.Lock()  # held by who records a graph, compiles, or makes the whole GPU wait: one at a time


class Replayed:
    """A function of tensors that replays a recorded CUDA graph after its first few calls, and else is called.

    Whatever else it reads or changes must stay where it is in memory, as weights and optimisers' moments do, and it
    must not wait for the GPU. What it returns is overwritten by the next call.

    Args:
        generators: all that it draws from.
        able: False where the function cannot be replayed. Nor is it on a CPU, or on a GPU's default stream.
    """

    def __init__(
        self, function: Callable[..., Any], *, generators: Sequence[torch.Generator], able: bool = True
    ) -> None:
        self._function, self._generators = function, generators
        self._able = able and has_own_stream(generators[0].device)
        self._graphs: dict[Hashable, _Graph | int] = {}  # or how often it was called before
        self._ahead: deque[torch.cuda.Event] = deque()

    def __call__(self, *given: Tensor, key: Hashable = None) -> Any:
        """What the function returns for these tensors.

        Args:
            key: whatever else the function depends on. Another one, or other shapes, have a graph of their own; the
                last KEPT are remembered.
        """
        if not self._able:
            return self._function(*given)
        key = key, tuple(tensor.shape for tensor in given)
        graph = self._graphs.pop(key, 0)
        while len(self._graphs) >= KEPT:
            del self._graphs[next(iter(self._graphs))]
        if isinstance(graph, int) and graph < ORDINARY:
            self._graphs[key] = graph + 1
            with gpu_lock:  # it may compile
                return self._function(*given)
        if isinstance(graph, int):
            beside = next((each for each in self._graphs.values() if isinstance(each, _Graph)), None)
            graph = _Graph(self._function, given, self._generators, beside)
        self._graphs[key] = graph
        found = graph(*given)
        self._ahead.append(torch.cuda.current_stream().record_event(torch.cuda.Event(blocking=True)))
        if len(self._ahead) > AHEAD:
            self._ahead.popleft().synchronize()
        return found


class _Graph:
    """One recorded call.

    Args:
        beside: a graph of the same stream, whose memory it may use as well: only one of them runs at a time.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        given: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        beside: "_Graph | None",
    ) -> None:
        self._given = [tensor.clone() for tensor in given]
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        with gpu_lock:
            free, total = torch.cuda.mem_get_info()
            if free < SPARE * total:  # what is kept for later is not given back while a graph is recorded
                torch.cuda.empty_cache()
            pool = None if beside is None else beside._graph.pool()
            self._graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads go on as they please
            try:
                self._found = function(*self._given)
            finally:
                self._graph.capture_end()

    def __call__(self, *given: Tensor) -> Any:
        for kept, tensor in zip(self._given, given, strict=True):
            kept.copy_(tensor)
        self._graph.replay()
        return self._found


def has_own_stream(device: torch.device) -> bool:
    """Whether this thread works on a GPU's stream of its own, beside others, as `use_own_stream` has it."""
    return device.type == "cuda" and torch.cuda.current_stream(device) != torch.cuda.default_stream(device)


def use_own_stream(device: torch.device) -> None:
    """From now on this thread's work on a GPU waits for no other thread's."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
