"""Settings of the memory allocator."""

from utils.malloc import limit_malloc_arenas, release_freed_memory


def test_limit_malloc_arenas_can_be_called_repeatedly():
    limit_malloc_arenas()
    limit_malloc_arenas()


def test_release_freed_memory_can_be_called_repeatedly():
    release_freed_memory()
    release_freed_memory()
