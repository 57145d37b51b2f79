"""Images and other files of a run: uploaded once, referred to in every observation, and read back typed."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, BinaryImage, ImageUrl
from pydantic_ai.messages import FilePart, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from traced_runs import Watch, trace_id

from scripted import echo, says
from stagegraph import Graph, Runner, Stage, step

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(3_000)
PDF = b"%PDF-1.7 " + random.Random(2).randbytes(50)
WAV = random.Random(3).randbytes(20)
INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"


class Photo(BaseModel):
    image: BinaryContent
    caption: str


class Album(BaseModel):
    photos: list[Photo]
    sound: BinaryContent | None = None
    link: ImageUrl | None = None


@step
async def crop(photo: Photo) -> Album:
    return Album(photos=[photo], sound=BinaryContent(WAV, media_type="audio/wav"))


class Describe(Graph[Photo, Album]):
    look = Stage(Photo, Agent(says("nice"), name="viewer"), render=lambda photo: [photo.caption, photo.image])
    crop = crop

    async def flow(self, photo: Photo) -> Album:
        await self.look(photo)
        return await self.crop(photo)


PHOTO = Photo(image=BinaryContent(PNG, media_type="image/png"), caption="a cat")


def contents(watch: Watch) -> dict[str, bytes | None]:
    return {one.type: one.content for one in watch.server.media.values()}


async def test_files_arrive_once_and_are_referred_to_everywhere(watch: Watch) -> None:
    """The server has the bytes, and no span has them: input, output and the parts of a chat have a reference."""
    run = await Runner(tracing=watch.tracing()).run(Describe(), PHOTO)
    spans = {span.name: span for span in await watch.trace(run)}
    assert contents(watch) == {"image/png": PNG, "audio/wav": WAV}
    (image,) = [key for key, one in watch.server.media.items() if one.type == "image/png"]
    (sound,) = [key for key, one in watch.server.media.items() if one.type == "audio/wav"]
    assert all(one.status == 200 for one in watch.server.media.values())
    reference = f"@@@langfuseMedia:type=image/png|id={image}|source=bytes@@@"
    assert json.loads(spans["Describe"].attributes[INPUT])["image"]["data"] == reference
    assert json.loads(spans["stage:look"].attributes[INPUT])["image"]["data"] == reference
    output = json.loads(spans["Describe"].attributes[OUTPUT])
    assert output["photos"][0]["image"]["data"] == reference
    assert output["sound"]["data"] == f"@@@langfuseMedia:type=audio/wav|id={sound}|source=bytes@@@"
    (message,) = json.loads(spans["chat function:answer:"].attributes["gen_ai.input.messages"])
    assert [part.get("content") for part in message["parts"]] == ["a cat", reference]
    assert reference in spans["invoke_agent viewer"].attributes["pydantic_ai.all_messages"]
    used = watch.server.media[image].uses
    assert {trace for trace, _, _ in used} == {trace_id(run)}
    assert {observation for _, observation, _ in used} == {span.span_id for span in spans.values()}
    assert len(watch.server.asked("/storage/")) == 2
    text = base64.b64encode(PNG)[:40].decode()
    assert text not in repr(watch.server.spans)


async def test_a_run_with_files_reads_back_typed(watch: Watch) -> None:
    """Its values are equal to those that ran, and it gives examples, of the graph and of a stage."""
    run = await Runner(tracing=watch.tracing()).run(Describe(), PHOTO)
    await watch.sent()
    reader = watch.source()
    found = await reader.run(run.id, Describe())
    assert (found.input, found.output) == (run.input, run.output)
    assert found.call("look").input == PHOTO
    examples = await watch.source().examples(Describe())
    assert [(one.input, one.expected) for one in examples] == [(PHOTO, run.output)]
    assert [one.input for one in await watch.source().examples(Describe(), stage=Describe.look)] == [PHOTO]
    assert reader.skipped == {}


@pytest.mark.parametrize(
    "given",
    [
        BinaryContent(PNG, media_type="image/png"),
        BinaryContent(PNG, media_type="image/png", identifier="mine"),
        BinaryImage(PNG, media_type="image/png"),
        ImageUrl("https://example.org/a.png"),
        ImageUrl("data:image/png;base64," + base64.b64encode(PNG).decode()),
    ],
)
async def test_a_stage_of_a_file_alone_reads_back_typed(watch: Watch, given: BinaryContent | ImageUrl) -> None:
    """The input is the file itself, without a model around it, and gives an example."""
    type_ = ImageUrl if isinstance(given, ImageUrl) else BinaryContent
    stage = Stage(type_, Agent(says("nice")), render=lambda file: ["look", file])
    run = await Runner(tracing=watch.tracing()).run(stage, given)
    await watch.sent()
    found = (await watch.source().run(run.id, stage)).input
    assert (type(found), found, found.identifier) == (type(given), given, given.identifier)
    assert [one.input for one in await watch.source().examples(stage)] == [given]


async def test_a_file_is_sent_once_for_many_runs(watch: Watch) -> None:
    """The server knows where it is used, and the bytes go over the line once."""
    runner = Runner(tracing=watch.tracing())
    for _ in range(3):
        await runner.run(Describe(), PHOTO)
    await watch.sent()
    assert len(watch.server.asked("/storage/")) == 2
    (image,) = [one for one in watch.server.media.values() if one.type == "image/png"]
    assert len({trace for trace, _, _ in image.uses}) == 3


async def test_files_of_tools_models_and_data_addresses(watch: Watch) -> None:
    """What a tool returns, what a model makes, and what stands in an address with the data in it."""
    address = "data:image/gif;base64," + base64.b64encode(b"GIF89a" + bytes(range(60))).decode()

    async def scan() -> BinaryContent:
        return BinaryContent(PDF, media_type="application/pdf")

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse([ToolCallPart("scan", {})])
        return ModelResponse([FilePart(BinaryContent(WAV, media_type="audio/wav")), TextPart("done")])

    class Scan(Graph[Album, str]):
        read = Stage(Album, Agent(FunctionModel(answer), tools=[scan]), render=lambda _: "scan it")

        async def flow(self, album: Album) -> str:
            return await self.read(album)

    album = Album(photos=[], link=ImageUrl(address))
    run = await Runner(tracing=watch.tracing()).run(Scan(), album)
    await watch.sent()
    assert contents(watch) == {
        "application/pdf": PDF,
        "audio/wav": WAV,
        "image/gif": b"GIF89a" + bytes(range(60)),
    }
    found = await watch.source().run(run.id, Scan())
    assert found.input == album
    assert found.input.link is not None
    assert found.input.link.url == address


async def test_what_redact_removes_is_not_uploaded(watch: Watch) -> None:
    """The user's function sees the references, and a file without one stays here."""

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hide(one) for key, one in value.items()}
        if isinstance(value, list):
            return [hide(one) for one in value]
        return "hidden" if isinstance(value, str) and "type=image/png" in value else value

    await Runner(tracing=watch.tracing(redact=hide)).run(Describe(), PHOTO)
    await watch.sent()
    assert contents(watch) == {"audio/wav": WAV}


@pytest.mark.parametrize("capture", ["shape", "none"])
async def test_files_are_not_sent_without_contents(watch: Watch, capture: str) -> None:
    """Where contents are not captured, files are not either."""
    await Runner(tracing=watch.tracing(capture=capture)).run(Describe(), PHOTO)
    await watch.sent()
    assert contents(watch) == {}
    assert not watch.server.asked("media")


@pytest.mark.parametrize("path", ["/storage/", "/media"])
async def test_an_ill_storage_costs_the_files_and_not_the_spans(watch: Watch, path: str) -> None:
    """Spans arrive, lost files are counted, and a later span that refers to them brings them."""
    watch.server.status, watch.server.failing = 500, path
    tracing = watch.tracing()
    runner = Runner(tracing=tracing)
    run = await runner.run(Describe(), PHOTO)
    assert not await tracing.flush(30)
    assert len(watch.server.trace(trace_id(run))) == 5
    assert tracing.lost > 0
    watch.server.status = None
    reader = watch.source()
    found = await reader.run(run.id, Describe())
    assert found.call("look").input != PHOTO
    assert reader.skipped["a file cannot be read"] == 2
    await runner.run(Describe(), PHOTO)
    await tracing.flush(30)
    assert contents(watch) == {"image/png": PNG, "audio/wav": WAV}
    watch.tracings.remove(tracing)
    tracing.close(5)


async def test_a_text_that_looks_like_a_file_stays_what_it_is(watch: Watch) -> None:
    """Words in fields of those names, and a reference that a user wrote, come back as they were."""

    class Odd(BaseModel):
        data: str
        media_type: str
        text: str

    odd = Odd(data="abc", media_type="text/plain", text="@@@langfuseMedia:type=image/png|id=none|source=bytes@@@")
    stage = Stage(Odd, Agent(echo()))
    run = await Runner(tracing=watch.tracing()).run(stage, odd)
    await watch.sent()
    assert (await watch.source().run(run.id, stage)).input == odd
    assert contents(watch) == {}
