"""Modules built without memory, whose first values are drawn later, one tensor at a time.

`record` runs a constructor with every tensor that it allocates on the meta device, and writes down
what is done to them. `Record.fill` does it again, in the same order and so with the same random
numbers, and hands each tensor over when it is final. At most a few tensors exist at once, so a
process that keeps only its shard of each needs no memory for the complete module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mmtok.nn.sharded import copy_part

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten
EMPTY = (aten.empty.memory_format, aten.empty_strided.default)
# they replace every number of their first argument, so what it held before is not needed
OVERWRITES = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
    aten.copy_.default,
}


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of a constructor: `run(*args, **kwargs)` gave `results`."""

    run: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    results: Any

    def storages(self) -> set[int]:
        """The meta storages that it reads, writes or makes."""
        return {_storage(x) for x in _metas((self.args, self.kwargs, self.results))}

    def overwrites(self, storage: int) -> bool:
        """Whether it replaces every number of a storage, and reads none of them."""
        if self.run not in OVERWRITES:
            return False
        x, *others = self.args
        n_bytes = x.untyped_storage().nbytes()
        return (
            x.is_meta
            and _storage(x) == storage
            and x.numel() * x.element_size() == n_bytes
            and all(_storage(other) != storage for other in _metas(others))
        )


class _Recorder(TorchDispatchMode):
    """Allocates on the meta device, and keeps the calls that touch what it allocated.

    All random numbers are left for later, so that they are drawn in the constructor's order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        later = bool(_metas((args, kwargs)))
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if not later and (is_random or func in EMPTY):
            if any(isinstance(x, Tensor) for x in tree_leaves((args, kwargs))):
                raise NotImplementedError(f"{func} into a tensor that has values already")
            kwargs["device"] = torch.device("meta")
            later = True
        results = func(*args, **kwargs)
        if later and func not in EMPTY:
            self.calls.append(Call(func, args, kwargs, results))
        return results


@dataclass(frozen=True, eq=False)
class Record:
    """What a constructor did to the tensors of its module.

    Attributes:
        calls: in order.
        tensors: name -> parameter or buffer: on the meta device where its values come later.
    """

    calls: Sequence[Call]
    tensors: Mapping[str, Tensor]

    def fill(self, module: nn.Module) -> None:
        """Write the first values into a module; of sharded tensors this process's part.

        Random numbers come from torch's global generator of the CPU, as in the constructor.
        """
        targets = named_tensors(module)
        for name, x in self.values():
            copy_part(targets[name], x)

    @torch.no_grad()
    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and first value of every tensor; those that are not final yet are kept meanwhile."""
        names: dict[int, list[str]] = {}
        for name, x in self.tensors.items():
            if x.is_meta:
                names.setdefault(_storage(x), []).append(name)
            else:
                yield name, x
        memory: dict[int, Tensor] = {}
        for call, ends in zip(self.calls, self._ends(), strict=True):
            _run(call, memory)
            for storage, final in ends.items():
                if final:
                    for name in names.get(storage, ()):
                        yield name, _real(self.tensors[name], memory)
                memory.pop(storage, None)

    def _ends(self) -> list[dict[int, bool]]:
        """Per call, the storages whose numbers are not needed after it, and whether final."""
        ends: list[dict[int, bool]] = [{} for _ in self.calls]
        last: dict[int, int] = {}
        for i, call in enumerate(self.calls):
            for storage in call.storages():
                if storage in last and call.overwrites(storage):
                    ends[last[storage]][storage] = False
                last[storage] = i
        for storage, i in last.items():
            ends[i][storage] = True
        return ends


def record(build: Callable[[], M]) -> tuple[M, Record]:
    """Run a constructor; returns its module on the meta device, and how to fill it.

    Raises NotImplementedError, or whatever torch does, for a constructor that needs the values of
    what it draws, and for parameters with two names, which would become two parameters.
    """
    with _Recorder() as recorder:
        module = build()
    n_names = sum(1 for _ in module.named_parameters(remove_duplicate=False))
    if n_names > sum(1 for _ in module.parameters()):
        raise NotImplementedError("a parameter with two names")
    tensors = named_tensors(module)
    return module.to("meta"), Record(recorder.calls, tensors)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, also the buffers that are not saved."""
    named = {name: p.detach() for name, p in module.named_parameters()}
    return named | dict(module.named_buffers())


def _run(call: Call, memory: dict[int, Tensor]) -> None:
    """Run a recorded call on the CPU, with the values of its arguments in `memory`."""

    def real(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_meta:
            return _real(x, memory)
        return x

    args, kwargs = tree_map(real, (call.args, dict(call.kwargs)))
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    results = call.run(*args, **kwargs)
    known = {_storage(x) for x in _metas((call.args, call.kwargs))}
    for x, value in zip(tree_leaves(call.results), tree_leaves(results), strict=True):
        if isinstance(x, Tensor) and _storage(x) not in known:
            memory[_storage(x)] = value.new_empty(0).set_(value.untyped_storage())


def _real(x: Tensor, memory: dict[int, Tensor]) -> Tensor:
    """The tensor in memory that a meta tensor stands for."""
    if _storage(x) not in memory:
        n = x.untyped_storage().nbytes() // x.element_size()
        memory[_storage(x)] = torch.empty(n, dtype=x.dtype)
    return memory[_storage(x)].as_strided(x.shape, x.stride(), x.storage_offset())


def _storage(x: Tensor) -> int:
    """What identifies the memory of a tensor, while that exists."""
    return x.untyped_storage()._cdata


def _metas(tree: Any) -> list[Tensor]:
    """The tensors on the meta device in nested arguments."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_meta]
