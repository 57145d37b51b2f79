"""The address, the keys and the request headers of a Langfuse project."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from math import isfinite
from urllib.parse import urlsplit

from stagegraph.schema.errors import DeclarationError

_CLOUD = "https://cloud.langfuse.com"
_TIMEOUT = 5.0
_ENVIRONMENT = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")


@dataclass(frozen=True, slots=True)
class Connection:
    """One Langfuse project."""

    public_key: str
    secret_key: str = field(repr=False)
    base_url: str
    environment: str
    release: str | None
    timeout: float
    """Seconds that one request may take."""

    @classmethod
    def of(
        cls,
        public_key: str | None = None,
        secret_key: str | None = None,
        base_url: str | None = None,
        environment: str | None = None,
        release: str | None = None,
    ) -> Connection:
        """The arguments, and Langfuse's own environment variables for those that are `None`.

        Raises:
            DeclarationError: a key is missing, or the address or the environment is not valid.
        """
        env = os.environ
        public = (public_key or env.get("LANGFUSE_PUBLIC_KEY") or "").strip()
        secret = (secret_key or env.get("LANGFUSE_SECRET_KEY") or "").strip()
        if not public or not secret:
            msg = (
                "Langfuse needs two keys: set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY, "
                "or pass `public_key=` and `secret_key=`"
            )
            raise DeclarationError(msg)
        url = (base_url or env.get("LANGFUSE_BASE_URL") or env.get("LANGFUSE_HOST") or _CLOUD).strip().rstrip("/")
        if not _is_address(url):
            msg = (
                f"{url!r} is not an address: write `base_url=` or LANGFUSE_BASE_URL with http:// or https:// "
                f"and a host, like {_CLOUD}"
            )
            raise DeclarationError(msg)
        name = environment or env.get("LANGFUSE_TRACING_ENVIRONMENT") or "default"
        if not is_environment(name.strip().lower()):  # the server would put the traces into `default` in its place
            msg = (
                f"the environment {name!r} is not valid: `environment=` or LANGFUSE_TRACING_ENVIRONMENT has at most 40 "
                "of the characters a-z, 0-9, - and _, and does not begin with langfuse"
            )
            raise DeclarationError(msg)
        release, timeout = release or env.get("LANGFUSE_RELEASE") or None, _timeout(env.get("LANGFUSE_TIMEOUT"))
        return cls(public, secret, url, name.strip().lower(), release, timeout)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request to the ingestion endpoints."""
        token = base64.b64encode(f"{self.public_key}:{self.secret_key}".encode()).decode("ascii")
        return {
            "Authorization": f"Basic {token}",
            "x-langfuse-sdk-name": "python",
            "x-langfuse-sdk-version": sdk_version(),
            "x-langfuse-public-key": self.public_key,
            "x-langfuse-ingestion-version": "4",
        }


def is_environment(text: str) -> bool:
    """Whether the server takes a text for the name of an environment as it is."""
    return _ENVIRONMENT.fullmatch(text) is not None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port, or an address in brackets
        return False


def _timeout(text: str | None) -> float:
    try:
        seconds = float(text or _TIMEOUT)
    except ValueError:
        return _TIMEOUT
    return seconds if isfinite(seconds) and seconds > 0 else _TIMEOUT


@cache
def sdk_version() -> str:
    """The version of the installed `langfuse` package, whose attributes and requests ours are."""
    return version("langfuse")
