"""Images and other examples: where they come from, and the order in which they are shown."""
