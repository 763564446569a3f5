"""What runs: the operations of a plan in order, the kernels that run them, and what they cost and hold."""
