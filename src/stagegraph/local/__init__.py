"""A small language model inside the process: no key, no server, no network.

It is SmolLM2-135M-Instruct, for trying a graph out and for tests, not for production: it always returns the declared
type, and rarely anything clever.
"""

from ._model import LocalModel, model

__all__ = ["LocalModel", "model"]
