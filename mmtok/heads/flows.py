"""Conditional normalising flows: numbers y = f^-1(z; h) with z of N(0, 1), given the state h.

log p(y | h) = log N(f(y; h); 0, 1) + log |det df / dy|, exact, whatever shape the posterior has
(Rezende and Mohamed 2015, arXiv 1505.05770, equation 7). The maps f are zuko's: affine
(Papamakarios et al. 2017, arXiv 1705.07057), then rational-quadratic splines (Durkan et al. 2019,
arXiv 1906.04032). Letters: N rows, D numbers, M model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.diffusion.random import normal_like
from mmtok.errors import UserError, missing_extra
from mmtok.heads.base import Callback, Head, HeadConfig, Known, TrainingTask
from mmtok.heads.densities import LOG_2PI
from mmtok.heads.sampling import Sampling

MAPS = ("spline", "affine")
ORDERS = ("autoregressive", "coupling")


@dataclass(frozen=True)
class NormalisingFlow(HeadConfig):
    """A frame of latents by an invertible map of N(0, 1), given the state before it.

    Attributes:
        maps: "spline": rational-quadratic splines within 5 standard deviations, after one affine
            map; "affine": affine maps alone, of which one is a Gaussian with correlations.
        order: "autoregressive": each number's map depends on those before it, and a draw takes D
            passes; "coupling": those of the second half depend on the first half, two passes. The
            order turns round from map to map.
        n_maps: of splines, or affine maps.
        n_bins: of a spline.
        hidden: width of the two hidden layers of each map's network.
    """

    frames = "continuous latents"

    maps: Literal["spline", "affine"] = "spline"
    order: Literal["autoregressive", "coupling"] = "autoregressive"
    n_maps: int = 3
    n_bins: int = 8
    hidden: int = 64

    def __post_init__(self) -> None:
        for name, least in (("n_maps", 1), ("n_bins", 2), ("hidden", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"NormalisingFlow: {name} is {getattr(self, name)}; it must be at least {least}"
                )
        for name, known in (("maps", MAPS), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"NormalisingFlow: {name} is {getattr(self, name)!r}; it must be one of"
                    f" {', '.join(known)}"
                )

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents that are neither cells nor counts."""
        return bool(signature.latent_size) and not signature.cells and not signature.counts

    def build(self, width: int, signature: Signature) -> NormalisingFlowHead:
        """The head for hidden states of this width and frames of this signature.

        Raises UserError where zuko is not installed.
        """
        return NormalisingFlowHead(self, width, signature)


class NormalisingFlowHead(Head):
    """Frames (N, D), one for each hidden state."""

    def __init__(self, config: NormalisingFlow, width: int, signature: Signature):
        super().__init__(config, signature)
        self.size = signature.latent_size
        self.log_volume = math.fsum(map(math.log, signature.scales))
        self.flow = Flow(config, width, self.size)

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """-log p (N,), in the weights' type, float32, under autocast too.

        In bfloat16 the maps' parameters are off by a percent, and log p by tenths of a nat.
        """
        dtype = next(self.flow.parameters()).dtype
        with torch.autocast(h.device.type, enabled=False):
            z, log_det = self.flow(h.to(dtype), y.to(dtype))
            return self.log_volume - _log_normal(z) - log_det

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Log p(y | h) (N,) in nats, of y in the caller's unit; computed in float64."""
        z, log_det = self._in_float64(h, y)
        return _log_normal(z) + log_det - self.log_volume

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw frames (N, D) in float64; the temperature multiplies z."""
        self._check_guidance(sampling)
        like = hs[0].new_empty((len(hs[0]), self.size), dtype=torch.float64)
        y, _ = self._in_float64(hs[0], sampling.temperature * normal_like(like, generator), True)
        if not bool(torch.isfinite(y).all()):
            raise UserError(
                f"{self.signature.modality}: a draw is NaN or infinite; train again, with a lower"
                " learning rate"
            )
        return y

    def validate(self, sampling: Sampling | None = None, task: TrainingTask | None = None) -> None:
        """As `Head.validate`; guidance is refused."""
        super().validate(sampling, task)
        if sampling is not None:
            self._check_guidance(sampling)

    def _check_guidance(self, sampling: Sampling) -> None:
        if sampling.guidance != 1:
            raise UserError(
                f"{self.signature.modality} is drawn by a flow, which two conditions cannot share;"
                " leave out guidance"
            )

    def _in_float64(self, h: Tensor, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """`Flow.forward` in float64: in float32 inverses of splines lose digits, or are NaN."""
        tensors = dict(self.flow.named_parameters()) | dict(self.flow.named_buffers())
        raised = {name: x.double() for name, x in tensors.items() if x.is_floating_point()}
        return functional_call(self.flow, raised, (h.double(), x.double(), inverse))


class Flow(nn.Module):
    """The map f from y (N, D) to z (N, D), given hidden states (N, M)."""

    def __init__(self, config: NormalisingFlow, width: int, size: int):
        super().__init__()
        try:
            import zuko
        except ImportError:
            raise missing_extra("a normalising flow", "flows") from None

        passes = None
        if config.order == "coupling":
            passes = min(2, size)
        splines = {
            "univariate": zuko.transforms.MonotonicRQSTransform,
            "shapes": [(config.n_bins,), (config.n_bins,), (config.n_bins - 1,)],
        }
        kinds: list[dict[str, Any]] = [{}] * config.n_maps
        if config.maps == "spline":
            kinds = [{}, *[splines] * config.n_maps]
        make = partial(
            zuko.flows.autoregressive.MaskedAutoregressiveTransform,
            size,
            width,
            passes,
            hidden_features=[config.hidden] * 2,
            activation=nn.SiLU,
        )
        maps = [make(_order(size, i), **kind) for i, kind in enumerate(kinds)]
        for each in maps:
            with torch.no_grad():
                for p in each.hyper[-1].parameters():
                    p.mul_(0.1)  # so that training starts near the identity
        self.maps = zuko.lazy.LazyComposedTransform(*maps)
        for module in self.modules():
            if isinstance(module, zuko.nn.Linear):  # of a single number; others are torch's
                module.decaying = ("weight",)

    def forward(self, h: Tensor, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """f(x) and log |det df / dx| (N,), or of f^-1."""
        if not len(x):  # zuko cannot shape nothing; the parameters stay in the graph
            y, log_det = self(F.pad(h, (0, 0, 0, 1)), F.pad(x, (0, 0, 0, 1)), inverse)
            return y[:0], log_det[:0]
        f = self.maps(h)
        if inverse:
            f = f.inv
        return f.call_and_ladj(x)


def _order(size: int, i: int) -> Tensor:
    """The order of the numbers in map i: turned round in every second one."""
    order = torch.arange(size)
    if i % 2:
        return order.flip(0)
    return order


def _log_normal(z: Tensor) -> Tensor:
    """Log p of z (N, D) of N(0, 1): (N,)."""
    return -0.5 * z.square().sum(1) - 0.5 * LOG_2PI * z.shape[1]
