"""The prompts file as text: what people see in a diff, what survives a round trip, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent

from forked import python
from stagegraph import Demo, Graph, Prompt, PromptError, Prompts, Stage

characters = st.characters(exclude_categories=["Cs"])
# What YAML's own rules trip over, mixed with anything else.
odd = st.sampled_from(["\n", "\n\n", " ", "  ", "\t", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\ufeff", "\x00", "\x7f",
                       "\ufffe", "\U0010ffff", ": ", " #", "- ", "? ", "'", '"', "\\", "{", "]", "%", "|", ">", "&a", "*a",
                       "!", "---", "...", "null", "~", "no", "1e5", "1E5", ".5", "0x1", "1_0", "12:30", "2001-01-01", ".inf",
                       "-.INF", "<<", "=", "é", "漢", "x" * 300, "word "])  # fmt: skip
texts = st.lists(odd | st.text(characters, max_size=5), max_size=8).map("".join)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
prompts = st.dictionaries(
    texts,
    st.builds(
        Prompt,
        st.none() | texts,
        st.lists(st.builds(Demo, data, data), max_size=2).map(tuple),
        st.dictionaries(texts, texts, max_size=2),
        st.dictionaries(texts, texts, max_size=2),
    ),
    max_size=3,
)


@given(prompts, texts)
def test_whatever_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Prompt], graph: str
) -> None:
    """Texts, demos, tool names and even paths come back exactly, whatever YAML would make of them."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    Prompts(entries, graph=graph).save(path)
    again = Prompts.load(path)
    assert dict(again) == entries
    assert again == Prompts(entries)
    assert again.digest == Prompts(entries).digest
    assert (again.graph or "") == graph
    assert again.to_yaml() == Prompts(entries, graph=graph).to_yaml()


@pytest.mark.parametrize(
    "word", ["1e5", "1E5", "1e+5", "5e-3", "no", "on", "null", "~", "", "12:30", "0o7", ".nan", "<<"]
)
def test_a_word_that_yaml_reads_otherwise_stays_a_text(tmp_path: Path, word: str) -> None:
    """A demo's answer `1e5` is a text after loading, too, and so is a graph or tool of that name."""
    before = Prompts({word: Prompt(word, (Demo(word, {word: [word]}),), {word: word})}, graph=word or None)
    before.save(tmp_path / "p.yaml")
    after = Prompts.load(tmp_path / "p.yaml")
    assert dict(after) == dict(before)
    assert after.graph == before.graph


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    """Data in demos keeps its JSON types; a hand-written `no` or `12:30` is the text that it looks like."""
    (tmp_path / "p.yaml").write_text(f"{HEAD}  a:\n    demos:\n    - input: no\n      output: 12:30\n", "utf-8")
    assert Prompts.load(tmp_path / "p.yaml")["a"].demos == (Demo("no", "12:30"),)
    values = [0, -1, 10**30, 1.0, -0.5, 1e300, 1e-7, float("inf"), True, None, "1"]
    Prompts({"a": Prompt(demos=(Demo(values, {"x": values}),))}).save(tmp_path / "p.yaml")
    (demo,) = Prompts.load(tmp_path / "p.yaml")["a"].demos
    assert demo.input == values
    assert [type(value) for value in demo.output["x"]] == [type(value) for value in values]


def test_the_file_reads_like_text(tmp_path: Path) -> None:
    """Block scalars in the order that was given; nothing else than what a person would write."""
    Prompts(
        {
            "plan": Prompt(
                "Split the work: into *parts*.\n\n- one\n- two\n",
                (Demo({"text": "Two lines,\nin a demo."}, "yes"),),
                {"search": "Finds a page."},
            ),
            "code": Prompt("Write code. # really"),
        },
        graph="Build",
    ).save(tmp_path / "p.yaml")
    assert (tmp_path / "p.yaml").read_text("utf-8") == (
        "# Prompts of a stagegraph graph: stage path -> instructions, demos, tools, fields.\n"
        "format: 1\n"
        "graph: Build\n"
        "prompts:\n"
        "  plan:\n"
        "    instructions: |\n"
        "      Split the work: into *parts*.\n"
        "\n"
        "      - one\n"
        "      - two\n"
        "    demos:\n"
        "      - input:\n"
        "          text: |-\n"
        "            Two lines,\n"
        "            in a demo.\n"
        "        output: 'yes'\n"
        "    tools:\n"
        "      search: |-\n"
        "        Finds a page.\n"
        "  code:\n"
        "    instructions: |-\n"
        "      Write code. # really\n"
    )


@given(st.lists(st.text("abc xyz.", min_size=1).map(lambda t: t.strip() or "a"), min_size=2, max_size=9), st.data())
def test_a_changed_line_is_one_changed_line(lines: list[str], drawn: st.DataObject) -> None:
    """Whichever line of a text changes, the file changes in that line alone."""
    place = drawn.draw(st.integers(0, len(lines) - 1))
    changed = [*lines[:place], "Something new!", *lines[place + 1 :]]
    files = [
        Prompts({"z": Prompt("\n".join(text)), "a": Prompt("Other.")}).to_yaml().splitlines()
        for text in (lines, changed)
    ]
    assert len(files[0]) == len(files[1])
    assert [new.strip() for old, new in zip(*files, strict=True) if old != new] == ["Something new!"]


def test_a_very_long_line_stays_one_line(tmp_path: Path) -> None:
    """Text is never wrapped: a wrapped text would turn one changed word into many changed lines."""
    text = "word " * 20_000 + "end"
    Prompts({"a": Prompt(text)}).save(tmp_path / "p.yaml")
    assert f"      {text}\n" in (tmp_path / "p.yaml").read_text("utf-8")
    assert Prompts.load(tmp_path / "p.yaml")["a"].instructions == text


def test_diff_reads_like_a_diff() -> None:
    """What changed stands there as a unified diff, stages that come and go included; nothing changed is nothing."""
    before = Prompts({"a": Prompt("One.\nTwo.\nThree."), "b": Prompt("Same."), "d": Prompt("")}, graph="G")
    after = Prompts(
        {"b": before["b"], "a": Prompt("One.\n2.\nThree."), "c": Prompt("New."), "d": Prompt("3.")}, graph="H"
    )
    lines = after.diff(before).splitlines()
    assert lines[:2] == ["--- before", "+++ after"]
    assert [line for line in lines[2:] if line[0] in "+-"] == [
        "-      Two.", "+      2.", "+  c:", "+    instructions: |-", "+      New.",
        '-    instructions: ""', "+    instructions: |-", "+      3.",
    ]  # fmt: skip
    assert before.diff(before) == ""
    assert "Same." not in after.diff(before)


def test_a_diff_has_only_what_differs() -> None:
    """The texts of other stages, tools and demos are left out; the key of each changed text is there."""
    demos = (Demo("in", "out"),)
    before = Prompts({"a": Prompt("One.", demos, {"look": "Look.", "find": "Find."}), "b": Prompt("Two.", demos)})
    after = before.replace({"a": Prompt("One.", demos, {"look": "See.", "find": "Find."})})
    expected = ["--- before", "+++ after", "   a:", "     tools:", "       look: |-", "-        Look.", "+        See."]
    assert [line for line in after.diff(before).splitlines() if line[:2] != "@@"] == expected
    assert Prompts({"a": Prompt(demos=(Demo("in", 1),))}).diff(Prompts({"a": Prompt(demos=(Demo("in", True),))}))


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PromptError) as caught:
        Prompts.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 600
    return message


HEAD = "format: 1\nprompts:\n"
BILLION_LAUGHS = ["a0: &a0 [ha, ha]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (HEAD + "  a: {demos: [{input: !!binary aGk=, output: x}]}\n", "tags are not allowed (line 3"),
        (HEAD + "  a: {demos: [{input: !!set {x}, output: x}]}\n", "tags are not allowed (line 3"),
        (HEAD + "  a: {instructions: !!str 5}\n", "tags are not allowed (line 3"),
        (HEAD + "  a: !!python/object/apply:os.system [touch pwned]\n", "tags are not allowed (line 3"),
        (HEAD + "  a: {demos: [{input: {!!merge x: {a: 1}}, output: x}]}\n", "tags are not allowed (line 3"),
        (HEAD + "  a: {demos: [{input: " + "[" * 290 + "]" * 290 + ", output: x}]}\n", "`a`: "),
        (HEAD + "  a: " + "{a: " * 2000, "recursion"),
        (HEAD + '  a: {instructions: "\\ud800"}\n', "(line 3"),
        (HEAD + "  ? [a, b]\n  : {}\n", "a key must be a plain word (line 3"),
        (HEAD + "  1: {}\n", "prompts.1"),
        (HEAD + "  a: hello\n", "`a`: Input should be a mapping"),
        (HEAD + "  a: {demos: {input: 1, output: 2}}\n", "`a`: demos"),
        (HEAD + "  a: {demos: [{input: 1, output: 2, extra: 3}]}\n", "`a`: demos.0.extra"),
        (HEAD + "  a: {tools: {search: 5}}\n", "`a`: tools.search"),
        (HEAD + "  a: {demos: [], demos: []}\n", "'demos' occurs twice (line 3"),
        (HEAD + "  a: {demos: [{input: {x: 1, x: 2}, output: 2}]}\n", "'x' occurs twice (line 3"),
        ("format: 1\nprompts:\n", "at prompts: "),
        ("format: true\nprompts: {}\n", "at format: "),
        ('format: "1"\nprompts: {}\n', "at format: "),
        ("format: 1\nprompts: {}\n---\nformat: 1\n", "another document (line 3"),
        ("format: " + "1" * 5000 + "\nprompts: {}\n", "digits"),
        ("hello", "at the file: Input should be a mapping"),
        ("format: 1\nprompts: {}".encode("utf-16"), "not a YAML file"),
        (bytes(range(256)), "not a YAML file"),
        (HEAD + "\ta: {}\n", "(line 3"),
        ("\n".join(BILLION_LAUGHS), "aliases are not allowed (line 2"),
        (HEAD.replace(":\n", ": [", 2), "line"),
        ("", "at the file: "),
        ("- a\n", "at the file: "),
        ("prompts: {}", "at format: "),
        ("format: 2\nprompts: {}", "format 2"),
        ("format: 1\nprompts: {}\nmore: 1", "at more: "),
        ("format: 1\nprompts: &a\n  x: *a", "aliases are not allowed (line 3"),
        (HEAD + "  a:\n    instructions: x\n  a:\n    instructions: y", "'a' occurs twice (line 5"),
        (HEAD + "  a:\n    instructions: 3", "`a`: instructions"),
        (HEAD + "  a:\n    instruction: x", "`a`: instruction"),
        (HEAD + "  a:\n    demos:\n    - input: x", "`a`: demos.0.output"),
        (HEAD + "  a:\n    tools: [x]", "`a`: tools"),
        (HEAD + "  a:\n    fields: {x: 3}", "`a`: fields.x"),
        ("format: 1\nprompts: " + "[" * 5_000, "YAML"),
        ("format: 1\nprompts: \x00", "YAML"),
        (b"\xff\xfe\x00", "YAML"),
        (b"#" * 5_000_001, "larger than 5,000,000 bytes"),
    ],
    ids=range(43),
)  # fmt: skip
def test_a_file_from_an_enemy_is_refused_at_its_place(tmp_path: Path, content: str | bytes, place: str) -> None:
    """No tag, alias, depth, encoding or shape gets past the door; the message names the file and the place."""
    assert place in refused(tmp_path / "p.yaml", content)


@pytest.mark.parametrize("line", ["      - {input: a, output: b}\n", "      - []\n", "      - 1\n"])
def test_a_dense_file_is_refused_without_being_built(tmp_path: Path, line: str) -> None:
    """A file below the bound in bytes that has hundreds of thousands of values is none that people review."""
    content = HEAD + "  a:\n    demos:\n" + line * (4_900_000 // len(line))
    assert "too many values (line" in refused(tmp_path / "p.yaml", content)


def test_a_large_file_of_texts_is_read(tmp_path: Path) -> None:
    """Thousands of demos and long texts are no reason to refuse a file."""
    demos = "      - {input: " + "word " * 20 + ", output: b}\n"
    content = HEAD + "".join(f"  a{number}:\n    demos:\n{demos * 40}" for number in range(700))
    (tmp_path / "p.yaml").write_text(content)
    assert [len(prompt.demos) for prompt in Prompts.load(tmp_path / "p.yaml").values()] == [40] * 700


@pytest.mark.parametrize("head", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_of_any_editor_is_read(tmp_path: Path, head: str, end: str) -> None:
    """With the mark and the line ends of other systems."""
    text = head + Prompts({"a": Prompt("One.\nTwo.")}).to_yaml().replace("\n", end)
    (tmp_path / "p.yaml").write_bytes(text.encode())
    assert Prompts.load(tmp_path / "p.yaml")["a"].instructions == "One.\nTwo."


def test_what_is_no_file_does_not_keep_the_reader(tmp_path: Path) -> None:
    """A pipe that nobody writes to, a device without an end, a folder and a missing file are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, reason in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "zero", "not a regular file"),
        (tmp_path, "directory"),
        (tmp_path / "none.yaml", "No such file"),
    ):
        with pytest.raises(PromptError, match=f"cannot be read: .*{reason}"):
            Prompts.load(path)


@given(st.binary(max_size=200) | texts.map(lambda text: (HEAD + text).encode()))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds, it is prompts or a `PromptError`."""
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(Prompts.load(path), Prompts)
    except PromptError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_a_path_that_no_file_can_have_is_refused() -> None:
    """A zero byte in a path is a `PromptError` like any other path that cannot be."""
    with pytest.raises(PromptError, match="cannot be read"):
        Prompts.load("a\0b")
    with pytest.raises(PromptError, match="could not be saved"):
        Prompts().save("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_the_system_denies_is_a_prompt_error(tmp_path: Path) -> None:
    """A file that may not be read and a folder that may not be written."""
    path = tmp_path / "p.yaml"
    Prompts({"a": Prompt("old")}).save(path)
    path.chmod(0)
    with pytest.raises(PromptError, match="Permission denied"):
        Prompts.load(path)
    path.chmod(0o600)
    tmp_path.chmod(0o500)
    with pytest.raises(PromptError, match="Permission denied"):
        Prompts({"a": Prompt("new")}).save(path)
    tmp_path.chmod(0o700)
    assert Prompts.load(path)["a"].instructions == "old"


def test_saving_into_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A missing folder, a file as a folder, a folder as the file: each is a `PromptError`, and nothing is left."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "p.yaml", tmp_path / "file" / "p.yaml", tmp_path / "folder"):
        with pytest.raises(PromptError, match="could not be saved"):
            Prompts().save(path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder"]


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Saving to a pipe or a device would put a file in its place; it is refused."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(PromptError, match="not a regular file"):
        Prompts().save(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [found.name for found in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Saving through a symbolic link replaces the file behind it."""
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "p.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    link.symlink_to(real)
    Prompts({"a": Prompt("x")}).save(link)
    assert link.is_symlink()
    assert Prompts.load(real)["a"].instructions == "x"
    assert [found.name for found in (tmp_path / "real").iterdir()] == ["p.yaml"]


def test_a_new_file_may_be_read_by_others(tmp_path: Path) -> None:
    """Prompts are no secrets: a new file is readable like one that an editor made; one that is replaced keeps its mode."""
    Prompts().save(tmp_path / "p.yaml")
    assert stat.S_IMODE((tmp_path / "p.yaml").stat().st_mode) == 0o644
    (tmp_path / "p.yaml").chmod(0o600)
    Prompts({"a": Prompt("y")}).save(tmp_path / "p.yaml")
    assert stat.S_IMODE((tmp_path / "p.yaml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "entries",
    [{"a": Prompt("\ud800")}, {"a": Prompt(tools={"t": "\udfff"})}, {"a": Prompt(demos=(Demo("x", ["\ud800"]),))}],
    ids=["instructions", "tools", "demos"],
)
def test_half_a_character_is_refused_before_anything_is_written(tmp_path: Path, entries: dict[str, Prompt]) -> None:
    """A lone surrogate could be sent to no model: saving names its stage and leaves the old file."""
    path = tmp_path / "p.yaml"
    Prompts({"a": Prompt("old")}).save(path)
    with pytest.raises(PromptError, match=r"p\.yaml.*'a'.*not valid Unicode"):
        Prompts(entries).save(path)
    assert Prompts.load(path)["a"].instructions == "old"


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """When the first file cannot be written whole, there is none; an old one stays as it was."""
    path = tmp_path / "new.yaml"
    code = (
        "import resource, signal, sys\nfrom stagegraph import Prompt, Prompts, PromptError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: Prompts({'a': Prompt('x' * 50_000)}).save(sys.argv[1])\nexcept PromptError as error: print(error)"
    )
    for before in ([], [path]):
        if before:
            Prompts({"a": Prompt("old")}).save(path)
        done = python("-c", code, path, cwd=tmp_path, check=True)
        assert f"{path}: the prompts could not be saved: File too large" in done.stdout
        assert list(tmp_path.iterdir()) == before
    assert Prompts.load(path)["a"].instructions == "old"


class Say(Graph[str, str]):
    """Two stages whose order is not the alphabet's."""

    write = Stage(str, Agent(instructions="Write."))
    check = Stage(str, Agent(instructions="Check."))

    async def flow(self, text: str) -> str:
        return await self.check(await self.write(text))


def test_the_seed_file_follows_the_graph(tmp_path: Path) -> None:
    """`Prompts.of(graph).save(path)` writes the stages in the order of the class, with the graph's name."""
    Prompts.of(Say()).save(tmp_path / "p.yaml")
    lines = (tmp_path / "p.yaml").read_text("utf-8").splitlines()
    assert lines[1:4] == ["format: 1", "graph: Say", "prompts:"]
    assert [line.strip() for line in lines if line.endswith(":")][1:] == ["write:", "check:"]
    Prompts.load(tmp_path / "p.yaml").check(Say())
