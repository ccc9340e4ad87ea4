"""Command-line tools: arguments, printing, exit codes."""
