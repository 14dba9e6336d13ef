"""The `postback` command, one module for each family of subcommands."""
