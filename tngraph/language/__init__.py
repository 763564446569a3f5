"""What a network is and means: values, text, builder, imports, the NumPy reference."""
