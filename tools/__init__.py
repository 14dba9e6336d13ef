"""What only maintainers run, by hand: none of it is installed."""
