"""A graph in the place of a model: the one request of an agent run is a run of the graph."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.reading import stored_run
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import StagegraphError

from .input import read_input
from .questions import answers_in
from .spent import since
from .stream import PROVIDER, GraphStream
from .terms import limits_left, model_of, options
from .told import told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.settings import ModelSettings

    from stagegraph.journal import RunRow
    from stagegraph.record.run import Run
    from stagegraph.runner.live import LiveRun
    from stagegraph.runner.runner import Runner

__all__ = ["GraphModel", "UnboundModel"]

_PROFILE = ModelProfile(supported_native_tools=frozenset())


class UnboundModel(Model):
    """The name of a graph where an agent has its model; each agent run puts a `GraphModel` in its place."""

    def __init__(self, graph: BaseGraph[Any, Any]) -> None:
        super().__init__(profile=_PROFILE)
        self.graph = graph

    @property
    def model_name(self) -> str:
        """The graph's name."""
        return self.graph.__node__.name

    @property
    def system(self) -> str:
        """`stagegraph`."""
        return PROVIDER

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Refuse: this is no model to give to another agent."""
        msg = f"{self.graph.__node__.name} can only be run by the agent that `{self.graph.__node__.name}().as_agent()` gave"
        raise UserError(msg)


class GraphModel(UnboundModel):
    """A graph with what one agent run gives it: deps, a model, limits; and where its usage goes."""

    def __init__(
        self,
        graph: BaseGraph[Any, Any],
        runner: Runner,
        ctx: RunContext[Any],
        done: Callable[[Run[Any, Any]], None],
        *,
        user: str | None,
        errors: bool,
    ) -> None:
        super().__init__(graph)
        self._user = user
        self._errors = errors
        self._runner = runner
        self._ctx = ctx
        self._done = done

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Run the graph and tell everything at once."""
        async with self._stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
        return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The same to a front end, which shows what happens, and what an error says, to people."""
        try:
            async with self._stream(messages, model_settings, model_request_parameters) as stream:
                yield stream
        except StagegraphError as error:
            shown = error if self._errors else told(error, self.graph.__node__.name)
            raise shown from (error if shown is not error else error.__cause__)

    @asynccontextmanager
    async def _stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> AsyncGenerator[StreamedResponse]:
        """Run the graph and tell what happens; leaving the context ends the run."""
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        ctx = self._ctx
        answered = answers_in(messages)
        if answered is None:
            live, before = self._begin(messages), None
        else:
            live, before = await self._go_on(*answered)
        try:
            yield GraphStream(parameters, self.graph, live, self._done, before, ctx.run_id or live.run_id)
        finally:
            with anyio.CancelScope(shield=True):
                await live.cancel()
            run = live.run
            ctx.usage.incr(since(run.usage, before and before.usage))
            if run.status in {"succeeded", "suspended"}:
                ctx.usage.requests -= 1  # the agent counts the answer itself as a request

    def _begin(self, messages: list[ModelMessage]) -> LiveRun[Any, Any]:
        return self._runner.start(
            self.graph,
            read_input(self.graph, messages),
            model=self._model,
            deps=self._ctx.deps,
            **options(self._ctx, self._runner.limits, self._user),
        )

    async def _go_on(self, run_id: str, answers: dict[str, object]) -> tuple[LiveRun[Any, Any], Run[Any, Any]]:
        journal = self._runner.journal
        row = None if journal is None else await journal.run(run_id)
        if journal is None or row is None or not self._may_answer(row):
            msg = f"there is no run {run_id!r} of {self.graph.__node__.name} here to answer"
            raise ReplayError(msg)
        before = await stored_run(journal, row, self.graph)
        live = await self._runner.start_resume(
            run_id,
            graph=self.graph,
            answers=answers,
            model=self._model,
            deps=self._ctx.deps,
            limits=limits_left(self._ctx, self._runner.limits),
        )
        return live, before

    def _may_answer(self, row: RunRow) -> bool:
        """Whether it is a run of this graph that this user began: a front end sends back what a client made up."""
        return row.graph == self.graph.__node__.name and json.loads(row.labels)["user_id"] == self._user

    @property
    def _model(self) -> Model | None:
        """What the caller chose, if it is not the graph itself."""
        chosen = model_of(self._ctx)
        return None if isinstance(chosen, UnboundModel) else chosen
