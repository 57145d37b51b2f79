"""A graph in the place of a model: the one request of an agent run is a run of the graph.

Each call of a stage or step appears in the response as a tool call, and the output as text.
"""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelResponse, NativeToolCallPart, NativeToolReturnPart, TextPart
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.usage import RequestUsage

from stagegraph.data.events import CallFinished, CallStarted
from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import InputError, LimitError, ReplayError, RunError, stored_run
from stagegraph.schema.errors import BusyError, JournalError, StagegraphError

from .caller import PROVIDER, call_in_run, limits_left, model_of, options, used_since
from .deferred import answers_in, deferred_call
from .input import read_input
from .tool import snake_case

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponseStreamEvent
    from pydantic_ai.settings import ModelSettings

    from stagegraph.data.events import Event
    from stagegraph.record.rows import RunRow
    from stagegraph.record.run import Run
    from stagegraph.runner.calls import Open
    from stagegraph.runner.live import LiveRun
    from stagegraph.runner.runner import Runner

_PROFILE = ModelProfile(supported_native_tools=frozenset())
_SHOWN = 50
"""The calls of one path that a chat shows; those of a wide fan-out beyond it are left out."""
_OUTCOMES: dict[str, Literal["failed", "interrupted"]] = {"failed": "failed", "cancelled": "interrupted"}


class UnboundModel(Model):
    """Holds the place of an agent's model; each agent run replaces it by a `GraphModel`."""

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
        """Raise: other agents cannot use this model."""
        name = self.graph.__node__.name
        msg = f"{name} can only be run by the agent that `{name}().as_agent()` returned"
        raise UserError(msg)


class CalledGraph(UnboundModel):
    """A graph that an agent runs inside a run: a part of that run, which has its events, usage and limits."""

    def __init__(
        self,
        graph: BaseGraph[Any, Any],
        around: Open,
        ctx: RunContext[Any],
        done: Callable[[Any], None],
    ) -> None:
        super().__init__(graph)
        self._around, self._ctx, self._done = around, ctx, done

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Run the graph; the response is its output as text."""
        name = snake_case(self.graph.__node__.name)
        output = await call_in_run(self._around, self.graph, read_input(self.graph, messages), self._ctx, name)
        self._done(output)
        self._ctx.usage.requests -= 1  # the agent counts the response itself as a request
        return ModelResponse([TextPart(output_text(self.graph, output) or " ")], model_name=self.model_name)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The same as a stream with one piece."""
        response = await self.request(messages, model_settings, model_request_parameters)
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        yield CompletedStreamedResponse(response, model_request_parameters=parameters, replay_events=True)


class GraphModel(UnboundModel):
    """A graph with the deps, model and limits of one agent run, to which its usage is added."""

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
        """Run the graph and return the whole response."""
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
        """The same for a front end, which shows the events and the text of an error to people."""
        try:
            async with self._stream(messages, model_settings, model_request_parameters) as stream:
                yield stream
        except StagegraphError as error:
            shown = error if self._errors else _public_error(error, self.graph.__node__.name)
            raise shown from (error if shown is not error else error.__cause__)

    @asynccontextmanager
    async def _stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> AsyncGenerator[StreamedResponse]:
        """Run the graph and stream its events; leaving the context cancels the run."""
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        ctx = self._ctx
        answered = answers_in(messages)
        if answered is None:
            live, before = self._start(messages), None
        else:
            live, before = await self._resume(*answered)
        try:
            yield GraphStream(parameters, self.graph, live, self._done, before, ctx.run_id or live.run_id)
        finally:
            with anyio.CancelScope(shield=True):
                await live.cancel()
            run = live.run
            ctx.usage.incr(used_since(run.usage, before and before.usage))
            if run.status in {"succeeded", "suspended"}:
                ctx.usage.requests -= 1  # the agent counts the response itself as a request

    def _start(self, messages: list[ModelMessage]) -> LiveRun[Any, Any]:
        return self._runner.start(
            self.graph,
            read_input(self.graph, messages),
            model=self._model,
            deps=self._ctx.deps,
            **options(self._ctx, self._runner.limits, self._user),
        )

    async def _resume(self, run_id: str, answers: dict[str, object]) -> tuple[LiveRun[Any, Any], Run[Any, Any]]:
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
        """Whether this user started the run, and it is one of this graph: a client may send any run id."""
        return row.graph == self.graph.__node__.name and row.read_labels().user_id == self._user

    @property
    def _model(self) -> Model | None:
        """The model that the caller chose, if it is not the graph itself."""
        chosen = model_of(self._ctx)
        return None if isinstance(chosen, UnboundModel) else chosen


@dataclass
class GraphStream(StreamedResponse):
    """The events of a run as they happen, and then its output."""

    graph: BaseGraph[Any, Any]
    live: LiveRun[Any, Any]
    done: Callable[[Run[Any, Any]], None]
    before: Run[Any, Any] | None
    """The record of a resumed run; an earlier response has shown its calls."""
    agent_run_id: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        # The stages' usage is added to the agent run's usage, which includes every request.
        self._usage = RequestUsage(cost=Decimal(0))
        self.provider_response_id = self.live.run_id
        self._known = frozenset[str]() if self.before is None else {c.key for c in self.before.calls() if c.ok}
        self._calls: dict[str, int] = {}
        self._open: dict[str, str] = {}

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async with aclosing(cast("AsyncGenerator[Event]", self.live.events())) as events:
            async for event in events:
                part = self._part(event)
                if part is not None:
                    yield self._parts_manager.handle_part(vendor_part_id=None, part=part)
        if self.cancelled:
            return
        run = await self.live.result()
        self.done(run)
        self.finish_reason = "stop" if run.status == "succeeded" else "tool_call"
        for pending in run.pending:
            yield self._parts_manager.handle_part(vendor_part_id=None, part=deferred_call(run.id, pending))
        if run.status == "succeeded":
            # Pydantic AI would ask again after a response without text.
            text = output_text(self.graph, run.output) or " "
            for written in self._parts_manager.handle_text_delta(vendor_part_id="output", content=text):
                yield written

    def _part(self, event: Event) -> NativeToolCallPart | NativeToolReturnPart | None:
        if isinstance(event, CallStarted) and event.kind != "graph" and event.key not in self._known:
            self._calls[event.path] = count = self._calls.get(event.path, 0) + 1
            if count > _SHOWN:
                return None
            name = self._open[event.key] = event.path.replace(".", "_")
            return NativeToolCallPart(
                name, {"call": event.key}, tool_call_id=self._call_id(event.key), provider_name=PROVIDER
            )
        if isinstance(event, CallFinished) and event.key in self._open:
            return NativeToolReturnPart(
                self._open.pop(event.key),
                {"status": event.status, "seconds": round(event.duration, 3)},
                tool_call_id=self._call_id(event.key),
                provider_name=PROVIDER,
                outcome=_OUTCOMES.get(event.status, "success"),
            )
        return None

    def _call_id(self, key: str) -> str:
        return f"{self.agent_run_id}:{key}"

    async def close_stream(self) -> None:
        """Cancel the run: the response has no reader any more."""
        await self.live.cancel()

    @property
    def model_name(self) -> str:
        return self.graph.__node__.name

    @property
    def provider_name(self) -> str:
        return PROVIDER

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.started


def output_text(graph: BaseGraph[Any, Any], output: Any) -> str:
    """An output as the text of a response: JSON where it is not a text."""
    if isinstance(output, str):
        return output
    return json.dumps(graph.__node__.output_type.show(output), indent=2, ensure_ascii=False)


def _public_error(error: StagegraphError, graph: str) -> StagegraphError:
    """An error without the texts of models and stages: where the run failed and what to do."""
    if isinstance(error, (InputError, LimitError)):
        return error  # their texts are about what the caller sent, and about limits
    if isinstance(error, BusyError):
        return BusyError(f"{graph} accepts no more runs now: try again later", retry_after=error.retry_after)
    if isinstance(error, JournalError):
        return JournalError(f"runs of {graph} cannot be recorded now: try again later")
    if not isinstance(error, RunError) or not error.attached:
        return RunError(f"{graph} cannot be resumed like this")
    if error.run.status != "failed":
        return error  # cancelled, or it waits for an answer
    place = next((f" at `{call.key}`" for call in error.failures if call.key), "")
    return RunError(f"{graph} failed{place}", run=error.run)
