"""HTML pages: what all of them are made of, and the page of a recorded run."""

from .run_page import page_of, run_page

__all__ = ["page_of", "run_page"]
