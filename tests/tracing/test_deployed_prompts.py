"""Prompts that live in Langfuse: pushed, promoted, fetched beside the runs, and never in their way."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
from deployed import CODE, INPUT, MINE, PATHS, PROMPTS, TUNED, Inner, Text, Write, labels, said, told, warned
from langfuse import Langfuse
from langfuse_server import LangfuseServer
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from traced_runs import Watch

from scripted import fails
from stagegraph import DeclarationError, Demo, Graph, Prompt, PromptError, Prompts, RunError, Runner, Stage
from stagegraph.data.prompts import RunLabels
from stagegraph.journal import MemoryJournal
from stagegraph.schema.errors import TracingError
from stagegraph.tracing import deploy_prompts, langfuse_prompts, promote_prompts, rollback_prompts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("keys")]


@pytest.mark.parametrize("place", ["runner", "run"])
async def test_a_run_uses_what_is_deployed(
    server: LangfuseServer, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Given to a runner or to one run, each stage says what carries the label in Langfuse."""
    assert deploy_prompts(MINE, Write(), "candidate") == {"draft": 1, "inner.polish": 1}
    assert set(server.prompts) == {"Write/draft", "Write/inner.polish"}
    live = langfuse_prompts(Write(), label="candidate")
    runner = Runner(told(), prompts=live if place == "runner" else None, tracing=None)
    run = await runner.run(Write(), INPUT, prompts=live if place == "run" else None)
    assert said(run) == TUNED
    assert run.prompts_digest == MINE.digest
    assert (await live.current()).origins["inner.polish"].name == "Write/inner.polish"
    assert not warned(caplog)


async def test_nothing_is_made_twice(server: LangfuseServer) -> None:
    """What says the same as the newest version makes no new one, and what says something else makes one."""
    assert deploy_prompts(MINE, Write()) == deploy_prompts(MINE, Write()) == dict.fromkeys(PATHS, 1)
    assert deploy_prompts(MINE, Write(), "staging") == dict.fromkeys(PATHS, 1)
    assert labels(server) == {"candidate": 1, "staging": 1, "latest": 1}
    changed = MINE.replace({"draft": "Better."})
    assert deploy_prompts(changed, Write()) == {"draft": 2, "inner.polish": 1}
    with pytest.raises(PromptError, match="there is no stage `drafts`"):
        deploy_prompts(Prompts({"drafts": Prompt("x")}), Write())


async def test_everything_of_a_prompt_survives(server: LangfuseServer) -> None:
    """Demos, tool texts and odd text come back; the config tells where the prompts come from."""
    whole = Prompt("Say {{it}}: é \N{SNOWMAN}", (Demo(INPUT, "out\u2028"),), {"search": "Search it."})
    prompts = MINE.replace({"draft": whole})
    deploy_prompts(prompts, Write(), "production", provenance={"optimizer": "GEPA", "metric": len}, message="why")
    live = await langfuse_prompts(Write()).current()
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
        return deploy_prompts(Prompts({"ask": Prompt("Ask.", fields={"words": text})}), Ask(), "production")

    assert (deployed("Two words."), deployed("Two words.")) == ({"ask": 1}, {"ask": 1})
    assert deployed("One word.") == {"ask": 2}
    assert server.prompts["Ask/ask"][-1]["config"]["stagegraph"]["parts"] == {"fields": {"words": "One word."}}
    runner = Runner(FunctionModel(answer), tracing=None, prompts=langfuse_prompts(Ask()))
    assert (await runner.run(Ask(), "x")).output.words == "One word."
    with pytest.raises(PromptError, match="no output field `word`"):
        deploy_prompts(Prompts({"ask": Prompt("Ask.", fields={"word": "x"})}), Ask())
    server.prompts["Ask/ask"][-1]["config"]["stagegraph"]["parts"] = {"fields": {"word": "x"}}
    strange = Runner(FunctionModel(answer), tracing=None, prompts=langfuse_prompts(Ask()))
    assert (await strange.run(Ask(), "x")).output.words == ""


async def test_a_stage_of_its_own_is_named_without_a_path(server: LangfuseServer) -> None:
    """A stage that is run by itself has one prompt, named like it."""
    stage = Write.draft
    deploy_prompts(Prompts({"draft": Prompt("Sing.")}), stage, "production")
    assert set(server.prompts) == {"draft"}
    run = await Runner(told(), tracing=None, prompts=langfuse_prompts(stage)).run(stage, INPUT)
    assert run.output == "Sing."


async def test_promotion_and_rollback_move_a_label(server: LangfuseServer) -> None:
    """A promotion can be repeated and undone; a stage that it did not change is left alone by its undoing."""
    for text in ("one", "two"):
        deploy_prompts(Prompts({path: Prompt(text) for path in PATHS}), Write())
        assert promote_prompts(Write()) == promote_prompts(Write())
    deploy_prompts(Prompts({"draft": Prompt("three"), "inner.polish": Prompt("two")}), Write())
    assert promote_prompts(Write()) == {"draft": 3, "inner.polish": 2}
    assert rollback_prompts(Write()) == {"draft": 2}
    assert labels(server, "inner.polish")["production"] == 2
    assert said(await Runner(told(), tracing=None, prompts=langfuse_prompts(Write())).run(Write(), INPUT)) == [
        "two",
        "two",
    ]
    assert rollback_prompts(Write()) == {"draft": 3}
    assert labels(server)["production"] == 3


async def test_nothing_to_move_is_an_error(server: LangfuseServer) -> None:
    """Without a candidate nothing can be promoted, and without a promotion nothing undone."""
    with pytest.raises(TracingError, match="has the label 'candidate'"):
        promote_prompts(Write())
    deploy_prompts(MINE, Write())
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
            await asyncio.to_thread(deploy_prompts, new, self, "production")
            with anyio.fail_after(10):
                while (await live.current())["draft"].instructions != "New.":  # noqa: ASYNC110 - a thread of its own fetches it
                    await asyncio.sleep(0)
            return await self.inner(Text(words=draft))

    deploy_prompts(MINE, Moving(), "production")
    live = langfuse_prompts(Moving(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Moving(), INPUT)) == TUNED
    assert said(await runner.run(Moving(), INPUT)) == ["New.", "New."]


async def test_a_later_run_gets_the_new_version_without_waiting(
    server: LangfuseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time to live a run still uses what is there, and lets the next one have what it fetched."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "5")
    deploy_prompts(MINE, Write(), "production")
    live = langfuse_prompts(Write(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Write(), INPUT)) == TUNED
    better = MINE.replace({"draft": "Better."})
    deploy_prompts(better, Write(), "production")
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
    deploy_prompts(MINE, Write(), "production")
    before = len(server.asked(PROMPTS, "GET"))
    runner = Runner(told(), tracing=None, prompts=langfuse_prompts(Write()))
    for _ in range(3):
        await runner.run(Write(), INPUT)
    assert len(server.asked(PROMPTS, "GET")) - before == 2


async def test_requests_are_linked_to_the_version_they_used(server: LangfuseServer) -> None:
    """Each generation shows the prompt of its own stage; a stage with the code's text shows none."""
    deploy_prompts(MINE, Write(), "production")
    deploy_prompts(MINE.replace({"draft": "Better."}), Write(), "production")
    del server.prompts["Write/inner.polish"]
    watch = Watch(server)
    runner = Runner(told(), tracing=watch.tracing(), prompts=langfuse_prompts(Write()))
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
    live = langfuse_prompts(Write(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    assert said(await runner.run(Write(), INPUT)) == CODE
    deploy_prompts(MINE, Write(), "production")
    with anyio.fail_after(10):
        while said(await runner.run(Write(), INPUT)) != TUNED:
            pass


async def test_a_resumed_run_keeps_the_versions_it_began_with(server: LangfuseServer) -> None:
    """What was promoted in between is not for a run that goes on, and its requests are linked to what it used."""
    deploy_prompts(MINE, Write(), "production")
    journal, watch = MemoryJournal(), Watch(server)
    tracing = watch.tracing()
    broken = Runner(fails(ValueError("no")), journal=journal, tracing=tracing, prompts=langfuse_prompts(Write()))
    with pytest.raises(RunError):
        await broken.run(Write(), INPUT, run_id="r")
    deploy_prompts(MINE.replace(dict.fromkeys(PATHS, "Better.")), Write(), "production")
    live = langfuse_prompts(Write())
    assert (await live.current())["draft"].instructions == "Better."
    run = await Runner(told(), journal=journal, tracing=tracing, prompts=live).resume("r", graph=Write())
    assert said(run) == TUNED
    assert run.prompts_digest == MINE.digest
    linked = {(row["promptName"], row["promptVersion"]) for row in await watch.rows("r") if row["type"] == "GENERATION"}
    assert linked == {("Write/draft", 1), ("Write/inner.polish", 1)}
    tracing.close(5)


async def test_prompts_of_another_graph_are_refused(server: LangfuseServer) -> None:
    """They are checked like those of a file."""
    live = langfuse_prompts(Write())
    with pytest.raises(PromptError, match="do not fit Inner"):
        await Runner(told(), tracing=None, prompts=live).run(Inner(), INPUT)


def test_without_keys_there_are_no_prompts(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot work is said at once."""
    monkeypatch.delenv("LANGFUSE_SECRET_KEY")
    with pytest.raises(DeclarationError, match="LANGFUSE_SECRET_KEY"):
        langfuse_prompts(Write())


def test_langfuses_own_client_reads_them(server: LangfuseServer, client: Langfuse) -> None:
    """What was pushed is an ordinary text prompt."""
    deploy_prompts(MINE, Write(), "production")
    found = client.get_prompt("Write/inner.polish", label="production")
    assert (found.prompt, found.version, found.tags) == ("inner.polish, tuned.", 1, ["stagegraph"])
    promote_prompts(Write(), source="production", target="stable")
    assert client.get_prompt("Write/draft", label="stable").version == 1


async def test_a_source_is_asked_once_a_run(server: LangfuseServer) -> None:
    """Anything that gives prompts may stand in their place: it hears what the run is about, and its answer is checked."""
    heard: list[tuple[str | None, tuple[str, ...]]] = []

    class ByUser:
        async def current(self, labels: RunLabels | None) -> Prompts:
            assert labels is not None
            heard.append((labels.user_id, labels.tags))
            return MINE if labels.user_id == "tester" else Prompts({"drafts": "x"})

    runner = Runner(told(), tracing=None, prompts=ByUser())
    assert said(await runner.run(Write(), INPUT, user_id="tester", tags=("a",))) == TUNED
    with pytest.raises(PromptError, match="there is no stage `drafts`"):
        await runner.run(Write(), INPUT)
    assert heard == [("tester", ("a",)), (None, ())]
