"""Graphs behind HTTP: typed endpoints, live events, cancellation, answers and feedback (extra `service`)."""

from ._access import Policy, RunRef
from ._page import app, page
from ._router import router

__all__ = ["Policy", "RunRef", "app", "page", "router"]
