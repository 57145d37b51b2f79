"""The bridge to DSPy: a graph as a module, its stages as predictors, and GEPA as a teleprompter."""
