"""Speed and latency, measured by hand with `python -m tools.bench`, never in a test."""
