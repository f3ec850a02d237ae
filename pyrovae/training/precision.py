"""What `fit(precision=)` means.

| precision | parameters, gradients, optimizer | matrix products | samples, log-probabilities, KLs and their sums |
|---|---|---|---|
| `None` | as they come | as they come | as they come |
| `"float32"` | float32 | float32 | float32 |
| `"float64"` | float64 | float64 | float64 |
| `"tf32"` | float32 | float32 with a mantissa of 10 bits, where the hardware has that | float32 |
| `"bfloat16"` | float32 | bfloat16, by autocast; sums inside each in float32 | float32 |

The last entry holds for the library's conditionals and objectives. A user's own program under autocast computes each
site as its dtypes say, the sum over the dims of an event included, and the library's objectives add up the sites,
particles and rows in float32. Pyro's own objectives add them up in the dtype in which they come, and sum enumerated
sites in matrix products, which autocast makes bfloat16. `"float32"` and `None` leave torch's settings alone, by which
cuDNN's convolutions are in TF32 on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["default_dtype", "tensor_float32"]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """New tensors of a user's program in a dtype, or for None in torch's own; as before afterwards."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(before if dtype is None else dtype)
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Matrix products of float32 on TF32 units, where the hardware has them; the settings as before afterwards.

    Args:
        enabled: False changes nothing.

    >>> with tensor_float32(True):
    ...     torch.get_float32_matmul_precision()
    'high'
    """
    if not enabled:
        yield
        return
    # torch has one older setting, and newer ones for each backend, which the older one sets but does not set back.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used the newer ones, with which the older one refuses to be mixed
        older = None
    try:
        if older is not None:
            torch.set_float32_matmul_precision("high")
        else:
            for backend in backends:
                backend.fp32_precision = "tf32"
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
