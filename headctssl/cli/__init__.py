"""Command line: one thin module per stage: parse, call one function, exit code."""
