"""A linear layer whose weight is built of cores, which replaces ``torch.nn.Linear``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from tngraph.errors import SizeError
from tngraph.language.families.family import Family
from tngraph.layers.compressed import Compressed, settings
from tngraph.layers.recipe import Modes, check_positive, make_recipe
from tngraph.layers.starting import Start, with_modes
from tngraph.plans.plan import Plan
from tngraph.search.orders import Search


class Linear(Compressed):
    """`y = x W^T + b` with a weight of some family: `(*, in_features)` to `(*, out_features)`.

    Args:
        in_features: size of the last axis of the input.
        out_features: size of the last axis of the output.
        bias: whether to add a bias, a parameter `(out_features,)`.
        device: device of the parameters.
        dtype: type of the parameters.
        family: family of the weight: a word, as ``"mpo"``, or a `Family`.
        modes: modes of the rows (inputs) and of the columns (outputs). If they multiply to more than the features, the
            input is padded with zeros and the surplus outputs are dropped.
        sites: number of modes on each side, if the family chooses them.
        sizes: run-time sizes to plan at: ``{"batch": 128}``.
        search: seed and effort of the planning.
        plan: a plan of the network, made before, instead of a new one.
        options: options of the family, as ``bond=8``.

    Raises:
        NetworkError: no such family, or options or modes that it does not take.
        SizeError: features or modes that do not fit.
        PlanError: a plan of another network.

    Example:
        >>> Linear(784, 256, family="mpo", bond=4, modes=((4, 7, 7, 4), (4, 4, 4, 4))).weight.shape
        torch.Size([256, 784])
    """

    arguments = ("in_features", "out_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        family: str | Family = "mpo",
        modes: Modes | None = None,
        sites: int | None = None,
        sizes: Mapping[str, int] | None = None,
        search: Search | None = None,
        plan: Plan | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        recipe = make_recipe(family, (out_features, in_features), 1, modes, sites, options)
        self._build(recipe, bias, device, dtype, sizes, search, plan)

    @classmethod
    def like(cls, linear: nn.Linear, family: str | Family = "mpo", *, fit: Start = False, **options: Any) -> Self:
        """Return a layer with the sizes, bias, device and type of an ordinary one.

        Args:
            linear: the ordinary layer.
            family: family of the weight.
            fit: False for newly drawn parameters; True to fit them to the ordinary weight; inputs `(*, in_features)`,
                or their `Moments`, to make the outputs right on them; or a mapping of arguments of `tngraph.fit`.
            options: keyword arguments of this class. With ``modes="search"`` the modes are those at which the weight
                is truncated with least error, see `tngraph.fitting.modes`.

        Example:
            >>> dense = nn.Linear(64, 64)
            >>> layer = Linear.like(dense, "mpo", bond=8, fit=torch.randn(1000, 64))
        """
        options = with_modes(options, family, linear, fit)
        return cls(**settings(linear, cls.arguments), family=family, **options)._like(linear, fit)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: `(*, in_features)`.

        Returns:
            `(*, out_features)`.

        Raises:
            SizeError: the input has a last axis of another size.
        """
        y = self._leave(self.network(self._enter(input)))
        return y.reshape(*input.shape[:-1], self.out_features)

    def _enter(self, input: Tensor) -> Tensor:
        if input.dim() < 1 or input.shape[-1] != self.in_features:
            raise SizeError(f"the input has shape {tuple(input.shape)}, and Linear takes (*, {self.in_features})")
        return self._pad_channels(input.reshape(-1, self.in_features))

    def to_dense(self) -> nn.Linear:
        """Return an ordinary layer with a copy of this one's weight and bias.

        Raises:
            NetworkError: the family is not linear in its input.
        """
        has_bias = self.bias is not None
        dense = nn.Linear(self.in_features, self.out_features, has_bias, device="meta")
        return cast(nn.Linear, self._to_dense(dense))

    def _shape_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
