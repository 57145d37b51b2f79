"""Graphs behind HTTP: typed endpoints, live events, cancellation, answers and feedback (extra `service`)."""

from stagegraph.schema.errors import needs_extra as _needs_extra

with _needs_extra("service", "stagegraph.service", "fastapi", "starlette"):
    from .access import Policy, RunRef
    from .routes import router
    from .standalone import app, page

__all__ = ["Policy", "RunRef", "app", "page", "router"]
