"""A network and its meaning: values, text, builder, imports, the NumPy reference."""
