"""A processor that pretends to have a GPU: its tensors say `cuda`, and are computed here all the same.

As on a GPU, tensors of two places do not go together, but for single numbers and copies. What this cannot show
is what CUDA's own kernels do: their speed, their rounding, and what they would refuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)


class OnGpu(Tensor):
    """A tensor that says that it is on `cuda:0`; `here` has its values."""

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
            device="cuda:0",
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """Within it `cuda` can be used. Autograd must not have run before in this process."""

    def __enter__(self) -> PretendedGpu:
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device="cuda") goes past us
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the processor; its result is where a GPU's would be.

    Raises:
        RuntimeError: its tensors are of two places.
    """
    if func is aten._use_cudnn_ctc_loss.Tensor:
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnGpu) for tensor in tensors)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.ndim]
    if there and strangers and func not in COPIES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda and cpu")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "cuda"
        kwargs = {**kwargs, "device": "cpu"}
    known = {id(_here(tensor)): tensor for tensor in tensors}

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        return known.get(id(result), OnGpu(result) if there else result)

    return tree_map(placed, func(*tree_map(_here, args), **tree_map(_here, kwargs)))


def _here(value: Any) -> Any:
    return value.here if isinstance(value, OnGpu) else value
