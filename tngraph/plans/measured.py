"""Measured: the time of a call, which a tuned plan records beside the time that the model predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured time of a call beside the time that the model of the machine predicted.

    Attributes:
        device: the device it ran on.
        dtype: the type of its params.
        sizes: the run-time sizes of the call, by name.
        way: the order and the tiles that it ran in.
        model: the predicted time [s].
        seconds: the measured time, the median of several turns [s].
        dense: the time with a dense weight in place of the params, measured in the same run; None where it was not
            measured, because there is no dense weight or it is too large [s].
    """

    device: str
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    way: str
    model: float
    seconds: float
    dense: float | None = None

    @property
    def is_slower_than_dense(self) -> bool:
        """True if a dense weight was measured to be faster."""
        return self.dense is not None and self.dense < self.seconds
