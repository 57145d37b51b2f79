"""The only executor: models, prompts, limits, and the runs that share them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from typing_extensions import Unpack

from stagegraph.agent.models import Models, chosen_model
from stagegraph.data.prompts import Prompts, PromptSource
from stagegraph.journal.memory import MemoryJournal
from stagegraph.nodes.branches import DEFAULT_LIMIT
from stagegraph.nodes.node import Node
from stagegraph.record.rows import Journal, RunRow
from stagegraph.record.run import ReplayError, Run
from stagegraph.schema.errors import DeclarationError, NotRunningError
from stagegraph.schema.tracebacks import UserFrames

from .deps import DepsOf, deps_for
from .event_log import EventLog
from .executor import Resources
from .lifetime import Lifetime
from .limits import Limits, Queue, RequestSlots
from .live import LiveRun
from .observer import Tracing, by_environment
from .options import ResumeOptions, RunOptions, RunSpec, check_models, check_options, check_prompts, check_values
from .recorder import new_row
from .recovery import Registry, resumed_spec
from .run import ActiveRun
from .state import RunState

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.stage import Stage

In = TypeVar("In")
Out = TypeVar("Out")

_BUFFERED_EVENTS = 10_000


class Runner:
    """Runs graphs, many at once, on one event loop.

    Args:
        model: The model of every stage that has none of its own: a Pydantic AI model or a name (`openai:gpt-5-mini`,
            `local:smollm2`).
        models: Stage path -> model; goes before every other choice. A path must be that of a stage in a graph that the
            runner knows: it runs it, has run it, or was told of it (`add`).
        prompts: The deployed prompts; stages that are not in them keep the code's text. A `PromptSource` is asked once
            a run.
        max_concurrency: How many model requests of all runs together may be in flight. Graphs hold no slot, so
            nested fan-outs cannot block each other.
        limits: What each run may spend.
        journal: Records runs, for `resume`, `replay` and reading them back.
        tracing: The tracing backend; `"auto"` is Langfuse when its keys are in the environment, `None` is no tracing.
        fan_out_limit: How many branches of one fan-out run at once unless it says otherwise.
        max_runs: How many runs may run at once; above that, `run` and `start` raise `BusyError` immediately.
        max_queued: How many more may wait for their turn (none, unless this says otherwise).
        drain_seconds: How long `lifespan` waits at the end for running runs.
        resume_interrupted: Whether `lifespan` resumes runs that a crash or a shutdown interrupted, before it began or
            while it lasts, of the graphs that this runner knows (`add`), at most `max_runs` at once; of several
            processes on one journal, one resumes each run.
        resume_attempts: How often a run whose process crashed is resumed; after that it fails.

    As an async context manager, leaving the block waits for the runs that were started in it, or cancels them when the
    block raised an exception, and then sends what the tracing has queued, within two seconds. In a service, use
    `lifespan`.
    """

    def __init__(
        self,
        model: Model | str | None = None,
        *,
        models: Mapping[str, Model | str] | None = None,
        prompts: Prompts | PromptSource | None = None,
        max_concurrency: int | None = None,
        limits: Limits | None = None,
        journal: Journal | None = None,
        tracing: Tracing | Literal["auto"] | None = "auto",
        fan_out_limit: int = DEFAULT_LIMIT,
        max_runs: int | None = None,
        max_queued: int | None = None,
        drain_seconds: float = 30.0,
        resume_interrupted: bool = False,
        resume_attempts: int = 3,
    ) -> None:
        counts = {"max_concurrency": max_concurrency, "fan_out_limit": fan_out_limit, "max_runs": max_runs}
        counts["resume_attempts"] = resume_attempts
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int) or value < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
                msg = f"Runner({name}={value!r}): at least 1 is needed for anything to run, as a whole number"
                raise DeclarationError(msg)
        said = {"model": model, "models": models, "prompts": prompts, "limits": limits}
        check_values({**said, "max_queued": max_queued, "drain_seconds": drain_seconds}, "Runner")
        if isinstance(journal, (str, PathLike)):
            msg = f"Runner(journal={journal!r}): write SqliteJournal({str(journal)!r})"
            raise TypeError(msg)
        if isinstance(journal, type):
            msg = f"Runner(journal={journal.__name__}): this is a class; write {journal.__name__}()"
            raise TypeError(msg)
        if tracing not in {None, "auto"} and not callable(getattr(tracing, "open", None)):
            msg = f"Runner(tracing={tracing!r}): write LangfuseTracing(), 'auto' (by the environment) or None"
            raise TypeError(msg)
        self.model = model
        self.models: Mapping[str, Model | str] = dict(models or {})
        self.prompts: Prompts | PromptSource = prompts if prompts is not None else Prompts()
        self.limits = limits or Limits()
        self._fan_out_limit = fan_out_limit
        self.journal = journal
        self.tracing = by_environment() if tracing == "auto" else tracing
        if resume_interrupted:
            self._journal_for("Runner(resume_interrupted=True)")
        self._registry = Registry()
        self._models = Models()
        self._slots = RequestSlots(max_concurrency)
        self._queue = Queue(max_runs, max_queued)
        self.resumes_interrupted = resume_interrupted
        """Whether `lifespan` begins with what was interrupted."""
        self._lifetime = Lifetime(
            drain_seconds, attempts=resume_attempts if resume_interrupted else 0, at_once=max_runs
        )

    async def run(
        self,
        node: Node[In, Out],
        input: In | Mapping[str, object],  # noqa: A002 - the name users write
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | PromptSource | None = None,
        **options: Unpack[RunOptions],
    ) -> Run[In, Out]:
        """Run a graph, or a single stage or step, and wait for its end.

        Args:
            node: What to run.
            input: A value of the input type, or data that validates to one (a dict for a model).
            model: For stages without a model of their own, instead of the runner's.
            deps: Reaches every stage's agent and `current_call().deps`.
            prompts: Instead of the runner's.
            options: See `RunOptions`.

        Raises:
            RunError: the run ended without an output; `error.run` is its partial record. `InputError`: the input does
                not fit; `LimitError`: a limit was reached.
            DeclarationError: *node* is written in a way that cannot work.
            PromptError: the prompts name stages that *node* does not have.
        """
        with UserFrames():
            spec = RunSpec.of("run", node, input, options, model=model, deps=deps, prompts=prompts)
            return cast("Run[In, Out]", await self._lifetime.within(self._open(spec, None)))

    def start(
        self,
        node: Node[In, Out],
        input: In | Mapping[str, object],  # noqa: A002
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | PromptSource | None = None,
        deltas: bool = False,
        **options: Unpack[RunOptions],
    ) -> LiveRun[In, Out]:
        """The same in a task of its own: watch its events, wait for it, cancel it.

        With *deltas*, models stream, and every piece of text is an event.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            msg = (
                "Runner.start() was called where no event loop is running, so there is nothing to run in: "
                "call it in async code, or use `graph.run_sync(...)`"
            )
            raise NotRunningError(msg) from None
        with UserFrames():
            spec = RunSpec.of("start", node, input, options, model=model, deps=deps, prompts=prompts, deltas=deltas)
            return cast("LiveRun[In, Out]", self._start(spec))

    def _start(self, spec: RunSpec, *, patient: bool = False) -> LiveRun[Any, Any]:
        log = EventLog(spec.run_id, _BUFFERED_EVENTS)
        active = self._open(spec, log, patient=patient)
        live: LiveRun[Any, Any] = LiveRun(active, log)
        self._lifetime.add(active, live)
        return live

    def live(self, run_id: str) -> LiveRun[Any, Any] | None:
        """A run that was started here and is still running; `None` when it has ended, or was never here."""
        return self._lifetime.get(run_id)

    def add(self, graph: Node[Any, Any], *, deps_of: DepsOf | Literal["never"] | None = None) -> None:
        """Make a graph known before it runs, so that its interrupted runs can be finished.

        *deps_of*, a plain function or an async one, makes their deps from the recorded row of a run; `"never"` leaves
        those runs alone.

        Raises:
            DeclarationError: another graph of that name was added, or the same one with other deps (a recorded run has
                only the name of its graph); or *deps_of* is no function of one row that returns.
        """
        self._registry.add(graph, deps_of)

    @property
    def ready(self) -> bool:
        """Whether new runs may begin: `False` as soon as a shutdown begins."""
        return self._lifetime.taking

    def lifespan(self, _app: object = None) -> AbstractAsyncContextManager[None]:
        """The life of a service around its runs: `FastAPI(lifespan=runner.lifespan)`, or `async with`.

        At the end, or as soon as the process gets the signal to end, no new run may begin; running runs have
        `drain_seconds` to finish. After that they are cancelled; with a journal they can be resumed.
        """
        return self._service()

    @asynccontextmanager
    async def _service(self) -> AsyncGenerator[None]:
        try:
            async with self._lifetime.span(self.journal, self.take_up):
                yield
        finally:
            if self.tracing is not None:
                await self.tracing.flush()

    def take_up(self, row: RunRow) -> Coroutine[Any, Any, Run[Any, Any]] | None:
        """Finish an interrupted run of the journal, if its graph is known here."""
        found = self._registry.to_finish(row.graph)
        return None if found is None else self._finish(row, *found)

    async def _finish(self, row: RunRow, graph: Node[Any, Any], deps_of: DepsOf | None) -> Run[Any, Any]:
        deps = None if deps_of is None else await deps_for(row, deps_of)
        spec = await self._resumed(row.run_id, {"graph": graph, "deps": deps})
        return spec if isinstance(spec, Run) else await self._start(spec, patient=True).result()

    async def resume(self, run_id: str, **options: Unpack[ResumeOptions]) -> Run[Any, Any]:
        """Finish a run that a crash, a limit, an error or a deferred tool call interrupted; a finished run is returned.

        Recorded answers are not requested again. Calls that changed since (code, prompts, types) run again with what
        depends on them, and `Run.rerun` names them with the reason.

        Args:
            run_id: The run, in this runner's journal.
            options: See `ResumeOptions`: the graph, answers to deferred tool calls, and what is to change.

        Raises:
            JournalError: there is no such run, or another living process holds it.
            ReplayError: an answer fits no deferred tool call, or (strict) the program changed.
            RunError: the run ended without an output again.
        """
        with UserFrames():
            check_options(options, ResumeOptions, "resume")
            spec = await self._resumed(run_id, options)
            return spec if isinstance(spec, Run) else await self._lifetime.within(self._open(spec, None))

    async def start_resume(self, run_id: str, **options: Unpack[ResumeOptions]) -> LiveRun[Any, Any]:
        """The same in a task of its own, with events.

        Raises:
            ReplayError: the run is finished already, or an answer fits no deferred tool call.
            JournalError: there is no such run.
        """
        check_options(options, ResumeOptions, "start_resume")
        spec = await self._resumed(run_id, options)
        if isinstance(spec, Run):
            msg = f"run {run_id!r} is finished; there is nothing to resume"
            raise ReplayError(msg)
        return self._start(spec)

    async def _resumed(self, run_id: str, options: ResumeOptions) -> RunSpec | Run[Any, Any]:
        return await resumed_spec(self._journal_for("resume"), run_id, self._registry.by_name, options)

    def _journal_for(self, what: str) -> Journal:
        if self.journal is None:
            msg = f"{what} needs recorded runs: give the runner one, as in Runner(journal=SqliteJournal())"
            raise DeclarationError(msg)
        return self.journal

    def _open(self, spec: RunSpec, log: EventLog | None, *, patient: bool = False) -> ActiveRun:
        """Check what can be checked before anything runs; a *patient* run waits however long the queue is."""
        self._lifetime.check(spec.run_id)
        node = spec.node
        tree = node.__node__.tree
        prompts = spec.prompts if spec.prompts is not None else self.prompts
        check_prompts(prompts, spec, tree)
        spec.check(tree)
        known, name = self._registry.by_name, node.__node__.name
        if known.get(name) is not node:
            check_models(self.models, node, {**known, name: node}.values())
            known[name] = node
        journal = self._journal_for("replay") if spec.replay else self.journal
        if journal is None and spec.override:
            journal = MemoryJournal()  # overriding an output needs a journal, which ends with the run
        resources = Resources(
            prompts=prompts,
            limits=spec.limits or self.limits,
            runner=self,
            model_for=lambda path, stage, lent: self._model_for(path, stage, spec, lent),
            fan_out_limit=self._fan_out_limit,
            slots=self._slots.here(),
            journal=journal,
            resumable=journal is self.journal,
            tracing=self.tracing,
            draining=lambda: not self._lifetime.taking,
        )
        row = spec.resumed
        segment = 0 if row is None else row.segment + 1
        if row is None and journal is not None:
            row = new_row(spec, node, prompts, resumable=journal is self.journal)
        state = RunState.of(tree, spec.input, prompts if isinstance(prompts, Prompts) else Prompts(), segment)
        return ActiveRun(spec, state, resources, log, row, self._queue.admit(patient=patient))

    def _model_for(self, path: str, stage: Stage[Any, Any], spec: RunSpec, lent: Model | None) -> Model | None:
        default = next((one for one in (spec.model, self.model, lent) if one is not None), None)
        choice = chosen_model(path, stage, of_run=spec.models, of_runner=self.models, default=default)
        return None if choice is None else self._models.get(choice)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._lifetime.cancel()
        await self._lifetime.wait()
        if self.tracing is not None:
            await self.tracing.flush()
