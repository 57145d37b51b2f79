"""Runs of a graph on examples, each scored by a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from pydantic import ValidationError

from stagegraph.data.examples import Example, in_parallel
from stagegraph.nodes.node import Node
from stagegraph.nodes.stage import stages_of
from stagegraph.record.run import InputError, RunError
from stagegraph.runner.feedback import feedback
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import TuningError, problems_of

from .budget import check_numbers
from .metric import Grader, Metric, grader_of
from .report import Report, ReportRow, Trial, report_of
from .retries import RETRY_DELAYS, ModelOptions, run_patiently

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.record.run import Run

In = TypeVar("In")

CONCURRENCY = 16
"""How many runs there are at a time by default."""


async def evaluate(
    graph: Node[In, Any],
    metric: Metric | Grader,
    examples: Sequence[Example[In]],
    *,
    model: Model | str | None = None,
    runner: Runner | None = None,
    prompts: Prompts | None = None,
    repeats: int = 1,
    concurrency: int = CONCURRENCY,
    retry_delays: Sequence[float] = RETRY_DELAYS,
    on_row: Callable[[ReportRow], None] | None = None,
    record: bool = False,
    accept_own_answers: bool = False,
) -> Report:
    """Run a graph on every example and score each run.

    The runs are marked as an experiment, so that they are left out where recorded runs become training data.

    Args:
        graph: The graph to evaluate; a single stage or step is possible, too.
        metric: `(example, run) -> Score | float | bool`, also async.
        examples: With ids that differ.
        model: The model of stages that have none of their own.
        runner: Makes the runs; a new one without a journal and without tracing by default.
        prompts: Texts to use instead of the runner's.
        repeats: How often each example is run, since a model's answers vary.
        concurrency: How many runs there are at a time; the runner's own limits apply as well.
        retry_delays: Seconds between the attempts at a run whose provider failed (429, 5xx, no connection), also where
            the graph went on without the answer; with `()` such a run is taken as it is.
        on_row: Called with each row when its run has been scored.
        record: Whether to record each run's score as `feedback` does: in the runner's journal, and in its traces.
        accept_own_answers: Also take examples of recorded runs that nobody corrected: their expected output is the
            model's own answer, so that a metric that compares with it says how well the model repeats itself.

    Raises:
        TuningError: there are no examples, two have the same id, the metric failed, or a provider failed for good;
            then `error.report` has the rows until then, or is `None` without any.
        PromptError: *prompts* do not fit the graph.
    """
    rows = checked_examples(graph, examples, "examples")
    _check_expected(rows, accept_own_answers=accept_own_answers)
    check_numbers({"repeats": repeats, "concurrency": concurrency})
    grader = grader_of(metric)
    own = runner or Runner(tracing=None)
    if record and own.journal is None and own.tracing is None:
        msg = "evaluate(record=True) needs a runner that can record scores: one with a journal, or with tracing"
        raise TuningError(msg)
    if prompts is not None:
        prompts.check_known(stages_of(graph), graph.__node__.name)
    found: dict[tuple[int, int], ReportRow] = {}

    async def one(repeat: int, place: int) -> None:
        example = rows[place]
        run = await run_example(own, graph, example, model=model, prompts=prompts, retry_delays=retry_delays)
        trial = Trial(example, run, await grader(example, run), repeat)
        if record:
            comment = "; ".join(note.text for note in trial.score.notes) or None
            await feedback(run.id, grader.name, trial.score.value, comment=comment, runner=own)
        row = found[place, repeat] = trial.row
        if on_row is not None:
            on_row(row)

    def report() -> Report:
        return report_of(graph, grader.name, prompts, [found[key] for key in sorted(found)])

    try:
        await in_parallel([partial(one, *key) for key in product(range(repeats), range(len(rows)))], concurrency)
    except TuningError as error:
        raise EvaluationError(str(error), report() if found else None) from error.__cause__
    return report()


def _check_expected(rows: Sequence[Example[Any]], *, accept_own_answers: bool) -> None:
    """Refuse examples of recorded runs whose expected output is what the model answered."""
    own = [row for row in rows if row.metadata.get("corrected") is False and "run_id" in row.metadata]
    if own and not accept_own_answers:
        msg = (
            f"{len(own)} of {len(rows)} examples expect the model's own answer, since nobody corrected it (one is "
            f"{own[0].id!r}): a score would say how well the model repeats itself. Export corrected ones "
            '(`score="correction"`), or say `accept_own_answers=True` (`--accept-own-answers`) where the metric does '
            "not compare with `expected`"
        )
        raise TuningError(msg)


class EvaluationError(TuningError):
    """The metric or a provider failed, which ended an evaluation."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report
        """The rows until then; `None` without any."""


async def run_example(
    runner: Runner,
    graph: Node[Any, Any],
    example: Example[Any],
    *,
    retry_delays: Sequence[float] = RETRY_DELAYS,
    begin: Callable[[str], None] | None = None,
    **options: Unpack[ModelOptions],
) -> Run[Any, Any]:
    """One run of an example, as `run_patiently` makes it; it is marked as an experiment.

    Raises:
        TuningError: a provider failed for good, or the input does not fit the graph: neither is the program's fault.
    """
    options["metadata"] = {"experiment": "evaluation"}
    try:
        return await run_patiently(runner, graph, example.input, retry_delays, begin=begin, **options)
    except InputError as error:
        msg = f"example {example.id!r} does not fit: {error}"
        raise TuningError(msg) from error
    except RunError as error:
        msg = f"example {example.id!r} could not be run, and that is no score: {error}"
        raise TuningError(msg) from error


def checked_examples(graph: Node[In, Any], examples: Sequence[Example[In]], what: str) -> list[Example[In]]:
    """The examples, if each fits the input type of the graph and their ids differ; checked before any run.

    Raises:
        TuningError: there are none, one does not fit, two have the same id, or *graph* is no node.
    """
    if not isinstance(graph, Node):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = f"; write {graph.__name__}()" if isinstance(graph, type) else ""
        msg = f"only a graph, a stage or a step can be evaluated, not {graph!r}{hint}"
        raise TuningError(msg)
    rows = list(examples)
    if not rows:
        msg = f"there are no {what}"
        raise TuningError(msg)
    node = graph.__node__
    for place, row in enumerate(rows, 1):
        if not isinstance(row, Example):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"{what}: number {place} is {type(row).__name__}, not an Example; write Example(input, expected)"
            raise TuningError(msg)
        try:
            node.input_type.validate(row.input)
        except ValidationError as error:
            msg = (
                f"{what}: {row.id!r} does not fit {node.input_type.name}, which {node.name} takes: {problems_of(error)}"
            )
            raise TuningError(msg) from error
    twice = [repr(name) for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        msg = f"{what}: ids have to differ, and these do not: {', '.join(twice[:5])}"
        raise TuningError(msg)
    return rows
