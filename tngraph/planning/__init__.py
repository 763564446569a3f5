"""In which order to contract a region: what a step costs, trees, searches, proofs, at every size."""
