"""Plans, which hold the decisions of the planner: they are compared, bounded, saved and shown."""
