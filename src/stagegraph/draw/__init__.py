"""Pages that show what happened."""

from ._page import page_of, run_page

__all__ = ["page_of", "run_page"]
