"""A `Plan`: one or more regimes, each of which says how to contract everything in a network.

A plan is data. Each regime holds its stages (merged equations with a tree per term), and the sizes and the request that
the trees were searched for. Everything else is derived: the schedule, every count, the table. Counts are sympy
expressions in all sizes of the network; `Plan.at` turns them into integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tngraph.plans.decision import Decision
from tngraph.plans.differences import PlanDifference, compare_plans
from tngraph.plans.saving import save_plan
from tngraph.plans.table import format_plan


@dataclass(frozen=True, repr=False)
class Plan(Decision):
    """A network with the best order for everything in it, at every size. It prints as a table.

    Attributes:
        regimes: in ascending order of the size they depend on.
        free: the run-time sizes that regimes were searched over. With one, each regime has a range of it; with several,
            the regime of least cost runs.
        unpinned: where an order was pinned by hand, the best plan without the pin at the same sizes.
        measured: where the plan was tuned, the measured times of the candidates it keeps.
    """

    unpinned: Plan | None = None

    def only(self, /, **sizes: int) -> Plan:
        """Return a plan with one regime for all sizes: the one that runs at the given sizes.

        Raises:
            SizeError: see `values`.
        """
        numbers = self.values(**sizes)
        return Plan((self.regime_of(numbers).alone(numbers),))

    def each(self) -> tuple[Plan, ...]:
        """Return each regime as a plan of its own for all sizes."""
        return tuple(Plan((regime.alone(regime.sizes),)) for regime in self.regimes)

    def table(self, /, **sizes: int) -> str:
        """Return the plan as text: totals on top, then one row per step of the regime that runs at these sizes.

        Raises:
            SizeError: see `values`.
        """
        return format_plan(self, self.values(**sizes))

    def __str__(self) -> str:
        return self.table()

    def diff(self, other: Plan, /, **sizes: int) -> PlanDifference:
        """Return how another plan differs, at given sizes, with the others as searched. The result prints as text.

        Raises:
            SizeError: one of the networks does not have a size that is given, or a value is not a positive integer.
            TypeError: `other` is not a plan.
        """
        if not isinstance(other, Plan):
            raise TypeError(f"a plan is compared with a plan, and not with {other!r}")
        return compare_plans(self, other, **sizes)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file that `tngraph.load_plan` reads.

        Raises:
            PlanError: the plan minimises a Python function, which a file cannot hold, or the file cannot be written.
        """
        save_plan(self, path)

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        return Plan, (self.regimes, self.free, self.unpinned, self.measured)

    def __deepcopy__(self, memo: object) -> Plan:
        return self

    def __repr__(self) -> str:
        at = ", ".join(f"{name}={value}" for name, value in self.sizes.items())
        price = self.regime_of(self.sizes).price(self.sizes)
        regimes = f", {len(self.regimes)} regimes" if len(self.regimes) > 1 else ""
        return f"<plan of {self.network.name} at {at or 'fixed sizes'}: cost {price:,}{regimes}>"
