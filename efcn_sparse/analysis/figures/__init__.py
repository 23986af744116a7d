"""One figure a file; each returns drawings and writes nothing."""
