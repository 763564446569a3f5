"""The text of a network: its grammar and scanner, what statements mean, names, arithmetic, and the way back."""
