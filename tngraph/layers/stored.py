"""The cores of a layer as named tensors: read by name, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tngraph.modules.cores import StoredCore
from tngraph.modules.layer import Layer


class StoresCores(nn.Module):
    """A module whose weight is built of the cores of a compiled network.

    Attributes:
        network: the compiled network, which holds the cores.
    """

    network: Layer

    def cores(self) -> dict[str, StoredCore]:
        """Return the cores by name, each with the names of its legs, as `Layer.cores` does."""
        return self.network.cores()

    def load_cores(self, cores: Mapping[str, Any]) -> None:
        """Copy values into the cores, as `Layer.load_cores` does.

        Raises:
            SizeError: a name that no core has, or values of another shape.
        """
        self.network.load_cores(cores)
