"""Graphs behind HTTP: typed endpoints, live events, cancellation, answers and feedback (extra `service`).

`Hook` is the type of `router(user=, session=, deps=)`: a FastAPI dependency. `Policy` is that of `router(policy=)`: a
function of the user who asks and the `RunRef` of the run, which returns whether the user may see it.
"""

from stagegraph.schema.docs import document as _document
from stagegraph.schema.errors import needs_extra as _needs_extra

with _needs_extra("service", "stagegraph.service", "fastapi", "starlette"):
    from .access import Policy, RunRef
    from .routes import Hook, router
    from .standalone import app, page

__all__ = ["Hook", "Policy", "RunRef", "app", "page", "router"]

_document([RunRef])
