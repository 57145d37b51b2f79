"""A graph run on examples and judged: the one way in which tuning, tests and people find out how good it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

import anyio
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from stagegraph.agent.failures import provider_error_in, is_lasting, has_transient_failures, retry_after
from stagegraph.data.examples import Example
from stagegraph.nodes.node import Node
from stagegraph.nodes.stage import stages_of
from stagegraph.record.run import InputError, Run, RunError
from stagegraph.runner.feedback import feedback
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError, leaves, problems_of

from ._counts import check_counts
from .grading import Grader, Metric, grader_of, stage_of
from .report import Report, ReportRow

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.data.score import Score
    from stagegraph.runner.options import RunOptions

__all__ = ["SIDE_BY_SIDE", "WAITS", "checked_examples", "evaluate", "report_of", "row_of", "run_example"]

In = TypeVar("In")
Out = TypeVar("Out")

SIDE_BY_SIDE = 16
WAITS = (1.0, 4.0, 15.0, 60.0)
"""Seconds between the attempts at a run whose provider failed."""
_MARK = {"experiment": "evaluation"}
"""What keeps these runs out of the data that is learned from."""


async def evaluate(
    graph: Node[In, Out],
    metric: Metric | Grader,
    examples: Sequence[Example[In]],
    *,
    model: Model | str | None = None,
    runner: Runner | None = None,
    prompts: Prompts | None = None,
    repeats: int = 1,
    side_by_side: int = SIDE_BY_SIDE,
    waits: Sequence[float] = WAITS,
    on_row: Callable[[ReportRow], None] | None = None,
    record: bool = False,
) -> Report:
    """Run a graph on every example and judge it.

    Args:
        graph: What to evaluate; also a single stage.
        metric: `(example, run) -> Score | float | bool`, also async.
        examples: With ids that differ.
        model: The model of stages that have none of their own.
        runner: Runs it; a fresh one without a journal and without tracing otherwise.
        prompts: What to try instead of the runner's.
        repeats: How often each example is run: models answer differently from time to time.
        side_by_side: How many runs go on at once; the runner's own limits hold besides.
        waits: Seconds between the attempts at a run whose provider failed (429, 5xx, no connection), also where the
            graph went on without the answer; `()` takes such a run as it is.
        on_row: Told every run as it is judged.
        record: Also give each run its score, as `feedback` does: in the runner's journal, and where it is traced to.

    The runs are marked as an experiment, so that nobody learns from them later.

    Raises:
        TuningError: there are no examples, two have one id, the metric failed, or a provider did for good;
            `error.report` holds what was found until then, if anything was.
        PromptError: *prompts* do not fit the graph.
    """
    rows = checked_examples(graph, examples, "examples")
    check_counts(repeats=repeats, side_by_side=side_by_side)
    grader = grader_of(metric)
    own = runner or Runner(tracing=None)
    if prompts is not None:
        prompts.check_known(stages_of(graph), graph.__node__.name)
    if record and own.journal is None and own.tracing is None:
        msg = "evaluate(record=True) needs somewhere to keep the scores: a runner with a journal, or with tracing"
        raise TuningError(msg)
    found: dict[tuple[int, int], ReportRow] = {}
    limiter = anyio.CapacityLimiter(side_by_side)
    problem: list[TuningError] = []

    async def one(place: int, example: Example[In], repeat: int) -> None:
        async with limiter:
            try:
                run = await run_example(own, graph, example, model=model, prompts=prompts, waits=waits)
                score = await grader(example, run)
                row = row_of(example, repeat, run, score)
                if record:
                    said = "; ".join(note.text for note in score.notes) or None
                    await feedback(run.id, grader.name, score.value, comment=said, runner=own)
            except TuningError as error:
                problem.append(error)
                group.cancel_scope.cancel()
                return
            found[place, repeat] = row
            if on_row is not None:
                on_row(row)

    try:
        async with anyio.create_task_group() as group:
            for repeat in range(repeats):
                for place, example in enumerate(rows):
                    group.start_soon(one, place, example, repeat)
    except BaseExceptionGroup as several:  # what one run raised is told as it is
        error = leaves(cast("BaseException", several))[0]
        raise error from error.__cause__
    report = report_of(graph, grader.name, prompts, [found[key] for key in sorted(found)])
    if problem:
        error = problem[0]
        vars(error)["report"] = report if report.rows else None
        raise error
    return report


async def run_example(
    runner: Runner,
    graph: Node[In, Out],
    example: Example[In],
    *,
    model: Model | str | None = None,
    models: Mapping[str, Model | str] | None = None,
    prompts: Prompts | None = None,
    waits: Sequence[float] = WAITS,
    replay: str | None = None,
    begin: Callable[[str], None] | None = None,
) -> Run[In, Out]:
    """One run of an example, also when it fails by itself: then its partial record.

    What a provider let down is run again: also a run that succeeded without the calls that failed (`settle`), which is
    taken as it is after the last attempt, since it says how the graph copes. With a journal, an attempt goes on from
    what the one before had paid for; *begin* is told the id of each.

    Raises:
        TuningError: a provider failed for good, or the input does not fit the graph: neither is the program's fault.
    """
    for wait in (*waits, None):
        run_id = uuid4().hex
        if begin is not None:
            begin(run_id)
        try:
            options: RunOptions = {"replay": replay, "run_id": run_id, "models": models or {}, "metadata": _MARK}
            run = await runner.run(graph, example.input, model=model, prompts=prompts, **options)
            if wait is None or not has_transient_failures(run):
                return run
            pause = wait
        except InputError as error:
            msg = f"example {example.id!r} does not fit: {error}"
            raise TuningError(msg) from error
        except RunError as error:
            fault = provider_error_in(error)
            if fault is None:
                return error.run
            if wait is None or is_lasting(fault):
                msg = f"example {example.id!r} could not be run, and that is no score: {error}"
                raise TuningError(msg) from error
            pause = max(wait, retry_after(fault))
        await anyio.sleep(pause)
        if runner.journal is not None:
            replay = run_id
    raise AssertionError


def checked_examples(graph: Node[In, Any], examples: Sequence[Example[In]], what: str) -> list[Example[In]]:
    """The examples, if the graph takes each of them and they can be told apart; before anything is paid for.

    Raises:
        TuningError: there are none, one does not fit, two have one id, or there is no graph to take them.
    """
    if not isinstance(graph, Node):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = f"; write {graph.__name__}()" if isinstance(graph, type) else ""
        msg = f"what is evaluated is a graph, a stage or a step, not {graph!r}{hint}"
        raise TuningError(msg)
    rows = list(examples)
    if not rows:
        msg = f"there are no {what}"
        raise TuningError(msg)
    for place, row in enumerate(rows):
        if not isinstance(row, Example):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"{what}: number {place + 1} is {type(row).__name__}, not an Example; write Example(input, expected)"
            raise TuningError(msg)
        try:
            graph.__node__.input_type.validate(row.input)
        except ValidationError as error:
            msg = f"{what}: {row.id!r} does not fit {graph.__node__.input_type.name}, which {graph.__node__.name} takes: {problems_of(error)}"
            raise TuningError(msg) from error
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        msg = f"{what}: ids have to differ, and these do not: {', '.join(map(repr, twice[:5]))}"
        raise TuningError(msg)
    return rows


def report_of(graph: Node[Any, Any], metric: str, prompts: Prompts | None, rows: Sequence[ReportRow]) -> Report:
    """Rows as a report of now."""
    return Report(
        graph=graph.__node__.name,
        metric=metric,
        prompts_digest=prompts.digest if prompts is not None else "",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=tuple(rows),
    )


def row_of(example: Example[Any], repeat: int, run: Run[Any, Any], score: Score) -> ReportRow:
    """One run and its verdict, as the report keeps it."""
    return ReportRow(
        example=example.id,
        repeat=repeat,
        score=score.value,
        notes=tuple((note.target, note.text, note.weight) for note in score.notes),
        stages=tuple(stage_of(run, note.target) for note in score.notes),
        objectives=dict(score.objectives),
        run_id=run.id,
        status=run.status,
        error=str(run.error) if run.error is not None else None,
        seconds=run.duration,
        cost=None if run.cost is None else float(run.cost),
        judging=score.cost,
        requests=run.usage.requests,
        tokens=run.usage.total_tokens,
        input=_plain(run.input),
        output=_plain(run.output),
        expected=_plain(example.expected),
    )


def _plain(value: object) -> Any:
    """A value as JSON data, or as what it looks like."""
    try:
        return to_jsonable_python(value, fallback=repr)
    except ValueError:  # such as bytes that are no text
        return repr(value)
