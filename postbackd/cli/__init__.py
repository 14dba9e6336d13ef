"""The `postback` command."""
