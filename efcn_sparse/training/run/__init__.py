"""A run: its stages, the workers that train them, and the files of its directory."""
