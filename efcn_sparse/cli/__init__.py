"""The command ``efcn-sparse``."""
