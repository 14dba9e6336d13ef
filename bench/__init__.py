"""How fast, how soon, how large: measured by hand with `python -m bench`, never in a test."""
