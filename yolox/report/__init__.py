"""One self-contained HTML file about a training or an evaluation, and the figures in it."""
