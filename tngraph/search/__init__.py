"""The search for contraction orders: what a step costs, trees, searches and proofs, at every size."""
