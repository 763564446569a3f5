"""From a network to its plan: the pipeline, its bounds and fronts, planning for time, and what is kept on disk."""
