"""A graph where Pydantic AI expects an agent: as a tool of other agents, and as an agent for front ends."""

from .agent import AgentOptions, graph_agent
from .tool import graph_tool

__all__ = ["AgentOptions", "graph_agent", "graph_tool"]
