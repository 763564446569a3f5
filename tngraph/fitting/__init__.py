"""Fitting: the params of a network that make it stand for a trained weight, a layer or a function."""
