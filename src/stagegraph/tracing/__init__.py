"""Runs seen from outside: Langfuse traces, scores and deployed prompts, and what they give for the next training."""

from .langfuse import LangfuseTracing

__all__ = ["LangfuseTracing"]
