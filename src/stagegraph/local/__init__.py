"""A small language model inside the process: no key, no server to manage, no network.

It is SmolLM2-135M-Instruct, for trying a graph out and for tests, not for production: it always returns the declared
type, and rarely a good answer.
"""

from stagegraph.schema.errors import MissingPackageError as _MissingPackageError

from .engine import INSTALL

try:
    from .model import LocalModel, model
except ModuleNotFoundError as error:
    msg = f"local models need the package openai, which cannot be imported ({error}): {INSTALL}"
    raise _MissingPackageError(msg) from error

__all__ = ["LocalModel", "model"]
