"""Networks that have been fitted and are to stay as they are."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A copy of a module that is not trained: its parameters are buffers, and it is always in evaluation mode.

    Gradients flow through it to its inputs. It moves to other devices and dtypes and is saved as modules are; what
    trains a pair's parameters, stock Pyro's SVI too, does not see it.

    Args:
        module: any module; it is left alone. Parameters that it shares between layers are copied for each.

    Returns:
        From `forward(...)`: what the module returns.

    >>> import torch
    >>> frozen = Frozen(nn.Linear(2, 3))
    >>> list(frozen.parameters()), sorted(frozen.state_dict())
    ([], ['module.bias', 'module.weight'])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.feature_shape = getattr(module, "feature_shape", None)
        for inner in self.module.modules():
            for name, parameter in list(inner._parameters.items()):
                del inner._parameters[name]
                inner.register_buffer(name, None if parameter is None else parameter.detach().clone())
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, *inputs: Any) -> Any:
        """What the module makes of the inputs."""
        return self.module(*inputs)
