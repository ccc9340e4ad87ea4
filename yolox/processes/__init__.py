"""Starting, watching and ending processes, and the typed messages between them."""
