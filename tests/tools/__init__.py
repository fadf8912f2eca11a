"""Tools for tests: fuzzing and the input matrix."""
