"""The bridge to DSPy."""
