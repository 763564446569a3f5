"""The schedule of a plan's operations, the kernels that run them, and what they cost and hold."""
