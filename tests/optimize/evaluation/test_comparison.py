"""Comparisons: what two reports show, in numbers, in a sentence and on a page."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate import report

from stagegraph import TuningError
from stagegraph.optimize import Report, compare
from stagegraph.optimize.evaluation.statistics import bootstrap, needed, percentile

unit = st.floats(0, 1, allow_nan=False)
values = st.lists(unit, min_size=1, max_size=20)


def of(*scores: float, **fields: Any) -> Report:
    return report({str(place): [score] for place, score in enumerate(scores)}, **fields)


@pytest.mark.parametrize(
    ("before", "after", "start"),
    [
        ([0.0] * 8, [1.0] * 8, "better by 1.00 to 1.00; 8 won, 0 lost, 0 the same of 8 examples"),
        ([1.0] * 8, [0.5] * 8, "worse by 0.50 to 0.50; 0 won, 8 lost"),
        ([0.0, 1.0] * 10, [1.0, 0.0] * 10, "no difference shown"),
        ([0.5] * 8, [0.5] * 8, "no difference shown (+0.00 to +0.00); a difference of 0.05 would have shown"),
        ([0.5] * 8, [0.504] * 8, "better by 0.004 to 0.004; 8 won"),
        ([0.5] * 8, [0.4999] * 8, "worse by 0.0001 to 0.0001; 0 won"),
        ([0.0], [1.0], "1 example is too few to show anything (+1.00)"),
        ([0.0] * 5, [1.0] * 5, "5 examples are too few to show anything (+1.00)"),
    ],
)
def test_a_plain_sentence(before: list[float], after: list[float], start: str) -> None:
    """Better, worse, or not shown; with how many examples it stands on."""
    found = compare(of(*before), of(*after))
    assert str(found).startswith(start)
    assert found.better == start.startswith("better")
    assert found.worse == start.startswith("worse")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """Scores of two metrics, or of two graphs: in the sentence, in the table and on the page."""
    before, after = of(*[0.0] * 8), of(*[1.0] * 8)
    assert compare(before, after).warnings == []
    found = compare(before, replace(after, metric="<b>other", graph="H"))
    assert found.better
    for text in (str(found), found.table()):
        assert "better by 1.00" in text
        assert "Beware: these are scores measured by different metrics (m and <b>other), so" in text
        assert "Beware: these are scores of different graphs (G and H), so" in text
    found.html(tmp_path / "page.html")
    assert "different metrics (m and &lt;b&gt;other)" in (tmp_path / "page.html").read_text("utf-8")


def test_examples_that_do_not_match_are_counted() -> None:
    """Those that only one report has, and those that say something else under the same id."""
    before = of(*[0.0] * 8)
    text = str(compare(of(*[0.0] * 7), of(*[1.0] * 9)))
    assert text.endswith("Left out: 0 examples only before, 2 only after.")
    assert str(compare(of(*[0.0] * 9), of(*[1.0] * 7))).endswith("Left out: 2 examples only before, 0 only after.")
    first, second, *rest = before.rows
    for change, start in (
        ([replace(first, input="another")], "Beware: 1 example has another input or another expectation"),
        ([replace(first, expected=3), replace(second, input=[1])], "Beware: 2 examples have another input"),
    ):
        rows = (*change, *(second, *rest)[len(change) - 1 :])
        (warning,) = compare(before, replace(before, rows=rows)).warnings
        assert warning.startswith(start)


def test_it_says_how_many_more_examples_would_show_a_difference() -> None:
    """What a wobble of this size takes for a difference of 0.05 to be seen four times in five."""
    found = compare(of(*[0.5] * 20), of(*[0.3, 0.7] * 10))
    more = needed(list(found.differences.values()), 0.05) - 20
    assert 90 < more < 120
    assert f"{more} more examples would show 0.05" in str(found)


def test_only_common_examples_are_compared() -> None:
    """The rest is left out, and nothing in common is an error."""
    found = compare(report({"a": [0], "b": [1]}), report({"b": [0], "c": [1]}))
    assert found.differences == {"b": -1}
    with pytest.raises(TuningError, match="no example in common"):
        compare(report({"a": [0]}), report({"b": [0]}))


@settings(deadline=None, max_examples=40)
@given(values)
def test_a_report_compared_with_itself_shows_nothing(scores: list[float]) -> None:
    """No difference, no winners, no losers."""
    found = compare(of(*scores), of(*scores))
    assert (found.difference, found.interval, found.better, found.worse) == (0, (0, 0), False, False)
    assert (found.wins, found.losses, found.ties) == (0, 0, len(scores))


@settings(deadline=None, max_examples=40)
@given(values, st.floats(0, 1))
def test_a_bootstrap_interval_holds_the_mean(scores: list[float], more: float) -> None:
    """It lies within the values and is the same each time; adding the same to all moves both ends up by it."""
    low, high = bootstrap(scores)
    mean = sum(scores) / len(scores)
    assert min(scores) - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= max(scores) + 1e-9
    assert bootstrap(scores) == (low, high)
    moved = bootstrap([score + more for score in scores])
    assert moved == (pytest.approx(low + more), pytest.approx(high + more))


@settings(deadline=None, max_examples=40)
@given(values, st.floats(0, 1))
def test_a_percentile_is_one_of_the_values(scores: list[float], share: float) -> None:
    """At least that share lies at or below it."""
    found = percentile(scores, share)
    assert found in scores
    assert sum(score <= found for score in scores) >= share * len(scores) - 1e-9


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;\x00{graph} | a'


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_runs_nothing(tmp_path: Path) -> None:
    """Hostile texts are shown as they are, the examples that changed most come first."""
    odd: dict[str, Any] = {
        "input": {"q": HOSTILE},
        "output": HOSTILE,
        "expected": [HOSTILE],
        "notes": ((HOSTILE, HOSTILE, 1.0),),
        "stages": (HOSTILE,),
    }
    before, after = of(0.0, 0.5, 1.0, **odd), of(0.1, 1.0, 0.0, **odd)
    compare(before, after).html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    found = Tags()
    found.feed(page)
    assert not found.tags & {"script", "img"}
    assert found.text.count("<script>alert(") >= 3 * 5
    assert page.index("-1.000") < page.index("+0.500") < page.index("+0.100")
    for word in ("http://", "https://", "@import"):
        assert word not in page
    assert "3 examples are too few" in found.text


def test_a_failed_run_shows_its_error(tmp_path: Path) -> None:
    """What has no output has a reason; a value that is too long for a page says so."""
    failed = of(0.0, status="failed", error="b broke", output=None, input="x" * 30_000)
    compare(of(1.0, input="x"), failed).html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "b broke" in page
    assert "(30000 characters)" in page


def test_the_table_puts_both_side_by_side() -> None:
    """Scores, failures, time, money and notes, before and after."""
    table = compare(of(*[0.0] * 8, notes=(("a", "t", 1.0),), stages=("a",)), of(*[1.0] * 8)).table()
    assert "| notes for a | 8 | 0 |" in table
    assert "| mean score | 0.000 (0.000 to 0.000) | 1.000 (1.000 to 1.000) |" in table
    assert table.endswith("8 examples")
