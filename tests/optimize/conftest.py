"""Makes the helper modules of this folder (`words`, `rules`, ...) importable from the folders in it."""
