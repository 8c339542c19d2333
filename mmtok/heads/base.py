"""The contract of heads: what fills in a frame or a segment, given the decoder's hidden state.

A modality whose frames are single codes needs no head: the decoder's softmax over ids is enough.
All other modalities need one to be written, and are input-only without it. Letters: N frames, or
segments for non-autoregressive heads; M model width; T frames of a segment; C channels; D latent
size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mmtok.core.runs import SetPlaces
from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling, check_settings

Kind = Literal["exact", "bound", "estimate"]
"""What -log_prob is: the exact -log p, an upper bound on it (in expectation), or an estimate."""

Callback = Callable[[int, Tensor], None]
"""callback(step, x) after each denoising step; steps count from 0.

x is the next frame (N, D) for autoregressive heads, all frames (N, T, C or D) for the others.
"""


class TrainingTask(Protocol):
    """What a head needs to know of a task that it is trained for (`mmtok.data.tasks.Task`)."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields that the task conditions on."""

    @property
    def cond_dropout(self) -> float:
        """Share of documents trained without their condition."""

    @property
    def infill(self) -> float:
        """Share of documents trained with a span to infill."""

    @property
    def max_target_frames(self) -> int:
        """Where targets are cut off; 0: nowhere."""


@dataclass(frozen=True, eq=False)
class Known:
    """Segments of which some frames are known: values (N, T, C or D), free (N, T) bool.

    The free frames are to be drawn; their values are not read, but for the last numbers of each
    element of a set that its signature says are given.
    """

    values: Tensor
    free: Tensor


class HeadConfig(ABC):
    """Base of a head's settings, which are a frozen dataclass.

    Attributes:
        kind: what the head's log-probabilities are.
        autoregressive: True: the head fills in one frame from the state before it. False: it fills
            in all frames of a segment of fixed length from the state at its begin mark.
        frames: the frames that the head can fill in, in words.
        of_sets: the head is a `SetHead`: it fills in sets of any number of frames.
    """

    kind: ClassVar[Kind] = "exact"
    autoregressive: ClassVar[bool] = True
    frames: ClassVar[str] = "any frames"
    of_sets: ClassVar[bool] = False

    @property
    def reads_context(self) -> bool:
        """Whether a head of sets reads all positions before a set; see `Context`."""
        return False

    @property
    def loss_kind(self) -> Kind:
        """What the head's loss is of -log p."""
        return self.kind

    @property
    def loss_name(self) -> str:
        """What the head's loss is called where it is no -log p and no bound of it."""
        return "training loss"

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Whether the head can fill in frames of this signature."""
        return True

    @abstractmethod
    def build(self, width: int, signature: Signature) -> Head:
        """The head for hidden states of this width and frames of this signature.

        Raises UserError for a signature that does not fit.
        """


class Head(nn.Module, ABC):
    """A distribution over frames y given hidden states h (N, M).

    y is (N, C) long or (N, D) for autoregressive heads, (N, T, C) or (N, T, D) for the others.
    Heads of sets (`SetHead`) are told how many of the T frames each set has.

    ceiling: only where frames are a set (`Signature.descending`): the frame before each (N, C),
    which the next one may not exceed in lexicographic order.
    """

    settings: ClassVar[frozenset[str]] = frozenset()
    """The special sampling settings that it knows, of those in `mmtok.heads.sampling.REFUSALS`."""

    draws_by_row: ClassVar[bool] = False
    """Whether `sample` takes `mmtok.diffusion.random.RowGenerators`, a generator for each row."""

    can_be_captured: ClassVar[bool] = False
    """Whether `sample` never asks the device for an answer, so that a CUDA graph can hold it."""

    def __init__(self, config: HeadConfig, signature: Signature):
        super().__init__()
        check_fit(config, signature)
        self.config = config
        self.signature = signature

    @property
    def kind(self) -> Kind:
        """What -log_prob is."""
        return self.config.kind

    @property
    def loss_kind(self) -> Kind:
        """What `loss` is of -log p, for the log of a training."""
        return self.config.loss_kind

    @property
    def loss_is_positive(self) -> bool:
        """Whether `loss` is never negative; -log of a density may be."""
        is_density = bool(self.signature.latent_size) and not self.signature.counts
        return not is_density or self.loss_kind == "estimate"

    @property
    def no_score(self) -> str:
        """Why `log_prob` refuses, whatever it is asked; "" where it does not."""
        return ""

    @property
    def autoregressive(self) -> bool:
        """Whether it fills in one frame at a time; else all frames of a segment."""
        return self.config.autoregressive

    @abstractmethod
    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """What training lowers, (N,): -log p where it is exact; else a bound or another loss.

        Random draws come from torch's global generator. With N = 0 every parameter must still be
        in the graph.
        """

    @abstractmethod
    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Log p(y | h) in nats, or what `kind` says: (N,).

        generator: of the random draws of bounds and estimates.
        """

    @abstractmethod
    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw y, shaped as above.

        Args:
            hs: Hidden states (N, M): one tensor, or under guidance two, with the condition and
                without it.
            sampling: The settings; `validate` has seen them.
            generator: Of all random draws.
            known: For non-autoregressive heads the segments to fill in; None: all is free.
            callback: Called after each denoising step; heads that take no steps ignore it.
            ceiling: As in the class's docstring.

        Raises:
            UserError: For known frames that the head cannot keep, and for a network that returns
                NaN or infinity.
        """

    def validate(self, sampling: Sampling | None = None, task: TrainingTask | None = None) -> None:
        """Raise UserError, in one line, for settings or for a task that the head cannot serve."""
        modality = self.signature.modality
        if sampling is not None:
            check_settings(sampling, self.settings, modality)
        if task is None or self.autoregressive:
            return
        for name in ("infill", "max_target_frames"):
            value = getattr(task, name)
            if value:
                raise UserError(
                    f"task {task}: its {name} is {value}, but {type(self.config).__name__} fills"
                    f" in all frames of {modality} at once: in training such segments can neither"
                    f" be cut short nor infilled; set {name} to 0"
                )

    def n_steps(self, sampling: Sampling, n_missing: int) -> int:
        """How often `sample` calls back, when n_missing frames are to be drawn; 0: never."""
        return 0

    def task_notes(self, task: TrainingTask) -> list[str]:
        """What a user should know of training this head for the task, in one line each."""
        return []

    def data_notes(self, segments: Iterable[Tensor]) -> list[str]:
        """What does not fit in latents (T, D) that it is to learn, in one line each.

        The segments are read only by heads that have something to check.
        """
        return []


@dataclass(frozen=True, eq=False)
class Sizes:
    """How many frames N sets have.

    Attributes:
        n_frames: (N,) long.
        truncated: (N,) bool: the set has more elements than these frames.
    """

    n_frames: Tensor
    truncated: Tensor

    def mask(self, longest: int) -> Tensor:
        """(N, longest) bool: where frames are, the first ones of each row."""
        places = torch.arange(longest, device=self.n_frames.device)
        return places < self.n_frames[:, None]


@dataclass(frozen=True, eq=False)
class Context:
    """What N sets are given, position by position: the decoder's states before each.

    Attributes:
        states: (N, L, M); the last one of each is that at the set's begin mark.
        mask: (N, L) bool: where states are, the first ones of each row.
    """

    states: Tensor
    mask: Tensor

    @classmethod
    def before(cls, hidden: Tensor, first: Tensor, sets: SetPlaces) -> Context:
        """The states of each document before its set, of all states hidden (B L, M).

        first (N,): the place behind the set's begin mark.
        """
        order = torch.arange(sets.longest_before, device=first.device)
        places = (first - sets.n_before)[:, None] + order
        # what is beyond the begin mark is not read: any place will do
        places = torch.minimum(places, first[:, None] - 1)
        states = hidden[places]
        # positions that an encoder has left out have the state 0
        return cls(states, (order < sets.n_before[:, None]) & states.any(-1))

    @property
    def last(self) -> Tensor:
        """(N, M): the states at the sets' begin marks."""
        return self.states[
            torch.arange(len(self.mask), device=self.mask.device), self.mask.sum(1) - 1
        ]

    def rows(self, chosen: Tensor) -> Context:
        """That of some of the sets."""
        return Context(self.states[chosen], self.mask[chosen])


class SetHead(Head):
    """A distribution over sets of frames, their number included.

    y is (N, P, D), P the frames of the largest set; what stands behind a set's own frames is not
    read. p is of the set, whatever the order of its frames: the sum over all orders.

    context, contexts: where the config says `reads_context`, what h and hs are the last states of.
    """

    @abstractmethod
    def loss(
        self,
        h: Tensor,
        y: Tensor,
        ceiling: Tensor | None = None,
        *,
        sizes: Sizes | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """As `Head.loss`, of sets of these sizes: (N,)."""

    @abstractmethod
    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
        *,
        sizes: Sizes | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Log p(y | h) of sets of these sizes, their number of frames included: (N,)."""

    def check_training(self, sizes: Sizes) -> None:
        """Raise UserError, in one line, for sizes of training sets that the head cannot learn."""

    @abstractmethod
    def sample_sizes(
        self, hs: Sequence[Tensor], sampling: Sampling, generator: torch.Generator
    ) -> Sizes:
        """Draw how many frames each set has."""

    @abstractmethod
    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
        *,
        sizes: Sizes | None = None,
        contexts: Sequence[Context] = (),
    ) -> Tensor:
        """Draw sets of these sizes (N, P, D); None: of sizes that it draws.

        NaN stands behind the last frame of each.
        """


def check_fit(config: HeadConfig, signature: Signature) -> None:
    """Raise UserError for a signature whose frames the head cannot fill in."""
    if config.fits(signature):
        return
    if signature.latent_size:
        frames = "latents"
    elif signature.one_channel:
        frames = "single codes"
    else:
        frames = f"codes of {len(signature.levels)} channels"
    if signature.frames is None:
        frames += " until an end mark"
    raise UserError(
        f"{type(config).__name__} fills in {config.frames}, but {signature.modality} has {frames}"
    )


def with_frames(
    callback: Callback | None, to_frames: Callable[[Tensor], Tensor], first_step: int = 0
) -> Callback | None:
    """A callback that is given to_frames(x), and steps that count from first_step; None: None."""
    if callback is None:
        return None

    def called(step: int, x: Tensor) -> None:
        callback(first_step + step, to_frames(x))

    return called


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise the diffusion room's ValueError and FloatingPointError as UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FloatingPointError) as error:
        raise UserError(str(error)) from None
