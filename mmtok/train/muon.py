"""The optimiser Muon: the trunk's matrices step along their orthogonalised momentum.

All other parameters step by AdamW.

Jordan et al. 2024 (the method); Liu et al. 2025, arXiv 2502.16982 (eq. 4: the step's size and
weight decay, so that a matrix and AdamW's parameters share one learning rate); Amsel et al. 2025,
arXiv 2505.16932 (the polynomials).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.nn.sharded import full_tensor, shard_like
from mmtok.nn.weight_decay import decay_groups, matrices

MOMENTUM = 0.95
BETAS = (0.9, 0.95)  # of AdamW
RMS = 0.2  # of the entries of a step at learning rate 1, about as AdamW's
# Five odd polynomials a x + b x^3 + c x^5. Each is the best one for the range of singular values
# that the one before it leaves, from [0.001, 1] on. They run in float32: where bfloat16 is emulated
# they would take a hundred times as long.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
)


class Muon(torch.optim.AdamW):
    """Muon for the matrices of `blocks`, AdamW for every other parameter of `model`.

    A sharded matrix is gathered, every process orthogonalises it, and each takes its shard.
    """

    def __init__(
        self, model: nn.Module, blocks: Iterable[nn.Module], lr: float, weight_decay: float
    ):
        by_muon = {p for block in blocks for p in matrices(block) if p.requires_grad}
        by_adamw = decay_groups(weight_decay, model)
        for group in by_adamw:
            group["params"] = [p for p in group["params"] if p not in by_muon]
        super().__init__(by_adamw, lr=lr, betas=BETAS, fused=True)
        in_order = [p for p in model.parameters() if p in by_muon]
        self.add_param_group({"params": in_order, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure's loss
        """One step of every parameter that has a gradient; the matrices' gradients are dropped."""
        group = self.param_groups[-1]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault(p.shape, []).append(p)
        for shape, same_shape in by_shape.items():  # these are multiplied in one batch
            directions = orthogonal(torch.stack([self._momentum(p) for p in same_shape]))
            size = group["lr"] * RMS * max(shape) ** 0.5
            for p, direction in zip(same_shape, directions, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(shard_like(direction, p), alpha=size)
                p.grad = None  # AdamW skips it then
        super().step(closure)

    def _momentum(self, p: Tensor) -> Tensor:
        """Nesterov's momentum of p's gradients, gathered where p is sharded."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        grad = p.grad
        assert grad is not None
        momentum = state["momentum"].lerp_(grad, 1 - MOMENTUM)
        nesterov = grad.lerp(momentum, MOMENTUM)
        return full_tensor(nesterov)


def orthogonal(x: Tensor) -> Tensor:
    """Approximately U V^T of matrices x = U S V^T (..., N, M).

    All singular values that are not tiny come near 1.
    """
    if x.shape[-2] > x.shape[-1]:  # so that the products are of the smaller side
        return orthogonal(x.mT).mT
    x = x / (1.02 * torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
