"""Output for people and programs: tables in a terminal, records for JSON. Imports no torch."""
