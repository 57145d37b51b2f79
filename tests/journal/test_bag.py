"""The bag of recorded calls: whatever is asked in whatever order, each record goes once, to a call with its content."""

from hypothesis import given
from hypothesis import strategies as st

from stagegraph.journal import CallRow, OpRow
from stagegraph.runner.identity import ReplayCache as Bag

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
    bag = Bag(rows, [op(key, "same") for key in begun])
    single = len(finished | begun) == 1
    for key in order:
        found = bag.claim(key, "same")
        if single:
            continue  # the only record of its content goes to whoever asks first
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


def test_a_call_says_what_changed() -> None:
    """The words name the input and the parts that differ from what stood at the place."""
    bag = Bag([call("ask", "x", parts='{"the prompt": "1", "the model": "1"}')])
    assert bag.changed("ask", "1", {"the prompt": "1", "the model": "1"}) == "nothing"
    assert bag.changed("ask", "2", {"the prompt": "2", "the model": "1"}) == "the input and the prompt"
    assert bag.changed("other", "1", {}) is None
