"""Tracebacks that show the user's code: the frames of the machinery between it and its caller are left out."""

from __future__ import annotations

import os
from types import TracebackType
from typing import cast

_RAISING = frozenset({"anyio", "pydantic_ai", "pydantic_graph"})
"""Hidden libraries that raise errors of their own, whose last frame says where."""
_MACHINERY = _RAISING | {"stagegraph", "asyncio", "contextlib", "pydantic"}


class UserFrames:
    """Around a public door: an error leaves it with the frames of the user's code, in its causes and groups, too.

    The environment variable `STAGEGRAPH_TRACEBACK=full` keeps every frame. This is a class and no generator with
    `@contextmanager`, so that the frame of the door is left out as well.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and os.environ.get("STAGEGRAPH_TRACEBACK") != "full":
            _hide_machinery(error)


def _hide_machinery(error: BaseException) -> None:
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _shown(current.__traceback__)
        pending += [one for one in (current.__cause__, current.__context__) if one is not None]
        if isinstance(current, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", current).exceptions


def _shown(traceback: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    shown = [one for one in frames if _library(one) not in _MACHINERY]
    if frames and _library(frames[-1]) in _RAISING:
        shown.append(frames[-1])
    linked: TracebackType | None = None
    for one in reversed(shown):
        linked = TracebackType(linked, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return linked


def _library(traceback: TracebackType) -> str:
    return str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
