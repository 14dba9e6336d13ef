"""How fast, how soon, how large: measured by hand with `python -m tools.bench`, never in a test."""
