"""Runs that leave no trace in tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Undone"]


class Undone(TorchDispatchMode):
    """Whatever tensors a block changes in place have their old values after it, and the new ones after `again()`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for argument, value in zip(function._schema.arguments, args, strict=False):
            # Batch norm's operations do not say that they change their statistics.
            if argument.name.startswith("running_") or (argument.alias_info and argument.alias_info.is_write):
                for tensor in pytree.tree_leaves(value):
                    if isinstance(tensor, Tensor):
                        self._keep(tensor.untyped_storage())
        return function(*args, **(kwargs or {}))

    def _keep(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() not in self.kept:
            with disable_proxy_modes_tracing():
                self.kept[storage.data_ptr()] = (storage, storage.clone())

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.again()

    def again(self) -> None:
        """Exchange the values of now for the others."""
        for key, (storage, other) in self.kept.items():
            self.kept[key] = (storage, storage.clone())
            storage.copy_(other)
