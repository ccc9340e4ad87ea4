"""Command-line tools: arguments, printing, exit codes."""

from yolox.tools.early_interrupt import end_on_interrupt, starts_a_command

if starts_a_command():
    end_on_interrupt()
