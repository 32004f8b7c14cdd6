"""A backward pass, from where it began: the roots, and the end of it on all workers.

One rule: the one that called `backward` waits, and it alone.

Mostly a pass is over when the gradients have come to rest. If something is open then, branches of the graph get no gradient
in this pass: it is marked which do, and the others are not waited for any more (see `protocol.backward`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from zrpc.autograd.context import DistAutogradContext, PassId
from zrpc.autograd.engine import MARK, SETTLE, Engine
from zrpc.autograd.tally import Tally
from zrpc.errors import AutogradMisuse, BackwardFault
from zrpc.runtime.futures import Future, complete


def check_roots(roots: Sequence[torch.Tensor]) -> None:
    """Raise `AutogradMisuse` for what cannot be the roots of a pass."""
    if not roots:
        raise AutogradMisuse("No tensors provided for gradient computation.")
    for place, root in enumerate(roots):
        name = f"root {place} (shape {tuple(root.shape)}, {root.dtype})"
        if not root.requires_grad:
            raise AutogradMisuse(
                f"requires_grad not set on root: {name} is not computed from anything that requires grad"
            )
        if root.numel() != 1:
            raise AutogradMisuse(f"{name} is not a scalar, all roots need to be scalar. Call sum() or mean() on it")
        if root.grad_fn is None:
            raise AutogradMisuse(f"{name} does not have a valid gradient function: it is a leaf")


def run_pass(
    engine: Engine, context: DistAutogradContext, pass_id: PassId, roots: Sequence[torch.Tensor], retain_graph: bool
) -> None:
    """Run a pass from these roots, and wait for its end on all workers."""
    left, workers = _spread(engine, lambda tally: engine.begin(context, pass_id, roots, retain_graph, tally))
    if not left:
        return
    everywhere = context.context_id, 0

    def mark(tally: Tally) -> None:
        for worker in workers:
            engine.send((worker, 0), everywhere, (MARK, *pass_id, retain_graph, []), tally)

    def settle(tally: Tally) -> None:
        for worker in workers | visited:
            engine.send((worker, 0), everywhere, (SETTLE, *pass_id), tally)

    _, visited = _spread(engine, mark)
    change, _ = _spread(engine, settle)
    if left + change:
        me = engine.info
        why = f"the pass came to rest with {left + change} open item(s) on workers {sorted(workers | visited)}"
        raise BackwardFault(me.name, me.id, "", why)


def _spread(engine: Engine, begin: Callable[[Tally], None]) -> tuple[int, frozenset[int]]:
    """Set something off, and wait until all of it has ended. Raises its error, as it was raised if that was here."""
    future: Future[tuple[int, frozenset[int]]] = Future()

    def done(change: int, workers: frozenset[int], error: BaseException | None) -> None:
        complete(future, None if error else (change, workers), error)

    tally = Tally(done)
    try:
        begin(tally)
    except BaseException as error:
        tally.note(error=error)
    tally.close()
    try:
        return future.wait()
    except BackwardFault as fault:
        if fault.worker_id == engine.info.id and fault.__cause__ is not None:
            raise fault.__cause__ from None
        raise
