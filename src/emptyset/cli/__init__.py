"""The command line: one file per command, each translates, delegates and reports."""
