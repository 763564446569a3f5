"""What was decided: plans and how they are made, compared, bounded, kept and shown."""
