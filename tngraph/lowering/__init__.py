"""From a plan to PyTorch source: strings only, no torch."""
