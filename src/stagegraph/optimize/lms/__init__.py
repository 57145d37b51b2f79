"""Language models for DSPy: a `dspy.LM` as a Pydantic AI model, and a model as a `dspy.LM`."""
