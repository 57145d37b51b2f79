"""A graph as an app of its own, with a page on which a person runs it and watches."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import Lifespan

from stagegraph.draw.html import asset, document, element
from stagegraph.nodes.node import Node
from stagegraph.runner.runner import Runner

from .routes import router


def app(graph: Node[Any, Any], runner: Runner, *, lifespan: Lifespan[FastAPI] | None = None, **options: Any) -> FastAPI:
    """The endpoints of a graph and a page on `/` that uses them; *options* are those of `router`.

    A *lifespan* that opens something for the runs enters the runner's own.
    """
    life = lifespan or runner.lifespan
    made = FastAPI(title=graph.__node__.name, version=version("stagegraph"), lifespan=life)
    made.include_router(router(graph, runner, **options))
    text = page(graph)

    @made.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        return HTMLResponse(text, headers={"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"})

    return made


def page(graph: Node[Any, Any]) -> str:
    """One self-contained page: a form for the input, the calls as they happen, and the result."""
    name = graph.__node__.name
    described = inspect.getdoc(graph) if graph.__node__.kind == "graph" and type(graph).__doc__ else None
    style, script, main = (asset("stagegraph.service", f"page.{kind}") for kind in ("css", "js", "html"))
    header = element("header", element("h1", name), element("p", described or ""))
    data = {"name": name, "schema": graph.__node__.input_type.adapter.json_schema()}
    return document(name, header, main, style=style, script=script, data=data, connects=True)
