"""What a person or another program looks at: tables in a terminal, records for JSON. Imports no torch."""
