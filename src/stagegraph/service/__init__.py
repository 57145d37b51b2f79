"""Graphs behind HTTP: typed endpoints, live events, cancellation, answers and feedback (extra `service`)."""

from .access import Policy, RunRef
from .routes import router
from .standalone import app, page

__all__ = ["Policy", "RunRef", "app", "page", "router"]
