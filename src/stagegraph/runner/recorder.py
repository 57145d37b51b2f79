"""One run and its journal: the run's row, a row of each call, and recorded outputs that are not computed again."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ModelMessagesTypeAdapter

from stagegraph.agent.durable import DurableOperations
from stagegraph.data.call import dump_pending
from stagegraph.data.prompts import Prompts
from stagegraph.data.usage import USAGE, ModelUse
from stagegraph.record.calls import error_of
from stagegraph.record.labels import Labels
from stagegraph.record.rows import CallRow, Journal, OpRow, Recorded, RunRow
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import JournalError, closest
from stagegraph.schema.schema import Record
from stagegraph.schema.serialize import json_of, without_json

from .identity import ReplayCache, changes, used_of
from .recovery import counted
from .state import CacheKey, Clock, total

if TYPE_CHECKING:
    from pydantic_ai.messages import UserContent

    from stagegraph.data.prompts import PromptSource
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

    from .identity import NodeKey
    from .limits import Ledger
    from .options import RunSpec
    from .state import CallState, RunState

_log = logging.getLogger("stagegraph")

MISSING: Any = object()


_LARGEST = 2**63 - 1
"""The largest integer that a journal file can hold; a provider that reports more tokens is wrong."""


def new_row(spec: RunSpec, node: Node[Any, Any], prompts: Prompts | PromptSource, *, resumable: bool) -> RunRow:
    """The row of a run that begins; says once of a graph if it is to be *resumable* and its input has no whole record.

    Raises:
        DeclarationError: the metadata cannot be recorded.
    """
    given = node.__node__.input_type.recorded(spec.input)
    if resumable and spec.fits and not given.holds:
        _say_lost(node.__node__.name)
    outputs = {key: spec.output_type(key).recorded(value) for key, value in spec.override.items()}
    own = spec.prompts if isinstance(spec.prompts, Prompts) else None
    models = {path: model for path, model in spec.models.items() if isinstance(model, str)}
    labels = Labels(
        metadata=spec.metadata,
        tags=spec.tags,
        session_id=spec.session_id,
        user_id=spec.user_id,
        models=models,
        override={key: json.loads(output.plain) for key, output in outputs.items()},
        override_whole={key: output.whole for key, output in outputs.items() if output.whole},
        limits=spec.limits.as_label() if spec.limits is not None else {},
        replay=spec.replay,
    )
    return RunRow(
        run_id=spec.run_id,
        graph=node.__node__.name,
        status="running",
        started=time.time(),
        input=given.plain,
        input_whole=given.whole if spec.fits else None,
        prompts_digest=prompts.digest if isinstance(prompts, Prompts) else "",
        prompts=own.to_json() if own is not None else None,
        model=spec.model if isinstance(spec.model, str) else None,
        labels=labels.to_json(),
    )


@cache
def _say_lost(graph: str) -> None:
    _log.warning(
        "a record cannot hold the whole input of a run of %s (a secret, an excluded field, an object without JSON): "
        "an interrupted one cannot go on by itself, but needs `runner.resume(run_id, input=...)`",
        graph,
    )


def with_deployed(row: RunRow, prompts: Prompts) -> RunRow:
    """The row with prompts that came from a server, so that the run continues with the same when it is resumed."""
    origins = {path: (origin.name, origin.version) for path, origin in prompts.origins.items()}
    labels = replace(row.read_labels(), origins=origins).to_json()
    return replace(row, prompts=prompts.to_json(), prompts_digest=prompts.digest, labels=labels)


class Recorder:
    """Records one run, and recalls what was recorded before."""

    def __init__(self, journal: Journal, row: RunRow, spec: RunSpec, state: RunState, ledger: Ledger | None) -> None:
        self._journal = journal
        self._row = row
        self._spec = spec
        self._state = state
        self._ledger = ledger
        self._own = ReplayCache()
        """What the run has recorded before it was resumed."""
        self._other = ReplayCache()
        """What the run that it replays has recorded."""
        self._begun: list[CallState] = []
        """Steps that have begun in this turn of the event loop."""
        self._recalls = spec.resumed is not None or spec.replay is not None
        self._result: Record | None = None
        """The output of the run, once it has one."""
        self._prompts: dict[str, str | None] = {}
        """Path -> JSON of the prompt in force."""

    @classmethod
    async def open(
        cls, journal: Journal, row: RunRow, spec: RunSpec, state: RunState, ledger: Ledger | None
    ) -> Recorder:
        """Take the run for this process, and read the run that it resumes or replays.

        Raises:
            JournalError: the id is taken, another living process holds the run, or there is no run to replay.
        """
        mine = counted(row) if spec.resumed is not None else row
        if spec.resumed is not None and spec.fits:  # the input may be given anew
            given = spec.node.__node__.input_type.recorded(spec.input)
            mine = replace(mine, input=given.plain, input_whole=given.whole)
        mine = replace(mine, status="running", owner=journal.owner, error=None, error_type=None)
        if spec.own_id:
            await journal.claim(mine, fresh=spec.resumed is None)
        else:
            journal.put_soon(mine)
        recorder = cls(journal, mine, spec, state, ledger)
        calls: list[CallRow] = []
        if spec.resumed is not None:
            calls, ops = await journal.calls(spec.run_id), await journal.ops(spec.run_id)
            recorder._own = ReplayCache(calls, ops, resumes=True, used=used_of(spec.run_id, calls))
            recorder._go_on(calls, ops)
        if spec.replay is not None:
            if spec.resumed is None and await journal.run(spec.replay) is None:
                msg = f"there is no run {spec.replay!r} in this journal to replay"
                raise JournalError(msg)
            recorder._other = ReplayCache(await journal.calls(spec.replay), used=used_of(spec.replay, calls))
        return recorder

    def _go_on(self, calls: list[CallRow], ops: list[OpRow]) -> None:
        """Count what the run has spent before it was resumed."""
        labels = self._row.read_labels()
        begins, ended = (self._row.started, *labels.resumed), list(labels.ended)
        for begin, end in pairwise(begins[len(ended) :]):  # of each process that died
            moments = [row.started + row.duration for row in calls if begin <= row.started < end]
            ended.append(min(end, max(moments, default=begin)))
        # Where the clock was set back meanwhile, what comes now is still later than what was before.
        self._state.resumed_at = latest = max(labels.resumed[-1], *ended)
        self._state.clock = Clock(max(self._state.clock.offset, latest - perf_counter()))
        labels = replace(labels, resumed=(*labels.resumed[:-1], latest), ended=tuple(ended))
        self._row = replace(self._row, labels=labels.to_json())
        self._journal.put_soon(self._row)
        if self._ledger is not None:
            self._ledger.go_on(calls, ops)

    def seconds_before(self) -> float:
        """How long the run has been going on before it was resumed."""
        return sum(max(0.0, end - begin) for begin, end in self._row.segments())

    async def note_spent(self) -> None:
        """Record what is spent with the next request, before it is made: no crash may forget it."""
        if self._ledger is not None:
            await self._journal.put(self._ledger.as_row(self._row.run_id))

    async def close(self, run: Run[Any, Any], *, left: bool) -> None:
        """Record how the run ended and release it; a run that is *left* continues as soon as a process resumes it."""
        usage, cost = total(self._state.calls.values())
        output = self._result if run.status == "succeeded" else None
        labels, now = self._row.read_labels(), self._state.clock.seconds(self._state.ended)
        cause = None if run.error is None else run.error.cause
        await self._journal.put(
            *([] if self._ledger is None else [self._ledger.as_row(self._row.run_id)]),
            replace(
                self._row,
                status="running" if left else run.status,
                duration=max(0.0, now - self._row.started),
                labels=replace(labels, ended=(*labels.ended, now), cause=cause).to_json(),
                output=None if output is None else output.plain,
                output_whole=None if output is None else output.whole,
                error_type=run.error.type if run.error is not None else None,
                error=run.error.message if run.error is not None else None,
                requests=min(usage.requests, _LARGEST),
                input_tokens=min(usage.input_tokens, _LARGEST),
                output_tokens=min(usage.output_tokens, _LARGEST),
                cost=None if cost is None else str(cost),
                owner=None,
            ),
        )

    def fanned_out(self, prefix: str) -> float | None:
        """When a fan-out began before the run was resumed, by the keys of its branches up to their index."""
        return self._own.fan_outs.get(prefix)

    def begin(self, call: CallState) -> None:
        """Record that a graph was called, so that others see a run that is still running."""
        call.ran = self._own.ran.get(call.key)
        if call.node.__node__.kind == "graph" and (call.ran is None or call.ran[1] is None):
            given = Record(self._row.input, self._row.input_whole)
            if call.parent is not None or not self._spec.fits or call.input is not self._spec.input:
                given = call.node.__node__.input_type.recorded(call.input)
            call.cache_key = CacheKey(given)
            self._journal.put_soon(self._call_row(call))

    def step_begins(self, call: CallState) -> None:
        """Record that a step has begun: after a crash its row says that it may have had an effect.

        Nothing waits for that row, and a step that has ended until the next turn of the event loop needs none.
        """
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._put_begun)
        self._begun.append(call)

    def _put_begun(self) -> None:
        going_on = [call for call in self._begun if call.status == "running" and self._may_write(call)]
        self._begun = []
        if going_on:
            with suppress(JournalError):  # the row of its end fails as well, and then it is raised
                self._journal.put_soon(*map(self._call_row, going_on))

    def recalled(
        self, call: CallState, node_key: NodeKey, content: str | list[UserContent] | None = None
    ) -> tuple[Any, Recorded | None]:
        """The output that a leaf call need not compute, or `MISSING`; and what was recorded inside the call.

        *content* is what the renderer of a stage made of the input.

        Raises:
            ReplayError: in strict mode, when the call differs from the one that was recorded with its key.
        """
        key, call.ran = call.key, None
        if key in self._spec.override:
            call.replayed = True
            return call.node.__node__.output_type.validate(self._spec.override[key]), None
        call.cache_key = node_key.of_call(call.node.__node__.input_type.recorded(call.input), content)
        if not self._recalls:
            return MISSING, None
        place = key, call.cache_key.identity, call.node.__node__.kind
        found = self._own.claim(*place) or self._other.claim(*place)
        output = self._output(call, found.row) if found is not None and found.finished else MISSING
        if output is MISSING and key not in self._state.rerun:
            self._explain(call, call.cache_key)
        return output, found

    def _output(self, call: CallState, row: CallRow) -> Any:
        stage = call.node.__node__.kind == "stage"
        try:
            output = call.node.__node__.output_type.recall(row.output or "null", row.output_whole)
            messages = tuple(ModelMessagesTypeAdapter.validate_json(row.messages)) if stage else ()
        except ValueError:
            self._state.rerun[call.key] = "the output cannot be read back"
            return MISSING
        call.replayed = True
        same_run = row.run_id == self._row.run_id
        call.source = (same_run and row.source) or json.dumps([row.run_id, row.key])
        call.ran = (row.started, row.duration) if same_run else None
        if stage:
            call.use = ModelUse(attempts=row.attempts, messages=messages)
            if same_run:  # another run that replays it has spent nothing
                call.use.usage = USAGE.validate_json(row.usage)
                call.use.unpriced = row.cost is None
        return output

    def _source(self, row: CallRow) -> ReplayCache:
        return self._own if row.run_id == self._row.run_id else self._other

    def inside(self, recalled: CallRow, label: str) -> list[CallRow]:
        """The recorded calls that a recalled leaf call has made, or its tool call with a *label*."""
        rows = self._source(recalled).inside.get(recalled.key, [])
        return [row for row in rows if f"[{label}]" in row.key[len(recalled.key) :]] if label else rows

    def restored(self, call: CallState, row: CallRow) -> bool:
        """Fill in a call that was recorded inside a recalled one; returns whether its record can be read."""
        try:
            call.input = call.node.__node__.input_type.recall(row.input, row.input_whole)
        except ValueError:
            return False
        if row.status == "succeeded":
            call.output = self._output(call, row)
        if call.output is MISSING:
            return False
        call.status, call.error, call.replayed = row.status, error_of(row), True
        self._source(row).records.pop((row.key, row.identity), None)  # it came with the call around it
        if row.run_id != self._row.run_id:  # otherwise the run has the row already
            parent = call.parent.key if call.parent is not None else None
            place = {"run_id": self._row.run_id, "key": call.key, "parent": parent, "position": call.position}
            self._journal.put_soon(replace(row, **place, replayed=True, source=call.source, usage="{}", cost="0"))
        return True

    def _explain(self, call: CallState, now: CacheKey) -> None:
        """Keep why a call that has a record runs again.

        Raises:
            ReplayError: in strict mode.
        """
        before = self._own.at.get(call.key) or self._other.at.get(call.key)
        if before is None:
            return
        problem, strictly = "", before.kind == "step"
        if why := changes(before, now):
            problem, strictly = f"differs from its record: {why} changed", True
        elif not now.identity:
            why = "the input cannot be written down whole"
        elif before.status == "succeeded" and not before.identity:
            why = "the output cannot be written down whole"
        elif before.status == "running" and strictly and before.run_id == self._row.run_id:
            why, strictly = "it had begun, and its end was not recorded", False
        else:
            return
        self._state.rerun[call.key] = why
        if self._spec.strict and strictly and before.run_id == self._row.run_id:
            problem = problem or f"has a record that does not count: {why}"
            msg = f"call `{call.key}` {problem}; run it without `strict` to have it run again"
            raise ReplayError(msg)

    def unused_override(self) -> ReplayError | None:
        """The error for an overridden output that no call asked for: most likely its key is mistyped."""
        ran = [call.key for call in self._state.calls.values() if call.node.__node__.kind != "graph"]
        unused = sorted(self._spec.override.keys() - ran)
        if not unused:
            return None
        near = closest(unused[0], ran)
        return ReplayError(f"`override` names `{unused[0]}`, and no stage or step ran there{near}")

    def durable(self, call: CallState, found: Recorded | None) -> DurableOperations:
        """The requests and tool calls of one stage call; its row is written before the first of them."""
        if (found is None or found.row.status != "suspended") and self._may_write(call):
            self._journal.put_soon(self._call_row(call))  # the row of a suspended call holds what is deferred
        return DurableOperations(self._journal, self._row.run_id, call.key, call.identity, found)

    def finished(self, call: CallState) -> Awaitable[None] | None:
        """A leaf call has its output: it counts when the journal has it, which is to be awaited."""
        row = self._call_row(call)
        call.cache_key = None
        if not call.replayed:
            return self._journal.put(row)
        self._journal.put_soon(row)
        return None

    def ended(self, call: CallState) -> None:
        """A graph has ended, or a leaf call; a graph took as long as before only if all in it was recalled."""
        parent = call.parent
        if parent is not None and parent.ran is not None and (call.ran is None or call.ran[1] is None):
            parent.ran = (parent.ran[0], None)
        if call.node.__node__.kind == "graph" or (call.status != "succeeded" and self._may_write(call)):
            self._journal.put_soon(self._call_row(call))
        call.cache_key = None

    def _may_write(self, call: CallState) -> bool:
        """Whether the row does not replace a finished call that was recorded there before by an unfinished one."""
        return not self._own.holds(call.key, call.identity)

    def _call_row(self, call: CallState) -> CallRow:
        node, error, key = call.node.__node__, call.error, call.cache_key
        key = key or CacheKey(node.input_type.recorded(call.input))
        given, identity, output, output_whole = key.record, key.identity, None, None
        if call.status == "succeeded":
            made = node.output_type.recorded(call.output)
            output, output_whole = made
            if not made.holds:
                identity = ""  # it is never reused
            if call.parent is None:
                self._result = made
        began, duration = call.times(self._state.clock)
        row = CallRow(
            run_id=self._row.run_id,
            key=call.key,
            path=call.path,
            kind=node.kind,
            parent=call.parent.key if call.parent is not None else None,
            position=call.position,
            status=call.status,
            identity=identity,
            parts=key.parts_json,
            input=given.plain,
            output=output,
            input_whole=given.whole,
            output_whole=output_whole,
            started=began,
            duration=duration,
            replayed=call.replayed,
            source=call.source,
            cost="0",
        )
        if error is not None:
            row.error_type, row.error = error.type, error.message
            row.origin, row.transient = error.origin, error.transient
        if node.kind == "stage":
            use = call.use
            row.usage = USAGE.dump_json(use.usage, exclude_defaults=True).decode()
            row.cost = None if use.cost is None else str(use.cost)
            row.attempts = use.attempts
            row.messages = json_of(ModelMessagesTypeAdapter, list(use.messages), fallback=without_json)
            row.prompt = self._prompt(call.path)
            row.pending = dump_pending(use.pending) if use.pending else None
        return row

    def _prompt(self, path: str) -> str | None:
        if path not in self._prompts:
            prompt = self._state.prompts.get(path)
            self._prompts[path] = None if prompt is None else json.dumps(prompt.data(), ensure_ascii=False)
        return self._prompts[path]
