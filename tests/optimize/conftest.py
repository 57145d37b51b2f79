"""Makes `rules` and `words` importable from the tests of each room."""
