"""Muon: the matrices of the trunk step along their momentum made orthogonal, all else steps by
AdamW.

Jordan et al. 2024 (the method); Liu et al. 2025, arXiv 2502.16982 (eq. 4: the step's size and
weight decay, so that a matrix and AdamW's parameters share one learning rate); Amsel et al. 2025,
arXiv 2505.16932 (the polynomials).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmtok.nn.weight_decay import decay_groups, matrices
from mmtok.train.distributed import is_sharded, shard_like

MOMENTUM = 0.95
BETAS = (0.9, 0.95)
RMS = 0.2  # of a step's entries at learning rate 1: about what AdamW's have
# Five odd polynomials a x + b x^3 + c x^5, each the best one for the singular values that the one
# before it leaves,
# from [0.001, 1] on. In float32: where bfloat16 is emulated it would take a hundred times as long.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
)


class Muon(torch.optim.AdamW):
    """Muon for the matrices of `blocks`, AdamW for every other parameter of `model`.

    A sharded matrix is gathered, made orthogonal in every process alike, and each takes its part.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], lr: float, weight_decay: float
    ):
        chosen = {p for block in blocks for p in matrices(block)}
        others = decay_groups(weight_decay, model)
        for group in others:
            group["params"] = [p for p in group["params"] if p not in chosen]
        super().__init__(others, lr=lr, betas=BETAS, fused=True)
        self.add_param_group(
            {"params": [p for p in model.parameters() if p in chosen], "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of every parameter that has a gradient. The matrices' gradients are used up."""
        group = self.param_groups[-1]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault(p.shape, []).append(p)
        for shape, alike in by_shape.items():  # matrices of one shape are multiplied together
            directions = orthogonal(torch.stack([self._direction(p) for p in alike]))
            size = group["lr"] * RMS * max(shape) ** 0.5
            for p, direction in zip(alike, directions):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(shard_like(direction, p), alpha=size)
                p.grad = None  # AdamW passes over what has none
        super().step(closure)

    def _direction(self, p: Tensor) -> Tensor:
        """The whole matrix of Nesterov's momentum of p's gradients."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        ahead = p.grad.lerp(momentum, MOMENTUM)
        return ahead.full_tensor() if is_sharded(ahead) else ahead


def orthogonal(x: Tensor) -> Tensor:
    """Nearly U V^T of x = U S V^T: matrices (..., N, M) with all singular values that are not tiny
    brought near 1.
    """
    if x.shape[-2] > x.shape[-1]:  # the products are of the smaller side
        return orthogonal(x.mT).mT
    x = x / (1.02 * torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
