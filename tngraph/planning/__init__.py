"""In which order to contract a network, and exactly what that costs."""
