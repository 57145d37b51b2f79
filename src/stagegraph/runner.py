"""The only executor: models, prompts, limits, and the runs that share them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from typing_extensions import Unpack

from .admission import Admission, Slots
from .asking import by_call
from .errors import DeclarationError, JournalError, NotRunningError, ReplayError
from .event_log import EventLog
from .execution import Terms
from .flow import DEFAULT_LIMIT
from .interrupted import DepsOf
from .journal._rows import Journal, RunRow
from .lifetime import Lifetime
from .limits import Ledger, Limits
from .live import LiveRun
from .models import Models
from .node import Node
from .options import Labels, RunOptions
from .page import RunPage, labels_json
from .prompt import Origin
from .prompts import Prompts
from .recorder import as_json
from .run import Run
from .running import Running
from .stored import stored_run
from .structure import Structure
from .trace import Tracing, by_environment

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from .stage import Stage

__all__ = ["Runner"]

In = TypeVar("In")
Out = TypeVar("Out")

_BUFFERED_EVENTS = 10_000


class Runner:
    """Runs graphs, many at once, on one event loop.

    Args:
        model: The model of every stage that has none of its own: a Pydantic AI model or a name (`openai:gpt-5-mini`,
            `local:smollm2`).
        models: Stage path -> model; goes before every other choice.
        prompts: What is deployed; stages that are not in it keep the code's text.
        max_concurrency: How many model requests of all runs together may be in flight. Graphs hold no slot, so
            nested fan-outs cannot block each other.
        limits: What each run may spend.
        journal: Where runs are recorded, for `resume`, `replay` and looking into them.
        tracing: Where runs are shown; `"auto"` is Langfuse when its keys are in the environment, `None` nowhere.
        fan_out_limit: How many branches of one fan-out run at once unless it says otherwise.
        max_runs: How many runs may go on at once; over it, `run` and `start` raise `BusyError` at once.
        max_queued: How many more may wait for their turn (none, unless this says otherwise).
        drain_seconds: How long `lifespan` waits at the end for the runs that go on.
        resume_interrupted: Whether `lifespan` begins with finishing what a crash or a shutdown interrupted, of the
            graphs that this runner knows (`add`); several processes on one journal take up each run once.
        resume_attempts: How often a run that its process did not survive is taken up; then it is left as failed.

    Use it as an async context manager where it may outlive its runs: leaving the block waits for the runs that were
    started in it, or cancels them when the block failed. In a service, use `lifespan`.
    """

    def __init__(
        self,
        model: Model | str | None = None,
        *,
        models: Mapping[str, Model | str] | None = None,
        prompts: Prompts | None = None,
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
            if value is not None and value < 1:
                msg = f"Runner({name}={value}): at least 1 is needed for anything to run"
                raise DeclarationError(msg)
        self.model = model
        self._models_by_path = dict(models or {})
        self.prompts = prompts or Prompts()
        self.limits = limits or Limits()
        self._fan_out_limit = fan_out_limit
        self.journal = journal
        self.tracing = by_environment() if tracing == "auto" else tracing
        if resume_interrupted:
            self._journal_for("Runner(resume_interrupted=True)")
        self._known: dict[str, Node[Any, Any]] = {}
        """The graphs that ran here by name, so that `resume` finds them."""
        self._added: dict[str, tuple[Node[Any, Any], DepsOf | None]] = {}
        """Those whose interrupted runs are finished here, and what their deps are made by."""
        self._models = Models()
        self._slots = Slots(max_concurrency)
        self._admission = Admission(max_runs, max_queued)
        self.resumes_interrupted = resume_interrupted
        """Whether `lifespan` begins with what was interrupted."""
        self._lifetime = Lifetime(drain_seconds, attempts=resume_attempts if resume_interrupted else 0)

    async def run(
        self,
        node: Node[In, Out],
        input: In | Mapping[str, object],  # noqa: A002 - the name users write
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | None = None,
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
        running = self._open(node, input, model, deps, prompts, None, deltas=False, options=options)
        return cast("Run[In, Out]", await self._lifetime.within(running))

    def start(
        self,
        node: Node[In, Out],
        input: In | Mapping[str, object],  # noqa: A002
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | None = None,
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
        log = EventLog("", _BUFFERED_EVENTS)
        running = self._open(node, input, model, deps, prompts, log, deltas=deltas, options=options)
        log.run_id = running.terms.run_id
        return cast("LiveRun[In, Out]", self._live_run(running, log))

    def _live_run(self, running: Running, log: EventLog) -> LiveRun[Any, Any]:
        live: LiveRun[Any, Any] = LiveRun(running, log)
        self._lifetime.add(live)
        return live

    def live(self, run_id: str) -> LiveRun[Any, Any] | None:
        """A run that was started here and is going on; `None` when it has ended, or was never here."""
        return self._lifetime.get(run_id)

    def add(self, graph: Node[Any, Any], *, deps_of: DepsOf | None = None) -> None:
        """Make a graph known before it runs, so that its interrupted runs can be finished.

        *deps_of* makes their deps out of what is recorded of a run.
        """
        self._known[graph.label] = graph
        self._added[graph.label] = (graph, deps_of)

    @property
    def ready(self) -> bool:
        """Whether new runs may begin: `False` from the moment at which a shutdown is asked for."""
        return self._lifetime.taking

    def lifespan(self, _app: object = None) -> AbstractAsyncContextManager[None]:
        """The life of a service around its runs: `FastAPI(lifespan=runner.lifespan)`, or `async with`.

        At the end, or as soon as the process is told to end, no run may begin any more; those that go on have
        `drain_seconds` to finish. What is not finished then is cancelled, and stays resumable when there is a journal.
        """
        return self._lifetime.span(self)

    def take_up(self, row: RunRow) -> Coroutine[Any, Any, Run[Any, Any]] | None:
        """Finish an interrupted run of the journal, if its graph is known here."""
        found = self._added.get(row.graph)
        return None if found is None else self._finish(row, *found)

    async def _finish(self, row: RunRow, graph: Node[Any, Any], deps_of: DepsOf | None) -> Run[Any, Any]:
        deps = None if deps_of is None else await deps_of(row)
        log = EventLog(row.run_id, _BUFFERED_EVENTS)
        running = await self._reopen(row.run_id, graph, None, False, None, deps, None, None, log, patient=True)
        return running if isinstance(running, Run) else await self._live_run(running, log).result()

    async def resume(
        self,
        run_id: str,
        *,
        graph: Node[Any, Any] | None = None,
        answers: Mapping[str, object] | None = None,
        strict: bool = False,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | None = None,
        limits: Limits | None = None,
    ) -> Run[Any, Any]:
        """Finish a run that a crash, a limit, an error or a question interrupted; a finished run is given back.

        Nothing that was recorded is asked again. What changed since (code, prompts, types) runs again with what depends
        on it, and `Run.rerun` says which calls and why.

        Args:
            run_id: The run, in this runner's journal.
            graph: What ran; needed when this runner has not run it yet.
            answers: What a suspended run asks (`Run.pending`): `Pending.id`, or its tool call id, -> `True`, `False`,
                `ToolDenied(...)` for an approval, the result for an external tool.
            strict: Raise `ReplayError` instead of running a changed call again.

        Raises:
            JournalError: there is no such run, or another living process holds it.
            ReplayError: an answer fits no question, or (strict) the program changed.
            RunError: the run ended without an output again.
        """
        running = await self._reopen(run_id, graph, answers, strict, model, deps, prompts, limits, None)
        return running if isinstance(running, Run) else await self._lifetime.within(running)

    async def start_resume(
        self,
        run_id: str,
        *,
        graph: Node[Any, Any] | None = None,
        answers: Mapping[str, object] | None = None,
        strict: bool = False,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | None = None,
        limits: Limits | None = None,
    ) -> LiveRun[Any, Any]:
        """The same in a task of its own, with events.

        Raises:
            ReplayError: the run is finished already, or an answer fits no question.
            JournalError: there is no such run.
        """
        log = EventLog(run_id, _BUFFERED_EVENTS)
        running = await self._reopen(run_id, graph, answers, strict, model, deps, prompts, limits, log)
        if isinstance(running, Run):
            msg = f"run {run_id!r} is finished; there is nothing to resume"
            raise ReplayError(msg)
        return self._live_run(running, log)

    async def _reopen(  # noqa: PLR0917
        self,
        run_id: str,
        graph: Node[Any, Any] | None,
        answers: Mapping[str, object] | None,
        strict: bool,
        model: Model | str | None,
        deps: object,
        prompts: Prompts | None,
        limits: Limits | None,
        log: EventLog | None,
        *,
        patient: bool = False,
    ) -> Running | Run[Any, Any]:
        journal = self._journal_for("resume")
        row = await journal.run(run_id)
        if row is None:
            msg = f"there is no run {run_id!r} in this journal"
            raise JournalError(msg)
        node = graph or self._known.get(row.graph)
        if node is None:
            msg = f"run {run_id!r} is a run of {row.graph}, which this runner does not know: say `graph={row.graph}()`"
            raise ReplayError(msg)
        recorded = await stored_run(journal, row, node)
        if row.status == "succeeded":
            return recorded
        labels = json.loads(row.labels)
        options: RunOptions = {
            "run_id": run_id,
            "limits": limits,
            "session_id": labels["session_id"],
            "user_id": labels["user_id"],
            "tags": tuple(labels["tags"]),
            "metadata": labels["metadata"],
        }
        given = prompts if prompts is not None else self._recorded_prompts(row, labels)
        page = RunPage(journal, row, claims=True, replays=run_id, strict=strict)
        return self._open(
            node,
            json.loads(row.input),
            model or row.model,
            deps,
            given,
            log,
            deltas=False,
            options=options,
            page=page,
            answers=by_call(recorded.pending, answers or {}),
            patient=patient,
        )

    @staticmethod
    def _recorded_prompts(row: RunRow, labels: dict[str, Any]) -> Prompts | None:
        """What the run began with, if it was chosen for it alone or came from a server."""
        if row.prompts is None:
            return None
        return Prompts.from_json(row.prompts, {path: Origin(*told) for path, told in labels.get("origins", {}).items()})

    def _journal_for(self, what: str) -> Journal:
        if self.journal is None:
            msg = f"{what} needs recorded runs: give the runner one, as in Runner(journal=SqliteJournal('runs.db'))"
            raise DeclarationError(msg)
        return self.journal

    def _open(  # noqa: PLR0917 - `run` and `start` are the same call but for the log
        self,
        node: Node[Any, Any],
        raw: object,
        model: Model | str | None,
        deps: object,
        prompts: Prompts | None,
        log: EventLog | None,
        *,
        deltas: bool,
        options: RunOptions,
        page: RunPage | None = None,
        answers: Mapping[str, Mapping[str, object]] | None = None,
        patient: bool = False,
    ) -> Running:
        self._lifetime.check(options.get("run_id"))
        if not isinstance(node, Node):  # pyright: ignore[reportUnnecessaryIsInstance]
            instance = f"; write {node.__name__}()" if isinstance(node, type) and issubclass(node, Node) else ""
            msg = f"a runner runs graphs, stages and steps, not {node!r}{instance}"
            raise DeclarationError(msg)
        structure = Structure.of(node)
        deployed = prompts if prompts is not None else self.prompts
        deployed.check_known(structure.stages, node.label)
        limits = options.get("limits") or self.limits
        default = model if model is not None else self.model
        self._known[node.label] = node
        terms = Terms(
            run_id=options.get("run_id") or uuid.uuid4().hex,
            deps=deps,
            prompts=deployed,
            model_for=lambda path, stage: self._model_for(path, stage, default, options.get("models") or {}),
            fan_out_limit=self._fan_out_limit,
            slots=self._slots.here(),
            ledger=Ledger(limits) if (limits.requests, limits.tokens, limits.usd) != (None, None, None) else None,
            log=log,
            deltas=deltas,
            tracing=self.tracing,
            answers=answers or {},
        )
        labels = Labels(
            session_id=options.get("session_id"),
            user_id=options.get("user_id"),
            tags=tuple(options.get("tags", ())),
            metadata=MappingProxyType(dict(options.get("metadata") or {})),
        )
        if page is None and (self.journal is not None or options.get("replay") or options.get("override")):
            page = self._new_page(structure, raw, terms, labels, model, prompts, options)
        running = Running(structure, raw, terms, limits, labels, page)
        running.leaves = lambda: not self._lifetime.taking
        running.seat = self._admission.admit(patient=patient)
        return running

    def _new_page(  # noqa: PLR0917
        self,
        structure: Structure,
        raw: object,
        terms: Terms,
        labels: Labels,
        model: Model | str | None,
        prompts: Prompts | None,
        options: RunOptions,
    ) -> RunPage:
        replay = options.get("replay")
        row = RunRow(
            run_id=terms.run_id,
            graph=structure.root.label,
            status="running",
            started=time.time(),
            input=as_json(structure.root.takes, raw),
            prompts_digest=terms.prompts.digest if terms.prompts.settled else "",
            prompts=prompts.to_json() if prompts is not None and prompts.settled else None,
            model=model if isinstance(model, str) else None,
            labels=labels_json(labels.metadata, labels.tags, labels.session_id, labels.user_id),
        )
        return RunPage(
            self._journal_for("replay"),
            row,
            claims=options.get("run_id") is not None,
            replays=replay.id if isinstance(replay, Run) else replay,
            overrides=options.get("override") or {},
        )

    def _model_for(
        self, path: str, stage: Stage[Any, Any], default: Model | str | None, own: Mapping[str, Model | str]
    ) -> Model | None:
        """By path, by stage, by agent, by run or runner: the more particular choice wins."""
        for choice in (own.get(path), self._models_by_path.get(path), stage.model, stage.agent.model, default):
            if choice is not None:
                return self._models.get(choice)
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._lifetime.cancel()
        await self._lifetime.wait()
