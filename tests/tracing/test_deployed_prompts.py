"""Prompts that live in Langfuse: pushed, promoted, fetched beside the runs, and never in their way."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
from deployed import CODE, INPUT, MINE, PATHS, PROMPTS, TUNED, Inner, Text, Write, labels, said, the_keys, told, warned
from langfuse import Langfuse
from langfuse_fixtures import the_client, the_server
from langfuse_server import LangfuseServer
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from traced_runs import Watch

from scripted import fails
from stagegraph import DeclarationError, Demo, Graph, Prompt, PromptError, Prompts, RunError, Runner, Stage
from stagegraph.journal import MemoryJournal
from stagegraph.schema.errors import TracingError
from stagegraph.tracing import promote_prompts, rollback_prompts

__all__ = ["the_client", "the_keys", "the_server"]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("place", ["runner", "run"])
async def test_a_run_uses_what_is_deployed(
    server: LangfuseServer, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Given to a runner or to one run, each stage says what carries the label in Langfuse."""
    assert MINE.to_langfuse(Write(), "candidate") == {"draft": 1, "inner.polish": 1}
    assert set(server.prompts) == {"Write/draft", "Write/inner.polish"}
    live = Prompts.from_langfuse(Write(), label="candidate")
    runner = Runner(told(), prompts=live if place == "runner" else None, tracing=None)
    run = await runner.run(Write(), INPUT, prompts=live if place == "run" else None)
    assert said(run) == TUNED
    assert run.prompts_digest == MINE.digest
    assert live.origins["inner.polish"].name == "Write/inner.polish"
    assert not warned(caplog)


async def test_nothing_is_made_twice(server: LangfuseServer) -> None:
    """What says the same as the newest version makes no new one, and what says something else makes one."""
    assert MINE.to_langfuse(Write()) == MINE.to_langfuse(Write()) == dict.fromkeys(PATHS, 1)
    assert MINE.to_langfuse(Write(), "staging") == dict.fromkeys(PATHS, 1)
    assert labels(server) == {"candidate": 1, "staging": 1, "latest": 1}
    changed = MINE.replace({"draft": "Better."})
    assert changed.to_langfuse(Write()) == {"draft": 2, "inner.polish": 1}
    with pytest.raises(PromptError, match="there is no stage `drafts`"):
        Prompts({"drafts": Prompt("x")}).to_langfuse(Write())


async def test_everything_of_a_prompt_survives(server: LangfuseServer) -> None:
    """Demos, tool texts and odd text come back; the config tells where the prompts come from."""
    whole = Prompt("Say {{it}}: é \N{SNOWMAN}", (Demo(INPUT, "out\u2028"),), {"search": "Search it."})
    prompts = MINE.replace({"draft": whole})
    prompts.to_langfuse(Write(), "production", provenance={"optimizer": "GEPA", "metric": len}, message="why")
    live = Prompts.from_langfuse(Write())
    assert live["draft"] == whole
    assert live == prompts
    row = server.prompts["Write/draft"][0]
    assert (row["prompt"], row["commitMessage"]) == (whole.instructions, "why")
    own = row["config"]["stagegraph"]
    assert own["digest"] == prompts.digest
    assert own["provenance"] == {"optimizer": "GEPA", "metric": repr(len)}


async def test_texts_of_fields_are_deployed_with_a_prompt(server: LangfuseServer) -> None:
    """They are part of a version: another text makes a new one, and the model is sent it."""

    class Ask(Graph[str, Text]):
        ask = Stage(str, Agent(instructions="Ask.", output_type=Text))

        async def flow(self, text: str) -> Text:
            return await self.ask(text)

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        [tool] = info.output_tools
        words = tool.parameters_json_schema["properties"]["words"].get("description", "")
        return ModelResponse([ToolCallPart(tool.name, {"words": words})])

    def deployed(text: str) -> dict[str, int]:
        return Prompts({"ask": Prompt("Ask.", fields={"words": text})}).to_langfuse(Ask(), "production")

    assert (deployed("Two words."), deployed("Two words.")) == ({"ask": 1}, {"ask": 1})
    assert deployed("One word.") == {"ask": 2}
    assert server.prompts["Ask/ask"][-1]["config"]["stagegraph"]["parts"] == {"fields": {"words": "One word."}}
    runner = Runner(FunctionModel(answer), tracing=None, prompts=Prompts.from_langfuse(Ask()))
    assert (await runner.run(Ask(), "x")).output.words == "One word."
    with pytest.raises(PromptError, match="no output field `word`"):
        Prompts({"ask": Prompt("Ask.", fields={"word": "x"})}).to_langfuse(Ask())
    server.prompts["Ask/ask"][-1]["config"]["stagegraph"]["parts"] = {"fields": {"word": "x"}}
    strange = Runner(FunctionModel(answer), tracing=None, prompts=Prompts.from_langfuse(Ask()))
    assert (await strange.run(Ask(), "x")).output.words == ""


async def test_a_stage_of_its_own_is_named_without_a_path(server: LangfuseServer) -> None:
    """A stage that is run by itself has one prompt, named like it."""
    stage = Write.draft
    Prompts({"draft": Prompt("Sing.")}).to_langfuse(stage, "production")
    assert set(server.prompts) == {"draft"}
    run = await Runner(told(), tracing=None, prompts=Prompts.from_langfuse(stage)).run(stage, INPUT)
    assert run.output == "Sing."


async def test_promotion_and_rollback_move_a_label(server: LangfuseServer) -> None:
    """A promotion can be repeated and undone; a stage that it did not change is left alone by its undoing."""
    for text in ("one", "two"):
        Prompts({path: Prompt(text) for path in PATHS}).to_langfuse(Write())
        assert promote_prompts(Write()) == promote_prompts(Write())
    Prompts({"draft": Prompt("three"), "inner.polish": Prompt("two")}).to_langfuse(Write())
    assert promote_prompts(Write()) == {"draft": 3, "inner.polish": 2}
    assert rollback_prompts(Write()) == {"draft": 2}
    assert labels(server, "inner.polish")["production"] == 2
    assert said(await Runner(told(), tracing=None, prompts=Prompts.from_langfuse(Write())).run(Write(), INPUT)) == [
        "two",
        "two",
    ]
    assert rollback_prompts(Write()) == {"draft": 3}
    assert labels(server)["production"] == 3


async def test_nothing_to_move_is_an_error(server: LangfuseServer) -> None:
    """Without a candidate nothing can be promoted, and without a promotion nothing undone."""
    with pytest.raises(TracingError, match="carries the label 'candidate'"):
        promote_prompts(Write())
    MINE.to_langfuse(Write())
    assert promote_prompts(Write()) == dict.fromkeys(PATHS, 1)
    with pytest.raises(TracingError, match="production-before"):
        rollback_prompts(Write())
    server.status = 403
    with pytest.raises(TracingError, match="LANGFUSE_PUBLIC_KEY"):
        promote_prompts(Write())


async def test_a_run_never_mixes_versions(server: LangfuseServer) -> None:
    """What is promoted while a run goes on, and even fetched meanwhile, is for later runs."""
    new = MINE.replace(dict.fromkeys(PATHS, "New."))

    class Moving(Write):
        async def flow(self, text: Text) -> str:
            draft = await self.draft(text)
            await asyncio.to_thread(new.to_langfuse, self, "production")
            with anyio.fail_after(10):
                while (await live.resolved())["draft"].instructions != "New.":  # noqa: ASYNC110 - a thread of its own fetches it
                    await asyncio.sleep(0)
            return await self.inner(Text(words=draft))

    MINE.to_langfuse(Moving(), "production")
    live = Prompts.from_langfuse(Moving(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Moving(), INPUT)) == TUNED
    assert said(await runner.run(Moving(), INPUT)) == ["New.", "New."]


async def test_a_later_run_gets_the_new_version_without_waiting(
    server: LangfuseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time to live a run still uses what is there, and lets the next one have what it fetched."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "5")
    MINE.to_langfuse(Write(), "production")
    live = Prompts.from_langfuse(Write(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Write(), INPUT)) == TUNED
    better = MINE.replace({"draft": "Better."})
    better.to_langfuse(Write(), "production")
    server.delay = 30
    begun = time.monotonic()
    assert said(await runner.run(Write(), INPUT)) == TUNED
    assert time.monotonic() - begun < 4
    server.delay = 0
    with anyio.fail_after(60):
        while (run := await runner.run(Write(), INPUT)).prompts_digest != better.digest:
            pass
    assert said(run)[0] == "Better."


async def test_within_the_time_to_live_nothing_is_asked(server: LangfuseServer) -> None:
    """Many runs cost one request a stage."""
    MINE.to_langfuse(Write(), "production")
    before = len(server.asked(PROMPTS, "GET"))
    runner = Runner(told(), tracing=None, prompts=Prompts.from_langfuse(Write()))
    for _ in range(3):
        await runner.run(Write(), INPUT)
    assert len(server.asked(PROMPTS, "GET")) - before == 2


async def test_requests_are_linked_to_the_version_they_used(server: LangfuseServer) -> None:
    """Each generation shows the prompt of its own stage; a stage with the code's text shows none."""
    MINE.to_langfuse(Write(), "production")
    MINE.replace({"draft": "Better."}).to_langfuse(Write(), "production")
    del server.prompts["Write/inner.polish"]
    watch = Watch(server)
    runner = Runner(told(), tracing=watch.tracing(), prompts=Prompts.from_langfuse(Write()))
    run = await runner.run(Write(), INPUT)
    rows = await watch.rows(run)
    names = {row["id"]: row["name"] for row in rows}
    requests = [row for row in rows if row["type"] == "GENERATION"]
    above = {row["id"]: row["parentObservationId"] for row in rows}
    linked = {names[above[above[row["id"]]]]: (row["promptName"], row["promptVersion"]) for row in requests}
    assert linked == {"stage:draft": ("Write/draft", 2), "stage:inner.polish": (None, None)}
    sources = {row["name"]: row["metadata"].get("prompt_source") for row in rows if row["name"].startswith("stage")}
    assert sources == {"stage:draft": "langfuse", "stage:inner.polish": "code"}
    watch.tracings[0].close(5)


async def test_what_is_deployed_later_is_found(server: LangfuseServer) -> None:
    """A service that began before anything was deployed uses it as soon as it is there."""
    live = Prompts.from_langfuse(Write(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Write(), INPUT)) == CODE
    MINE.to_langfuse(Write(), "production")
    with anyio.fail_after(10):
        while said(await runner.run(Write(), INPUT)) != TUNED:
            pass


async def test_a_resumed_run_keeps_the_versions_it_began_with(server: LangfuseServer) -> None:
    """What was promoted in between is not for a run that goes on, and its requests are linked to what it used."""
    MINE.to_langfuse(Write(), "production")
    journal, watch = MemoryJournal(), Watch(server)
    tracing = watch.tracing()
    broken = Runner(fails(ValueError("no")), journal=journal, tracing=tracing, prompts=Prompts.from_langfuse(Write()))
    with pytest.raises(RunError):
        await broken.run(Write(), INPUT, run_id="r")
    MINE.replace(dict.fromkeys(PATHS, "Better.")).to_langfuse(Write(), "production")
    live = Prompts.from_langfuse(Write())
    assert live["draft"].instructions == "Better."
    run = await Runner(told(), journal=journal, tracing=tracing, prompts=live).resume("r", graph=Write())
    assert said(run) == TUNED
    assert run.prompts_digest == MINE.digest
    linked = {(row["promptName"], row["promptVersion"]) for row in await watch.rows("r") if row["type"] == "GENERATION"}
    assert linked == {("Write/draft", 1), ("Write/inner.polish", 1)}
    tracing.close(5)


async def test_prompts_of_another_graph_are_refused(server: LangfuseServer) -> None:
    """They are checked like those of a file."""
    live = Prompts.from_langfuse(Write())
    with pytest.raises(PromptError, match="do not fit Inner"):
        await Runner(told(), tracing=None, prompts=live).run(Inner(), INPUT)


def test_without_keys_there_are_no_prompts(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot work is said at once."""
    monkeypatch.delenv("LANGFUSE_SECRET_KEY")
    with pytest.raises(DeclarationError, match="LANGFUSE_SECRET_KEY"):
        Prompts.from_langfuse(Write())


def test_langfuses_own_client_reads_them(server: LangfuseServer, client: Langfuse) -> None:
    """What was pushed is an ordinary text prompt."""
    MINE.to_langfuse(Write(), "production")
    found = client.get_prompt("Write/inner.polish", label="production")
    assert (found.prompt, found.version, found.tags) == ("inner.polish, tuned.", 1, ["stagegraph"])
    promote_prompts(Write(), source="production", target="stable")
    assert client.get_prompt("Write/draft", label="stable").version == 1
