"""Settings of the memory allocator."""

from utils.malloc import limit_malloc_arenas


def test_limit_malloc_arenas_can_be_called_repeatedly():
    limit_malloc_arenas()
    limit_malloc_arenas()
