"""Optimizers of embedded nets: settings by part of the weights, and momentum across the embedding."""
