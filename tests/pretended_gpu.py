"""A processor that pretends to have a GPU: its tensors say `meta`, and are computed here all the same.

As on a GPU, tensors of two places do not go together, but for single numbers and copies. What this cannot show
is what CUDA's own kernels do: their speed, their rounding, and what they would refuse. (PyTorch for processors
cannot name `cuda`; of the devices that it can, `meta` is the one that goes with nothing else.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)


class OnGpu(Tensor):
    """A tensor that says that it is on `meta`; `here` has its values."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device="meta",
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """Within it `meta` is a device that computes."""

    def __enter__(self) -> PretendedGpu:
        self._tensor = torch.tensor  # which makes tensors on `meta` past all modes

        def tensor(values: Any, device: Any = None, **options: Any) -> Tensor:
            made = self._tensor(values, **options)
            return made if device is None else made.to(device)

        torch.tensor = tensor  # type: ignore[assignment]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the processor; its result is where a GPU's would be.

    Raises:
        RuntimeError: its tensors are of two places.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnGpu) for tensor in tensors)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.ndim]
    if there and strangers and func not in COPIES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found meta and cpu")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "meta"
        kwargs = {**kwargs, "device": "cpu"}
    if torch.Tag.inplace_view in func.tags and there:  # our tensors have a shape of their own to change
        with no_dispatch():
            func(*args, **kwargs)
    known = {id(_here(tensor)): tensor for tensor in tensors}

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        return known.get(id(result), OnGpu(result) if there else result)

    return tree_map(placed, func(*tree_map(_here, args), **tree_map(_here, kwargs)))


def _here(value: Any) -> Any:
    return value.here if isinstance(value, OnGpu) else value
