"""What an option is given that it cannot take: refused in one sentence, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.models import Model

from scripted import Say, echo
from stagegraph import DeclarationError, Graph, Limits, PromptError, Prompts, Runner, Stage, fan_out, step
from stagegraph.journal import MemoryJournal

ran: list[int] = []


@step
async def note(number: int) -> int:
    ran.append(number)
    return number


class Noted(Graph[int, list[int]]):
    """Notes that it ran; has a stage for what is said by path."""

    note = note
    say = Stage(str, Agent(output_type=str))

    async def flow(self, number: int) -> list[int]:
        return await fan_out(self.note, [number])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"prompts": {"say": "hi"}},
            r"run\(prompts=\.\.\.\) was given dict .*: write Prompts\.load\('prompts\.yaml'\), or",
        ),
        ({"prompts": "prompts.yaml"}, r"given str 'prompts\.yaml': write Prompts\.load"),
        (
            {"limits": {"requests": 3}},
            r"run\(limits=\.\.\.\) was given dict {'requests': 3}: write Limits\(requests=100\)",
        ),
        ({"model": 3}, r"write a model or its name, such as 'openai:gpt-5-mini'"),
        ({"models": {"say": 3}}, r"was given int 3 for `say`: write a model"),
        ({"models": ["say"]}, r"write a dict of stage paths and models"),
        ({"metadata": ["a"]}, r"write a dict, such as {'customer': 7}"),
        ({"tags": "nightly"}, r"write a tuple of texts, such as \('nightly',\)"),
        ({"override": ["note"]}, r"write a dict of call keys and outputs"),
        ({"replay": 3}, r"write a run or its id"),
    ],
)
async def test_an_option_of_a_run_says_what_to_write(options: dict[str, Any], said: str) -> None:
    """Nothing has run by then, so nothing is paid for a slip."""
    with pytest.raises(TypeError, match=said):
        await Runner().run(Noted(), 1, **options)
    assert ran == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": 3}, r"Runner\(model=\.\.\.\) was given int 3: write a model or its name"),
        ({"prompts": {}}, r"Runner\(prompts=\.\.\.\) was given dict {}: write Prompts"),
        ({"limits": {"usd": 1}}, r"write Limits\(requests=100\)"),
        ({"max_runs": "3"}, r"Runner\(max_runs='3'\): at least 1 is needed .*, as a whole number"),
        ({"fan_out_limit": 1.5}, r"Runner\(fan_out_limit=1\.5\): .*as a whole number"),
        ({"max_runs": 1, "max_queued": "2"}, r"write a whole number"),
        ({"drain_seconds": "30"}, r"write seconds as a number"),
        ({"journal": "runs.db"}, r"write SqliteJournal\('runs\.db'\)"),
        ({"journal": Path("runs.db")}, r"write SqliteJournal\('runs\.db'\)"),
    ],
)
def test_an_option_of_a_runner_says_what_to_write(options: dict[str, Any], said: str) -> None:
    """A runner that could run nothing is not made."""
    with pytest.raises((TypeError, DeclarationError), match=said):
        Runner(**options)


async def test_options_that_say_nothing_are_as_if_they_were_not_given() -> None:
    """`None` is what callers pass on who were told nothing themselves."""
    options: dict[str, Any] = dict.fromkeys(("model", "prompts", "limits", "metadata", "replay", "override", "models"))
    assert (await Runner(models=None, limits=None, prompts=None).run(Noted(), 1, **options)).output == [1]
    assert (await Runner().run(Noted(), 1, models={"say": None})).output == [1]  # type: ignore[dict-item]
    ran.clear()


@pytest.mark.parametrize("limit", ["3", 1.5, True])
async def test_a_fan_out_is_limited_by_a_whole_number(limit: Any) -> None:
    """The same for the limit of one fan-out; a number in quotes, as out of an environment variable, is named."""
    with pytest.raises(
        DeclarationError, match=r"limit=.*: the number of branches that run at once must be a whole number"
    ):
        await fan_out(note.fn, [1], limit=limit)
    with pytest.raises(TypeError, match=r"Limits\(requests='3'\): a limit is a number, without quotes"):
        Limits(requests="3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": "3"}, r"Stage\(timeout='3'\): the seconds must be a number"),
        ({"retries": "3"}, r"Stage\(retries='3'\): it must be a whole number"),
        ({"model": 3}, r"Stage\(model=3\): write a Pydantic AI model or its name"),
        ({"render": "{text}"}, r"Stage\(render='{text}'\): write a function that returns text"),
        ({"deps": 3}, r"Stage\(deps=3\): write a function that returns the deps"),
    ],
)
def test_an_option_of_a_stage_says_what_to_write(options: dict[str, Any], said: str) -> None:
    """A stage that cannot work is not declared."""
    with pytest.raises(DeclarationError, match=said):
        Stage(str, Agent(output_type=str), **options)


async def test_prompts_may_be_texts() -> None:
    """A plain text is the instructions, as in `Prompts.replace`; other things are refused with the path."""
    prompts = Prompts({"say": "Be brief."})
    assert prompts == Prompts().replace({"say": "Be brief."})
    model: Model = echo()
    run = await Runner(model).run(Say(), "x", prompts=prompts)
    assert "Be brief." in str(run.calls()[0].messages)
    with pytest.raises(PromptError, match=r"`say` is int 3: write Prompt\(instructions=\.\.\.\), or the instructions"):
        Prompts({"say": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"write Prompts\.load\(path\) for a file"):
        Prompts("prompts.yaml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("journal", MemoryJournal, r"this is a class; write MemoryJournal\(\)"),
        ("tracing", True, r"Runner\(tracing=True\): write LangfuseTracing\(\)"),
        ("tracing", "langfuse", r"Runner\(tracing='langfuse'\): write LangfuseTracing\(\)"),
    ],
)
def test_what_is_no_journal_and_no_tracing_is_refused(option: str, value: object, told: str) -> None:
    """When the runner is made, not in the first run."""
    with pytest.raises(TypeError, match=told):
        Runner(**{option: value})
