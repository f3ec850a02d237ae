"""The variational mixture of posteriors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.nets import as_size
from pyrovae.priors.aggregated import PosteriorOfInputs

__all__ = ["VampPrior"]


class VampPrior(PosteriorOfInputs):
    r"""The variational mixture of posteriors: p(z) = 1/K sum_k q(z | u_k), with learned pseudo-inputs u_k.

    It shares the encoder's parameters, which get a gradient through p(z) too. What is learned beside them is v, of
    which u is the nearest in the data's range, u = min(max(v, low), high). At the bounds themselves, where binary rows
    start, u has a gradient, which hardtanh and clamp have not; beyond them it has none, as in the paper.

    Args:
        event_shape: shape of one z; an int stands for a vector of that length.
        num_components: K.
        data: rows x (N, *event_shape of x), K of which, drawn without replacement, are the initial pseudo-inputs.
            Without them v ~ N(mean, std^2), element by element.
        mean, std: of that noise. The defaults are the authors' for MNIST; for other data they have means up to 0.8.
        bounds: the range of the data, smallest and largest; None for data without one.
        learn_weights: whether the weights of the components are learned too, and not 1/K.

    Returns:
        From `forward(context=None)`: a `PosteriorMixture` of batch shape () and event shape `event_shape`.

    Raises:
        TypeError: if a size is not an int.
        ValueError: if a size is not positive, there are fewer rows than components, or bounds are not in order.

    Source: Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120, eq. 9; initialisation and the bounds [0, 1] from
    https://github.com/jmtomczak/vae_vampprior (Model.py, utils/load_data.py), which takes the first K rows of shuffled
    data and adds noise to them.

    >>> from functools import partial
    >>> from pyrovae import VAE
    >>> vae = VAE((1, 8, 8), 2, prior=partial(VampPrior, num_components=10))
    >>> vae.prior.inputs().shape, vae.prior().event_shape
    (torch.Size([10, 1, 8, 8]), torch.Size([2]))
    """

    pseudo_inputs: nn.Parameter | None

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_components: int = 500,
        data: Tensor | None = None,
        mean: float = 0.05,
        std: float = 0.01,
        bounds: Sequence[float] | None = (0.0, 1.0),
        learn_weights: bool = False,
    ) -> None:
        super().__init__(event_shape)
        self.num_components = as_size(num_components, "num_components")
        if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise ValueError(
                f"bounds is {tuple(bounds)}, expected the smallest and the largest value of the data; "
                "pass bounds=(0.0, 1.0), or None"
            )
        self.mean, self.std, self.bounds = mean, std, bounds
        logits = torch.zeros(self.num_components)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)
        self.pseudo_inputs = None
        if data is not None:
            if len(data) < self.num_components:
                raise ValueError(
                    f"num_components is {self.num_components}, but data has {len(data)} rows to start them from; "
                    f"pass num_components={len(data)} or fewer, or leave data out"
                )
            rows = data[torch.randperm(len(data), device=data.device)[: self.num_components]]
            self.pseudo_inputs = nn.Parameter(rows.detach().to(logits.dtype))

    def inputs(self) -> Tensor:
        """u, (K, *event_shape of x)."""
        v = self.pseudo_inputs
        assert v is not None
        if self.bounds is None:
            return v
        low, high = self.bounds
        return torch.where(v < low, low, torch.where(v > high, high, v))

    def _accept(self, event_shape: tuple[int, ...]) -> None:
        if self.pseudo_inputs is None:
            self.pseudo_inputs = nn.Parameter(self.mean + self.std * torch.randn(self.num_components, *event_shape))
        super()._accept(event_shape)
