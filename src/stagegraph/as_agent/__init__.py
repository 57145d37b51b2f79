"""A graph where a Pydantic AI agent is expected: as a tool of other agents, and as an agent for the front ends."""

from .agent import graph_agent
from .tool import graph_tool

__all__ = ["graph_agent", "graph_tool"]
