"""Examples in DSPy's form and back."""

from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from words import Doc, Upper, Words

from stagegraph import Example, InputError
from stagegraph.optimize import from_dspy, to_dspy


def test_there_and_back_through_dspy() -> None:
    """Inputs are the fields of the input model; a mapping that is expected is one label for each entry."""
    rows = [
        Example(Doc(text="a"), {"total": 1}, "1", {"from": "web"}),
        Example(Doc(text="b"), {"text": "clash"}, "2"),
        Example(Doc(text="c"), "a text", "3"),
        Example(Doc(text="d"), None, "4"),
        Example(Doc(text="e"), [1, 2], "5"),
        Example(Doc(text="f"), {}, "6"),
    ]
    made = to_dspy(rows, Words())
    assert dict(made[0].inputs().items()) == {"text": "a"}
    assert dict(made[0].labels().items()) == {"total": 1}
    assert dict(made[1].labels().items()) == {"expected": {"text": "clash"}}
    assert from_dspy(made, Words()) == rows
    assert from_dspy(made[0].copy(), Words()) == rows[0]
    assert from_dspy(to_dspy(rows[0], Words()), Words()) == rows[0]
    assert to_dspy([Example("hi", "HI")], Upper())[0].inputs().toDict() == {"input": "hi"} | {}


@given(
    st.lists(
        st.tuples(
            st.text(),
            st.none() | st.integers() | st.text() | st.dictionaries(st.text(min_size=1), st.integers(), min_size=1),
        )
    )
)
def test_any_row_survives_the_way_there_and_back(rows: list[tuple[str, Any]]) -> None:
    """Input, expected, id and metadata."""
    made = [Example(text, expected) for text, expected in rows]
    back = from_dspy(to_dspy(made, Upper()), Upper())
    assert [(one.input, one.expected, one.id) for one in back] == [(one.input, one.expected, one.id) for one in made]


def test_examples_that_were_written_for_dspy_are_taken() -> None:
    """With the graph's inputs as fields; one without them is named."""
    found = from_dspy(dspy.Example(text="a", total=1, mood="ok").with_inputs("text"), Words())
    assert (found.input, found.expected) == (Doc(text="a"), {"total": 1, "mood": "ok"})
    assert from_dspy(dspy.Example(text="a", expected=[1]).with_inputs("text"), Words()).expected == [1]
    with pytest.raises(InputError, match="Words: text"):
        from_dspy(dspy.Example(question="a").with_inputs("question"), Words())


def test_a_label_that_dspy_would_hide_comes_back() -> None:
    """Names that begin with `dspy_` are DSPy's own."""
    row = Example(Doc(text="a"), {"dspy_x": 3, "y": 4})
    assert from_dspy(to_dspy(row, Words()), Words()) == row


class Signed(Doc):
    author: str


def test_an_input_that_would_lose_a_field_is_refused() -> None:
    """A subclass of the declared model has more than DSPy's fields hold."""
    rows = [Example(Doc(text="a")), Example(Signed(text="b", author="c"), id="b")]
    with pytest.raises(InputError, match=r"example 'b': .* would lose `author` of Signed"):
        to_dspy(rows, Words())
