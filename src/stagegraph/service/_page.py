"""A graph as an app of its own, with a page on which a person runs it and watches."""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import json
import re
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from stagegraph import Node, Runner

from ._router import router

__all__ = ["app", "page"]


def app(graph: Node[Any, Any], runner: Runner, **options: Any) -> FastAPI:
    """The endpoints of a graph and a page on `/` that uses them; *options* are those of `router`."""
    made = FastAPI(title=graph.__node__.name, version=version("stagegraph"), lifespan=runner.lifespan)
    made.include_router(router(graph, runner, **options))
    text = page(graph)

    @made.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return HTMLResponse(text, headers={"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"})

    return made


def page(graph: Node[Any, Any]) -> str:
    """One self-contained page: a form for the input, the calls as they happen, and the result."""
    assets = files("stagegraph.service")
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    data = json.dumps({"name": graph.__node__.name, "schema": graph.__node__.input_type.adapter.json_schema()})
    described = inspect.getdoc(graph) if graph.__node__.kind == "graph" and type(graph).__doc__ else None
    parts = {
        "title": html.escape(graph.__node__.name),
        "description": html.escape(described or ""),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": data.replace("<", "\\u003c"),  # inside a script element only `<` can end it
    }
    # In one pass, so that nothing that is filled in is taken for a place to fill.
    template = assets.joinpath("page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
