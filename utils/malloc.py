"""Settings of the C library's memory allocator."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # from malloc.h


def limit_malloc_arenas() -> None:
    """Make all threads allocate from one heap (glibc only). Call it before any thread starts.

    With one heap per thread, memory that one thread frees cannot be reused by another: a dub takes 10 % more.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Return memory that has been freed to the operating system (glibc only)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
