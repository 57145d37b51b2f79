"""One run and its journal: the run's row, a row of each call, and recorded outputs that are not computed again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from stagegraph.agent.durable import DurableOperations
from stagegraph.data.call import dump_pending
from stagegraph.data.prompts import Prompts
from stagegraph.data.usage import USAGE, ModelUse
from stagegraph.journal.owner import this_process
from stagegraph.record.rows import CallRow, Journal, Labels, Recorded, RunRow
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import JournalError, closest
from stagegraph.schema.serialize import json_of

from .identity import ReplayCache
from .recovery import counted
from .state import total

if TYPE_CHECKING:
    from stagegraph.data.prompt import Prompt
    from stagegraph.data.prompts import PromptSource
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

    from .identity import NodeKey
    from .options import RunSpec
    from .state import CacheKey, CallState, RunState

MISSING: Any = object()


class Announced(NamedTuple):
    """The events of a call before its run was resumed; -1 where there was none."""

    start_event: int = -1
    end_event: int = -1
    """Only where it succeeded."""


_NOTHING = Announced()


def _announced(calls: Iterable[CallRow]) -> dict[str, Announced]:
    """What was said of each call by its key, and of each fan-out by its branches' keys up to the index."""
    found: dict[str, Announced] = {}
    for row in sorted(calls, key=lambda row: row.start_event, reverse=True):
        done = row.status in {"succeeded", "running"}  # a graph that runs again has the event of its first end
        found[row.key] = Announced(row.start_event, row.end_event if done else -1)
        for place, letter in enumerate(row.key):
            if letter == "[":
                found[row.key[: place + 1]] = Announced(row.start_event)
    return found


_LARGEST = 2**63 - 1
"""The largest integer that a journal file can hold; a provider that reports more tokens is wrong."""


def new_row(spec: RunSpec, node: Node[Any, Any], prompts: Prompts | PromptSource) -> RunRow:
    """The row of a run that begins.

    Raises:
        DeclarationError: the metadata cannot be recorded.
    """
    own = spec.prompts if isinstance(spec.prompts, Prompts) else None
    models = {path: model for path, model in spec.models.items() if isinstance(model, str)}
    labels = Labels(
        metadata=spec.metadata,
        tags=spec.tags,
        session_id=spec.session_id,
        user_id=spec.user_id,
        models=models,
        override=to_jsonable_python(dict(spec.override), fallback=str),
    )
    return RunRow(
        run_id=spec.run_id,
        graph=node.__node__.name,
        status="running",
        started=time.time(),
        input=node.__node__.input_type.as_json(spec.input),
        prompts_digest=prompts.digest if isinstance(prompts, Prompts) else "",
        prompts=own.to_json() if own is not None else None,
        model=spec.model if isinstance(spec.model, str) else None,
        labels=labels.to_json(),
    )


def with_deployed(row: RunRow, prompts: Prompts) -> RunRow:
    """The row with prompts that came from a server, so that the run continues with the same when it is resumed."""
    origins = {path: (origin.name, origin.version) for path, origin in prompts.origins.items()}
    labels = replace(row.read_labels(), origins=origins).to_json()
    return replace(row, prompts=prompts.to_json(), prompts_digest=prompts.digest, labels=labels)


class Recorder:
    """Records one run, and recalls what was recorded before."""

    def __init__(
        self,
        journal: Journal,
        row: RunRow,
        spec: RunSpec,
        state: RunState,
        *,
        cache: ReplayCache,
        before: Mapping[str, Announced],
    ) -> None:
        self._journal = journal
        self._row = row
        self._spec = spec
        self._continues = spec.resumed is not None
        """Whether the recorded run itself is resumed; another run that replays it has spent nothing."""
        self._state = state
        self._cache = cache
        self._before = before
        self._overridden: set[str] = set()
        self._prompts: dict[str, str] = {}
        """Path -> JSON of the prompt in force."""

    @classmethod
    async def open(cls, journal: Journal, row: RunRow, spec: RunSpec, state: RunState) -> Recorder:
        """Take the run for this process, and read the run that it resumes or replays.

        Raises:
            JournalError: the id is taken, another living process holds the run, or there is no run to replay.
        """
        mine = counted(row) if spec.resumed is not None else row
        mine = replace(mine, status="running", owner=this_process(), error=None, error_type=None)
        if spec.own_id:
            await journal.claim(mine, fresh=spec.resumed is None, take_over=spec.take_over)
        else:
            journal.put_soon(mine)
        before: Mapping[str, Announced] = {}
        if spec.resumed is not None:
            calls = await journal.calls(spec.run_id)
            cache, before = ReplayCache(calls, await journal.ops(spec.run_id)), _announced(calls)
        elif spec.replay is not None:
            if await journal.run(spec.replay) is None:
                msg = f"there is no run {spec.replay!r} in this journal to replay"
                raise JournalError(msg)
            cache = ReplayCache(await journal.calls(spec.replay))
        else:
            cache = ReplayCache()
        return cls(journal, mine, spec, state, cache=cache, before=before)

    async def close(self, run: Run[Any, Any], *, left: bool) -> None:
        """Record how the run ended and release it; a run that is *left* continues as soon as a process resumes it."""
        usage, cost = total(self._state.calls.values())
        output_type = run.tree.root.__node__.output_type
        await self._journal.put(
            replace(
                self._row,
                status="running" if left else run.status,
                duration=time.time() - self._row.started,
                output=output_type.as_json(run.output) if run.status == "succeeded" else None,
                error_type=run.error.type if run.error is not None else None,
                error=run.error.message if run.error is not None else None,
                requests=min(usage.requests, _LARGEST),
                input_tokens=min(usage.input_tokens, _LARGEST),
                output_tokens=min(usage.output_tokens, _LARGEST),
                cost=None if cost is None else str(cost),
                owner=None,
            )
        )

    def announced(self, key: str) -> Announced:
        """What was said of a call, or of a fan-out (`build[`), before the run was resumed."""
        return self._before.get(key, _NOTHING)

    def begin(self, call: CallState) -> None:
        """Record that a graph was called, so that others see a run that is still running."""
        self._journal.put_soon(self._call_row(call))

    def recalled(self, call: CallState, node_key: NodeKey, prompt: Prompt | None) -> tuple[Any, Recorded | None]:
        """The output that a leaf call need not compute, or `MISSING`; and what was recorded inside the call.

        Raises:
            ReplayError: in strict mode, when the call differs from the one that was recorded with its key.
        """
        key = call.key
        if key in self._spec.override:
            call.replayed = True
            self._overridden.add(key)
            return call.node.__node__.output_type.validate(self._spec.override[key]), None
        try:
            given = call.node.__node__.input_type.to_json(call.input)
        except (PydanticSerializationError, ValueError):
            return MISSING, None  # an input that JSON cannot hold identifies nothing
        cache_key = call.cache_key = node_key.of_call(given)
        if prompt is not None and call.path not in self._prompts:
            self._prompts[call.path] = json.dumps(prompt.data(), ensure_ascii=False)
        found = self._cache.claim(key, cache_key.identity) if self._cache else None
        if found is None:
            self._note_change(key, cache_key)
        elif found.finished:
            output = self._output(call, found.row)
            if output is not MISSING:
                return output, None
        else:
            self._note_loss(key)
        return MISSING, found

    def _output(self, call: CallState, row: CallRow) -> Any:
        try:
            output = call.node.__node__.output_type.recall(json.loads(row.output or "null"))
        except (ValidationError, ValueError):
            self._state.rerun[call.key] = "the output cannot be read back"
            return MISSING
        call.replayed = True
        if call.node.__node__.kind == "stage":
            messages = tuple(ModelMessagesTypeAdapter.validate_json(row.messages))
            call.use = ModelUse(attempts=row.attempts, messages=messages)
            if self._continues:
                call.use.usage = USAGE.validate_json(row.usage)
                call.use.unpriced = row.cost is None
        return output

    def _note_change(self, key: str, cache_key: CacheKey) -> None:
        changed = self._cache.changed(key, cache_key.input, cache_key.parts)
        if changed is None:
            return
        if changed == "nothing":
            self._note_loss(key)
            return
        self._state.rerun[key] = changed
        if self._spec.strict:
            msg = (
                f"call `{key}` differs from its record: {changed} changed; run it without `strict` to have it run again"
            )
            raise ReplayError(msg)

    def _note_loss(self, key: str) -> None:
        """A call that succeeded has no identity when its record does not hold all of its output."""
        before = self._cache.at(key)
        if before is not None and before.status == "succeeded" and not before.identity:
            self._state.rerun[key] = "the output cannot be written down whole"

    def unused_override(self) -> ReplayError | None:
        """The error for an overridden output that no call asked for: most likely its key is mistyped."""
        unused = sorted(set(self._spec.override) - self._overridden)
        if not unused:
            return None
        near = closest(unused[0], list(self._overridden))
        return ReplayError(f"`override` names `{unused[0]}`, and no stage or step ran there{near}")

    def durable(self, call: CallState, found: Recorded | None) -> DurableOperations:
        """The requests and tool calls of one stage call; its row is written before the first of them."""
        if (found is None or found.row.status != "suspended") and self._may_write(call):
            self._journal.put_soon(self._call_row(call))  # the row of a suspended call holds what is deferred
        identity = call.cache_key.identity if call.cache_key is not None else ""
        return DurableOperations(self._journal, self._row.run_id, call.key, identity, found)

    async def finished(self, call: CallState) -> None:
        """A leaf call has its output: it counts when the journal has it."""
        row = self._call_row(call)
        call.cache_key = None
        if call.replayed:
            self._journal.put_soon(row)
        else:
            await self._journal.put(row)

    def ended(self, call: CallState) -> None:
        """A graph has ended, or a leaf call without an output."""
        if call.node.__node__.kind == "graph" or (call.status != "succeeded" and self._may_write(call)):
            self._journal.put_soon(self._call_row(call))
        call.cache_key = None

    def _may_write(self, call: CallState) -> bool:
        """Whether the row does not replace a finished call that was recorded there before by an unfinished one."""
        identity = call.cache_key.identity if call.cache_key is not None else ""
        return not self._continues or not self._cache.holds(call.key, identity)

    def _call_row(self, call: CallState) -> CallRow:
        node, error, cache_key = call.node.__node__, call.error, call.cache_key
        output, whole = None, True
        if call.status == "succeeded":
            output, whole = node.output_type.recorded(call.output, checked=cache_key is not None and not call.replayed)
        row = CallRow(
            run_id=self._row.run_id,
            key=call.key,
            path=call.path,
            kind=node.kind,
            parent=call.parent.key if call.parent is not None else None,
            position=call.position,
            status=call.status,
            identity=cache_key.identity if cache_key is not None and whole else "",  # else it is never reused
            parts=cache_key.parts_json if cache_key is not None else "{}",
            input=cache_key.input if cache_key is not None else node.input_type.as_json(call.input),
            output=output,
            started=self._state.clock.seconds(call.began),
            duration=call.duration,
            replayed=call.replayed,
            cost="0",
            start_event=call.start_event,
            end_event=call.end_event,
        )
        if error is not None:
            row.error_type, row.error = error.type, error.message
            row.origin, row.transient = error.origin, error.transient
        if node.kind == "stage":
            use = call.use
            row.usage = USAGE.dump_json(use.usage, exclude_defaults=True).decode()
            row.cost = None if use.cost is None else str(use.cost)
            row.attempts = use.attempts
            row.messages = json_of(ModelMessagesTypeAdapter, list(use.messages))
            row.prompt = self._prompts.get(call.path)
            row.pending = dump_pending(use.pending) if use.pending else None
        return row
