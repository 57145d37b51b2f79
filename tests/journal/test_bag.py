"""The bag of recorded calls: whatever is asked in whatever order, each record goes once, to a call with its content."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stagegraph.data.call import Kind
from stagegraph.journal import CallRow, OpRow
from stagegraph.runner.identity import ReplayCache as Bag
from stagegraph.runner.identity import changes
from stagegraph.runner.state import CacheKey

PLACES = [f"ask[{i}]" for i in range(6)]
places = st.sampled_from(PLACES)
contents = st.sampled_from(["x", "y", "z"])
recordings = st.dictionaries(places, contents)
statuses = st.sampled_from(["succeeded", "running", "cancelled", "suspended", "failed"])


def call(key: str, identity: str, status: str = "succeeded", **fields: object) -> CallRow:
    given = {"run_id": "r", "path": "ask", "kind": "stage", "parent": "", "position": 0, "input": "1", "started": 0.0}
    return CallRow(key=key, identity=identity, status=status, **{**given, **fields})  # type: ignore[arg-type]


def op(key: str, identity: str, name: str = "request:d#0") -> OpRow:
    return OpRow(run_id="r", key=key, identity=identity, op=name, digest="d", payload=f"{key} {identity} {name}")


@given(recordings, st.lists(st.tuples(places, contents)), st.dictionaries(places, statuses))
def test_no_record_is_handed_out_twice_and_none_to_other_content(
    recorded: dict[str, str], calls: list[tuple[str, str]], status: dict[str, str]
) -> None:
    """Whatever is asked how often, a record leaves the bag once, and its content is what was asked."""
    rows = [call(key, identity, status.get(key, "succeeded")) for key, identity in recorded.items()]
    bag = Bag(rows, [op(key, identity) for key, identity in recorded.items()])
    seen: list[str] = []
    for key, identity in calls:
        found = bag.claim(key, identity)
        if found is not None:
            assert found.row.identity == identity
            assert all(row.identity == identity and row.key == found.row.key for row in found.ops.values())
            seen.append(found.row.key)
    assert len(seen) == len(set(seen))


@given(recordings, st.permutations(PLACES))
def test_an_unchanged_program_gets_everything_at_its_own_place(recorded: dict[str, str], order: list[str]) -> None:
    """Nothing changed: in whatever order the places ask, each gets its own record."""
    bag = Bag([call(key, identity) for key, identity in recorded.items()])
    for key in order:
        found = bag.claim(key, recorded[key]) if key in recorded else None
        assert (found is not None) == (key in recorded)
        assert found is None or found.row.key == key


@given(st.permutations(PLACES), st.permutations(PLACES))
def test_calls_that_changed_their_order_find_their_content(contents_of: list[str], order: list[str]) -> None:
    """Different contents at swapped places: each call finds what was recorded for its content."""
    bag = Bag([call(key, f"content of {key}") for key in PLACES])
    for key, content in zip(order, contents_of, strict=True):
        found = bag.claim(key, f"content of {content}")
        assert found is not None
        assert found.row.key == content


@given(st.permutations(PLACES), st.sets(places), st.sets(places))
def test_identical_calls_keep_their_own_places(order: list[str], finished: set[str], begun: set[str]) -> None:
    """The same asked at many places: a finished answer, and what an unfinished call was told, stay where they were."""
    rows = [call(key, "same", "succeeded" if key in finished else "running") for key in finished | begun]
    bag = Bag(rows, [op(key, "same") for key in begun], resumes=True)
    for key in order:
        found = bag.claim(key, "same")
        assert (found is not None) == (key in finished | begun)
        assert found is None or (found.row.key == key and found.finished == (key in finished))
        assert found is None or bool(found.ops) == (key in begun)


@given(recordings, st.lists(st.tuples(places, contents), unique_by=lambda one: one[0]))
def test_the_exact_place_goes_first_while_nobody_took_its_record(
    recorded: dict[str, str], calls: list[tuple[str, str]]
) -> None:
    """A call with the content that its place had gets that place's record, unless it was taken before."""
    bag = Bag([call(key, identity) for key, identity in recorded.items()])
    taken: set[str] = set()
    for key, identity in calls:
        found = bag.claim(key, identity)
        if recorded.get(key) == identity and key not in taken:
            assert found is not None
            assert found.row.key == key
        if found is not None:
            taken.add(found.row.key)


def test_a_call_that_did_not_finish_goes_on() -> None:
    """However it ended without an output, what its agent was told is still good."""
    for status in ("failed", "cancelled", "suspended", "running"):
        found = Bag([call("ask", "x", status)], [op("ask", "x")]).claim("ask", "x")
        assert found is not None, status
        assert not found.finished
        assert list(found.ops) == ["request:d#0"]


def test_a_failed_call_that_was_told_nothing_takes_no_place() -> None:
    """There is nothing to hand out, and nothing that keeps the record of another call from its content."""
    bag = Bag([call("ask[0]", "x", "failed"), call("ask[1]", "x")])
    found = bag.claim("ask[2]", "x")
    assert found is not None
    assert found.row.key == "ask[1]"


def test_what_a_call_was_told_before_its_own_row_was_written_counts() -> None:
    """The row of a call is written with others; a process may die between its first request and the row."""
    found = Bag([], [op("ask", "x"), op("ask", "x", "request:e#0")]).claim("ask", "x")
    assert found is not None
    assert not found.finished
    assert len(found.ops) == 2


@given(recordings, st.lists(st.tuples(places, contents), unique_by=lambda one: one[0]))
def test_a_replay_runs_only_what_was_not_recorded_as_often(
    recorded: dict[str, str], calls: list[tuple[str, str]]
) -> None:
    """Wherever things stand now: of each content as many calls run as there are more of it than before."""
    bag = Bag([call(key, content) for key, content in recorded.items()])
    ran = Counter(content for key, content in calls if bag.claim(key, content, "step") is None)
    assert ran == Counter(content for _, content in calls) - Counter(recorded.values())


@given(
    recordings, st.lists(st.tuples(places, contents), unique_by=lambda one: one[0]), st.sampled_from(["step", "stage"])
)
def test_a_resumed_step_keeps_to_its_place_and_a_stage_moves_where_it_is_sure(
    recorded: dict[str, str], calls: list[tuple[str, str]], kind: Kind
) -> None:
    """A stage takes the record of another place when that place has become another call, and a step never does."""
    bag = Bag([call(key, content, kind=kind) for key, content in recorded.items()], resumes=True)
    called: dict[str, str] = {}
    for key, content in calls:
        called[key] = content
        found = bag.claim(key, content, kind)
        if recorded.get(key) == content:
            assert found is not None
            assert found.row.key == key
        elif kind == "step":
            assert found is None
        elif found is not None:
            assert called[found.row.key] != recorded[found.row.key] == content


def test_a_replay_takes_what_was_left_behind_first_and_then_the_lowest() -> None:
    """Indices are numbers; a place that has another content now does not need its record any more."""
    bag = Bag([call(f"ask[{i}]", "x") for i in (10, 2, 9, 3)])
    assert bag.claim("ask[9]", "y") is None
    order = [bag.claim(f"new[{i}]", "x") for i in range(5)]
    assert [found and found.row.key for found in order] == ["ask[9]", "ask[2]", "ask[3]", "ask[10]", None]


def test_what_an_unfinished_call_was_told_stays_at_its_place() -> None:
    """Requests and tool calls belong to where they were made, also when something else is called there now."""
    bag = Bag([call("ask[0]", "x", "cancelled")], [op("ask[0]", "x")], resumes=True)
    assert bag.claim("ask[0]", "y") is None
    assert bag.claim("ask[1]", "x") is None


def test_a_call_says_what_changed() -> None:
    """The words name the input and the parts that differ from what stood at the place."""
    before = call("ask", "x", parts='{"the prompt": "1", "the model": "1"}')
    assert changes(before, CacheKey("1", "x", {"the prompt": "1", "the model": "1"}, "")) == ""
    assert changes(before, CacheKey("2", "y", {"the prompt": "2", "the model": "1"}, "")) == "the input and the prompt"
