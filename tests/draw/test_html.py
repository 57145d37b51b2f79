"""What all pages are made of: texts are escaped, and nothing of them can end a script."""

from pathlib import Path

from stagegraph.draw.html import Html, document, element, pretty, table, write_page

EVIL = "</script><img src=x onerror=alert(1)>{{data}}\u2028&amp;"


def test_a_text_is_never_markup() -> None:
    """In content, in attributes and in the title, a `str` is escaped; an element is not escaped again."""
    page = document(EVIL, element("p", EVIL, element("b", "bold"), title=EVIL, class_='"x"'), EVIL)
    assert "<img" not in page
    assert "<b>bold</b>" in page
    assert 'class="&quot;x&quot;"' in page
    assert page.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{{data}}") == 4


def test_data_cannot_end_its_script() -> None:
    """The data of a page is JSON without a `<`; a page without a script allows none."""
    page = document("t", script="use(data)", data={"text": EVIL, "half": "\ud83d"})
    assert page.count("</script>") == 2
    assert "script-src 'sha256-" in page
    assert "connect-src" not in page
    assert "connect-src 'self'" in document("t", script="use(data)", connects=True)
    assert "script" not in document("t", "plain")


def test_values_and_rows(tmp_path: Path) -> None:
    """A long value is cut and its length named; half a character does not keep a page from being written."""
    assert pretty("x" * 30_000).endswith("x\n... (30000 characters)</pre>")
    assert pretty({"a": ["<"]}) == "<pre>{\n  &quot;a&quot;: [\n    &quot;&lt;&quot;\n  ]\n}</pre>"
    assert table([["a", "<"]]) == "<table><tr><td>a</td><td>&lt;</td></tr></table>"
    path = tmp_path / "page.html"
    write_page(path, Html("half \ud83d"))
    assert path.read_text("utf-8") == "half ?"
    assert path.stat().st_mode & 0o777 == 0o600
