"""Process memory: what a training on a CPU frees stays with the process, for the next step."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory instead of giving it back to the kernel.

    By default every array above some MB is mapped when made and unmapped when freed, and the kernel fills it with zeros
    page by page when it is first written to. Measured for forward and backward pass of ViT-B/12, 8 views of 96^3 in
    bfloat16 on one thread: 420,000 page faults and 0.93 of 5.3 s a step; afterwards 0.08 of 4.4 s, with the same peak
    memory within 1 %. It holds for the whole process until its end.

    Returns:
        Whether it was done: only glibc has the switches.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
        library.gnu_get_libc_version.restype = ctypes.c_char_p  # looked up: other C libraries have no such function
    except (OSError, AttributeError, TypeError):  # no such function: another C library, or none that can be asked
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, -1) == 1)
