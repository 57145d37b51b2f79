"""What never leaves the process: redacted values, contents that are not captured, secrets, files."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langfuse_server import LangfuseServer
from pydantic import BaseModel
from pydantic_ai import Agent, ApprovalRequired, BinaryContent, DeferredToolRequests, ModelRetry
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from traced_runs import Watch, meta, named, one

from scripted import echo, fails, says
from stagegraph import Graph, RunError, Runner, Stage, fan_out, feedback, settle, step
from stagegraph.journal import MemoryJournal

pytestmark = pytest.mark.anyio

INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"


class Order(BaseModel):
    text: str
    parts: list[str] = []


def scripted_answers(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Calls the tool twice (it asks for that), then answers."""
    if len(messages) < 4:
        return ModelResponse([TextPart("zebra-saying"), ToolCallPart("look", {"query": "zebra-argument"})])
    return ModelResponse([ToolCallPart(info.output_tools[0].name, {"text": "zebra-output", "parts": ["zebra-part"]})])


class Zoo(Graph[Order, Order]):
    """Everything that may be written by a user, a developer or a model, each with a zebra in it."""

    def __init__(self) -> None:
        asked: list[str] = []

        async def look(query: str) -> dict[str, str]:
            """zebra-description"""
            asked.append(query)
            if len(asked) == 1:
                raise ModelRetry("zebra-retry")
            return {"found": "zebra-result", "zebra-name": "x"}

        async def check(text: str) -> str:
            raise ValueError(f"zebra-error {text}")

        agent = Agent(
            FunctionModel(scripted_answers),
            output_type=Order,
            name="keeper",
            instructions="zebra-instructions",
        )
        agent.tool_plain(look)
        refused = ModelHTTPError(400, "m", {"error": "zebra-body"})
        self.keep = Stage(Order, agent)
        self.refuse = Stage(str, Agent(fails(refused), name="refuser", instructions="zebra-more"))
        self.check = step(check)

    async def flow(self, order: Order) -> Order:
        await settle(self.check, ["zebra-item"], key=lambda _: "zebra-label")
        await settle(self.refuse, ["zebra-question"])
        return (await fan_out(self.keep, [order]))[0]


ZEBRAS = {
    *("input", "field", "output", "part", "saying", "argument", "result", "name", "retry", "description"),
    *("instructions", "more", "error", "item", "question", "body"),
}
ORDER = Order(text="zebra-input", parts=["zebra-field"])


async def zoo(watch: Watch, **options: Any) -> str:
    """Run it, and give everything that was sent."""
    runner = Runner(tracing=watch.tracing(**options))
    run = await runner.run(Zoo(), ORDER, session_id="s", user_id="u", metadata={"team": "blue"})
    assert run.output.text == "zebra-output"
    assert len(await watch.trace(run)) == 12
    return watch.everything()


async def test_without_further_words_contents_are_shown(watch: Watch) -> None:
    """Inputs, outputs, prompts, tools and errors are what people look for in a trace."""
    sent = await zoo(watch)
    assert {name for name in ZEBRAS if f"zebra-{name}" in sent} == ZEBRAS


@pytest.mark.parametrize("capture", ["shape", "none"])
async def test_contents_that_are_not_captured_are_nowhere(watch: Watch, capture: str) -> None:
    """Neither spans nor errors nor the keys of items hold what a user, a developer or a model wrote."""
    sent = await zoo(watch, capture=capture)
    assert "zebra" not in sent.lower()
    spans = watch.server.spans
    assert {row.status[1] for row in spans} == {""}
    assert one(spans, "step:check").attributes["langfuse.observation.status_message"] == "ValueError"
    assert meta(one(spans, "stage:keep"))["key"] == "keep[0]"
    assert meta(one(spans, "step:check"))["key"] == "check[*]"
    assert meta(one(spans, "stage:refuse"))["attempts"] == 1
    chats = named(spans, "chat function:scripted_answers:")
    assert all(chat.attributes["gen_ai.usage.input_tokens"] > 0 for chat in chats)
    assert len(chats) == 3


async def test_a_shape_has_types_and_sizes(watch: Watch) -> None:
    """Where only the shape is captured, it says how much there was, and of what."""
    await zoo(watch, capture="shape")
    root = one(watch.server.spans, "Zoo")
    assert json.loads(root.attributes[INPUT]) == {"text": "str of 11", "parts": ["list of 1", "str of 11"]}
    assert json.loads(root.attributes[OUTPUT]) == {"text": "str of 12", "parts": ["list of 1", "str of 10"]}


async def test_nothing_is_captured_of_nothing(watch: Watch) -> None:
    """Where nothing is captured, there are no inputs and outputs at all, and usage and labels still are."""
    await zoo(watch, capture="none")
    assert not any(name in span.attributes for span in watch.server.spans for name in (INPUT, OUTPUT))
    assert {span.attributes["session.id"] for span in watch.server.spans} == {"s"}


def to_horse(value: Any) -> Any:
    return json.loads(json.dumps(value).replace("zebra", "horse"))


async def test_redact_gets_every_content(watch: Watch) -> None:
    """Our inputs, outputs and errors and Pydantic AI's messages go through the user's function."""
    sent = await zoo(watch, redact=to_horse)
    assert sent.count("zebra") == sent.count("zebra-label")
    assert {name for name in ZEBRAS if f"horse-{name}" in sent} == ZEBRAS


async def test_redact_gets_data_not_text(watch: Watch) -> None:
    """An input reaches the function as the JSON value that it is."""
    seen: list[Any] = []

    def look(value: Any) -> Any:
        seen.append(value)
        return value

    await zoo(watch, redact=look)
    assert {"text": "zebra-input", "parts": ["zebra-field"]} in seen
    assert any(isinstance(value, list) and value and "role" in value[0] for value in seen)


async def test_a_redact_that_fails_sends_nothing_of_the_value(watch: Watch) -> None:
    """Neither the value nor what the function said about it is sent, and the run goes on."""

    def broken(value: Any) -> Any:
        raise RuntimeError(f"zebra {value}")

    sent = await zoo(watch, redact=broken)
    assert sent.count("zebra") == sent.count("zebra-label")
    assert "`redact` raised RuntimeError" in sent


async def test_redact_applies_to_scores(watch: Watch) -> None:
    """What people wrote when they scored a run is theirs, too."""
    runner = Runner(tracing=watch.tracing(redact=to_horse))
    await feedback("run", "said", "a zebra", comment="zebra!", runner=runner)
    await watch.sent()
    (score,) = watch.server.scores
    assert (score["value"], score["comment"]) == ("a horse", "horse!")


async def test_redact_gets_a_correction_as_data(watch: Watch) -> None:
    """What should have come out reaches the function as what came out does."""
    runner = Runner(tracing=watch.tracing(redact=lambda value: {"name": "x"} if isinstance(value, dict) else value))
    await feedback("run", "correction", '{"name": "zebra"}', runner=runner)
    await feedback("other", "correction", "just so", runner=runner)
    await watch.sent()
    assert {score["value"] for score in watch.server.corrections} == {'{"name": "x"}', "just so"}


@pytest.mark.parametrize("capture", ["shape", "none"])
async def test_what_people_wrote_of_a_run_is_not_captured_either(watch: Watch, capture: str) -> None:
    """Without contents, a score is a number without a comment, and there are no corrections."""
    runner = Runner(tracing=watch.tracing(capture=capture))
    await feedback("run", "correction", '"zebra"', runner=runner)
    await feedback("run", "good", 1, comment="zebra!", runner=runner)
    await watch.sent()
    assert [score["name"] for score in watch.server.scores] == ["good"]
    assert "zebra" not in watch.everything()


async def test_what_a_tool_says_when_it_waits_is_redacted(watch: Watch) -> None:
    """What a tool call that waits for approval tells about itself is content."""

    async def pay() -> str:
        raise ApprovalRequired(metadata={"customer": "zebra"})

    agent = Agent(TestModel(), output_type=[str, DeferredToolRequests])
    agent.tool_plain(pay)
    run = await Runner(tracing=watch.tracing(redact=to_horse), journal=MemoryJournal()).run(Stage(str, agent), "x")
    assert run.status == "suspended"
    await watch.sent()
    sent = watch.everything()
    assert "horse" in sent
    assert "zebra" not in sent


PEM = '-----BEGIN KEY-----\nheron "one"\\\nÄgret two\n-----END KEY-----'
BEARER = "abcDEF" * 6
SECRETS = {
    "langfuse": "sk-lf-test",
    "environment": "quiet-as-a-mouse",
    "pem": PEM,
    "bearer": f"Authorization: Bearer {BEARER}",
    "url": "see postgres://admin:hunter2@db.example/x",
    "url without a user": "redis://:hunter2@cache.example",
    "query": "https://api.example/v1?api_key=hunter2&page=2",
    "json": json.dumps({"password": 'hunter2"hunter2', "page": 2}),
    "code": repr({"password": "hunter2", "headers": {"Authorization": f"Bearer {BEARER}"}}),
    "assignment": "Client(password='hunter2', secret_key=hunter2)",
    "provider": "sk-proj-hunter2hunter2hunter2",
}


@pytest.mark.parametrize("name", list(SECRETS))
async def test_secrets_never_leave(watch: Watch, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Wherever a secret comes up (input, output, messages, tools, errors, labels, scores), it is taken out."""
    monkeypatch.setenv("MY_SERVICE_API_KEY", "quiet-as-a-mouse")
    monkeypatch.setenv("SIGNING_PRIVATE_KEY", PEM)
    secret = SECRETS[name]

    async def look(query: dict[str, str]) -> dict[str, Any]:
        return {"query": query, "seen": [secret, {"text": secret}]}

    @step
    async def check_it(text: str) -> str:
        raise ValueError(text)

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse([ToolCallPart("look", {"query": {"password": "hunter2", "text": secret}})])
        return ModelResponse([TextPart(f"<{secret}>")])

    agent = Agent(FunctionModel(answer), instructions=f"Use {secret}.")
    agent.tool_plain(look)

    class Leaky(Graph[dict[str, Any], str]):
        say = Stage(str, agent)
        refuse = Stage(str, Agent(fails(ModelHTTPError(401, "m", {"request": {"headers": secret}}))))
        check = check_it

        async def flow(self, given: dict[str, Any]) -> str:
            await settle(self.refuse, ["x"])
            await self.say(json.dumps(given))
            return await self.check(secret)

    runner = Runner(tracing=watch.tracing())
    given = {"password": "hunter2", "deep": {"Api-Key": "hunter2", "text": secret}}
    labels: dict[str, Any] = {"api_key": "hunter2", "db_password_prod": "hunter2", "deep": {"auth_token": "hunter2"}}
    with pytest.raises(RunError) as caught:
        await runner.run(Leaky(), given, tags=(secret,), user_id=secret, metadata={**labels, "text": secret})
    assert caught.value.run is not None
    await feedback(caught.value.run.id, "good", 1, comment=secret, runner=runner)
    await feedback(caught.value.run.id, "said", secret, runner=runner)
    spans = await watch.trace(caught.value.run)
    assert len(spans) == 10
    sent = watch.everything()
    for part in ("sk-lf-test", "quiet-as-a-mouse", "hunter2", BEARER, "heron", "gret"):
        assert part not in sent
    assert one(spans, "Leaky").attributes[INPUT].count("[secret]") >= 3
    assert json.loads(one(spans, "Leaky").attributes[INPUT]).keys() == given.keys()
    assert "page" in sent or "page" not in secret


@pytest.mark.parametrize(
    "text",
    [
        "A basic understanding of password rules: eight letters.",
        '{"secretary": "Ann", "tokens": 12, "monkey": "Bo"}',
        "sketch-to-implementation-of-the-plan",
        "see https://example.com/a:b and mail ann@example.com",
        "keys: a, b; the secret of good cookies is butter",
    ],
)
async def test_ordinary_text_stays_as_it_is(watch: Watch, text: str) -> None:
    """What only sounds like a secret is shown."""
    run = await Runner(echo(), tracing=watch.tracing()).run(Stage(str, Agent()), text)
    root = (await watch.trace(run))[0]
    assert json.loads(root.attributes[INPUT]) == json.loads(root.attributes[OUTPUT]) == text


@pytest.mark.parametrize(
    "piece", ["a-", "eyJ-", "secret_", "password-", "password:", '\\"api_key', "http://a:", "basic "]
)
async def test_looking_for_secrets_takes_no_time(watch: Watch, piece: str) -> None:
    """However unlucky a long text is, the search for secrets in it ends at once: it would hold up the whole process."""
    run = await Runner(says("x"), tracing=watch.tracing()).run(Stage(str, Agent()), piece * (200_000 // len(piece)))
    assert len(await watch.trace(run)) == 3


async def shown(watch: Watch, value: Any) -> Any:
    """What arrives of an input."""

    class Take(Graph[Any, str]):
        async def flow(self, _: Any) -> str:
            return "ok"

    run = await Runner(tracing=watch.tracing()).run(Take(), value)
    return json.loads((await watch.trace(run))[0].attributes[INPUT])


@pytest.mark.parametrize(
    "text",
    [
        "I forgot my password: 'tis gone",
        "my password: 'tis what it's about",
        "authorization: ",
        "the docs say `authorization: `",
    ],
)
async def test_what_stands_beside_an_odd_text_is_kept(watch: Watch, text: str) -> None:
    """An apostrophe or a name without a value does not take anything else with it."""
    value = {"text": text, "other": "keep me"}
    assert await shown(watch, value) == value


@pytest.mark.parametrize(
    "text", ['export SECRET_DIR="C:\\vault\\"', "password='hunter2", 'secret="a\\\\"', "password=\\"]
)
async def test_a_secret_ends_where_its_text_does(watch: Watch, text: str) -> None:
    """Whatever quotes and backslashes a text ends with, the next one is whole."""
    seen = await shown(watch, {"text": text, "other": ["keep me"]})
    assert seen["other"] == ["keep me"]
    assert "hunter2" not in seen["text"]


HIDES = "[secret]"


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (
            {"headers": {"x-api-key": ["abcd1234efgh"], "cookie": ["a=b"]}, "password": 48151623},
            {"headers": {"x-api-key": [HIDES], "cookie": [HIDES]}, "password": HIDES},
        ),
        ([["x-api-key", "abcd"], ["accept", "text"]], [["x-api-key", HIDES], ["accept", "text"]]),
        ({"api_keys": {"a": "abcd", "b": [1234567, True, None]}}, {"api_keys": {"a": HIDES, "b": [HIDES, True, None]}}),
        ({"password": ["abcd"], "pwd": "abcd"}, {"password": [HIDES], "pwd": HIDES}),
        ({"DB_PASS": "abcd", "smtp-pass": "abcd"}, {"DB_PASS": HIDES, "smtp-pass": HIDES}),
        ({"name": "password", "value": "abcd"}, {"name": "password", "value": HIDES}),
        ({"said": '{"password": ["abcd"], "n": 1}'}, {"said": '{"password":["[secret]"],"n":1}'}),
    ],
)
async def test_secrets_are_hidden_in_whatever_form(watch: Watch, value: Any, seen: Any) -> None:
    """What stands under a secret's name is hidden: numbers, lists, objects, and pairs of names and values."""
    assert await shown(watch, value) == seen


@pytest.mark.parametrize(
    "value",
    [
        {"input_tokens": 123456, "total_tokens": 123456, "usage": {"output_tokens": 5000}},
        {"password": None, "api_key": True, "secrets": 3, "password_length": 4096},
        {"first_pass": "fine", "passed": "all", "pass": "of the mountains", "PWD": "/home/ann"},
        {"properties": {"password": {"type": "string"}}, "required": ["password", "email"]},
        [["name", "password"], ["age", 5]],
        {"name": "user", "value": "ann"},
    ],
)
async def test_what_is_no_secret_is_shown_in_whatever_form(watch: Watch, value: Any) -> None:
    """Counts, flags, schemas and names of fields are no secrets."""
    assert await shown(watch, value) == value


FRAGMENTS = st.sampled_from([
    *("password", "api_key", "secret", "authorization: ", "cookie", "Bearer abcdefghij1234567890==", "https://u:p@h"),
    *("sk-abcdefghij1234567890", "eyJabcdefghijk.abcdefghijklm.abc", ": ", "=", "'", '"', "\\", "\n", " ", "é"),
    *("{", "}", "[", "]", ",", "x", "12345"),
])  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=7).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, min_size=5, max_size=40))
@settings(max_examples=8, phases=[Phase.generate], deadline=None)
def test_what_is_json_stays_json(values: list[Any]) -> None:
    """Whatever a value holds, what arrives is JSON, and what stands beside it is untouched."""

    async def main() -> None:
        with LangfuseServer() as server:
            watch = Watch(server)
            for value, seen in zip(
                values, await shown(watch, [[value, "keep me", 7] for value in values]), strict=True
            ):
                assert seen[1:] == ["keep me", 7]
                assert type(seen[0]) is type(value)
            watch.tracings[0].close(10)

    asyncio.run(main())


class Photo(BaseModel):
    image: BinaryContent
    caption: str


async def test_files_do_not_blow_up_the_trace(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where uploads are switched off with Langfuse's variable, the bytes of an image are not sent, in whatever form."""
    monkeypatch.setenv("LANGFUSE_MEDIA_UPLOAD_ENABLED", "false")
    data = random.Random(1).randbytes(600_000)
    image = BinaryContent(data, media_type="image/png")
    stage = Stage(Photo, Agent(says("nice"), name="viewer"), render=lambda photo: [photo.caption, photo.image])
    run = await Runner(tracing=watch.tracing()).run(stage, Photo(image=image, caption="a cat"))
    root, agent, chat = await watch.trace(run)
    assert json.loads(root.attributes[INPUT])["caption"] == "a cat"
    assert "[800000 characters of base64]" in root.attributes[INPUT]
    assert "a cat" in agent.attributes["pydantic_ai.all_messages"]
    assert "image/png" in chat.attributes["gen_ai.input.messages"]
    sent = watch.everything()
    assert len(sent) < 50_000
    assert base64.b64encode(data)[:40].decode() not in sent


async def test_odd_text_and_odd_labels_lose_nothing(watch: Watch) -> None:
    """Half a character, a label that cannot be written as JSON, or one that refers to itself: the rest is shown."""
    circle: dict[str, Any] = {}
    circle["again"] = circle
    half = "a\ud83db"
    odd: dict[str, object] = {"pairs": {(1, 2): 3}, "circle": circle, "half": half, "fine": 1}
    run = await Runner(echo(), tracing=watch.tracing()).run(
        Stage(str, Agent()), half, session_id=half, tags=(half,), user_id=half, metadata=odd
    )
    rows = await watch.rows(run)
    assert len(rows) == 3
    assert {row["userId"] for row in rows} == {"a?b"}
    assert {row["metadata"]["fine"] for row in rows} == {1}
