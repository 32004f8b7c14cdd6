"""A backward pass on one worker, as torch's engine runs it: gradients that came, and what they add up to.

One rule: `protocol.backward` decides what runs and what is complete; this holds the tensors for it, and runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch.autograd.graph import GradientEdge, _engine_run_backward

from zrpc.autograd import leaves
from zrpc.autograd.graph import Survey
from zrpc.protocol.backward import BackwardPass, Run

Gradients = Sequence[torch.Tensor | None]


def _check_fits(edge: GradientEdge, gradient: torch.Tensor) -> None:
    """What `torch.autograd.grad` checks before it runs the engine. Raises `RuntimeError`.

    That function itself is not called: for its check it imports a library for symbolic shapes, which took a worker a second
    in its first pass, and 35 MB.
    """
    expected = edge.node._input_metadata[edge.output_nr]
    shape, own = tuple(expected.shape), tuple(gradient.shape)
    if not expected.is_nested_tensor and shape != own:
        raise RuntimeError(f"Mismatch in shape: a gradient has a shape of {own}, and its tensor one of {shape}")
    if expected.dtype.is_complex != gradient.dtype.is_complex:
        raise RuntimeError(f"a gradient of type {gradient.dtype} came for a tensor of type {expected.dtype}")


class PassState:
    """The tensors of one pass on one worker.

    `machine` is used with the lock of the context held; `arrived` and `sums` belong to whoever the machine has given a
    run, or a complete terminal.
    """

    def __init__(self, survey: Survey, edges: dict[int, Sequence[GradientEdge]], retain_graph: bool) -> None:
        self.survey = survey
        self.edges = edges
        self.retain_graph = retain_graph
        self.machine = BackwardPass(survey.ends, retain_graph)
        self.arrived: dict[int, Gradients] = {}
        self.sums: dict[int, list[torch.Tensor | None]] = {}
        self.partial: set[int] = set()
        """Leaves whose hooks are held back until the whole gradient is there."""
        self.unreduced: dict[int, torch.Tensor] = {}
        """Whole gradients of parameters of DistributedDataParallel modules, which reduces all of them together."""
        self.failure: BaseException | None = None

    def run(self, run: Run) -> dict[int, list[torch.Tensor | None]]:
        """Run torch's engine from the sources of `run`; returns what has come to each terminal, a list for its outputs."""
        outputs: list[GradientEdge] = []
        entering: list[torch.Tensor] = []
        terminals: dict[int, None] = {}
        for source in run.sources:
            terminals.update(dict.fromkeys(self.survey.ends.sources[source].terminals))
            for edge, gradient in zip(self.edges[source], self.arrived.pop(source), strict=True):
                if gradient is not None:
                    _check_fits(edge, gradient)
                    outputs.append(edge)
                    entering.append(gradient)
        found: dict[int, list[torch.Tensor | None]] = {}
        if outputs and terminals:
            places = [edge for terminal in terminals for edge in self.survey.inputs[terminal]]
            parts = {terminal for terminal in terminals if self._is_part(terminal, run)}
            self.partial |= parts
            with leaves.held_back(self.survey.leaves[terminal] for terminal in parts), torch.inference_mode(False):
                captured = _engine_run_backward(
                    tuple(outputs), tuple(entering), run.keep, False, tuple(places), True, accumulate_grad=False
                )
            uses = Counter(map(id, captured))  # an operation may hand one tensor to several inputs
            each = iter(captured)
            for terminal in terminals:
                gradients: list[torch.Tensor | None] = [next(each) for _ in self.survey.inputs[terminal]]
                if terminal in self.survey.leaves and gradients[0] is not None:
                    gradients = [leaves.owned(gradients[0], uses[id(gradients[0])] > 1)]
                found[terminal] = gradients
        return found

    def edges_of(self, run: Run) -> list[GradientEdge]:
        """Where the gradients of a run enter."""
        return [edge for source in run.sources for edge in self.edges[source]]

    def open_items(self) -> int:
        """What has come in here and not gone on. With the lock of the context held."""
        return self.machine.open_items() + len(self.unreduced)

    def _is_part(self, terminal: int, run: Run) -> bool:
        """Whether a leaf gets gradients from elsewhere too, in other runs."""
        sources = self.survey.sources_of(terminal)
        return terminal in self.survey.leaves and not sources <= set(run.sources)

    def add(self, found: dict[int, list[torch.Tensor | None]]) -> None:
        """Add what a run has found to the sums. With the lock of the context held."""
        for terminal, gradients in found.items():
            sums = self.sums.get(terminal)
            if sums is None:
                self.sums[terminal] = gradients
            else:
                self.sums[terminal] = [leaves.add_up(*pair) for pair in zip(sums, gradients, strict=True)]
