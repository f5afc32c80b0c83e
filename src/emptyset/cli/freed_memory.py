"""Memory that a step frees stays with the process, for the next step."""

import ctypes
import os

# Of malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# What may lie free at the end of the heap before it is given back: as much as can be said [bytes].
_KEPT = (1 << 31) - 1
# Blocks beyond this have pages of their own [bytes]. Feature maps of 128 images of 224 x 224 are
# 400 MB; on a small machine the heap should not tear so far.
_LARGEST_IN_HEAP, _SHARE_OF_MACHINE = 1 << 30, 16
# With a limit on memory: as far as the library's own rule goes [bytes].
_LARGEST_WHERE_TIGHT = 32 << 20


def keep_freed_memory(*, tight: bool = False) -> bool:
    """Tell the C library to give less memory back.

    Each step of inversion and training allocates and frees the same feature maps. By its own rule
    the GNU C library returns them after every step, and the system clears every page anew in the
    next: an eighth of the time of a step with ResNet-20 at batch 128, half of it where single maps
    are larger than 32 MB (TinyDarknet at 224 x 224). Pieces that lie free between others raise the
    peak, there from 4.9 to 6.4 GB.

    Args:
        tight: Memory is limited: large maps go back, as the library's own rule has it.

    Returns:
        Whether it could be told; other libraries have other rules, and nothing is done.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, TypeError, ValueError):
        return False
    roomy = max(_LARGEST_WHERE_TIGHT, min(_LARGEST_IN_HEAP, machine // _SHARE_OF_MACHINE))
    largest = _LARGEST_WHERE_TIGHT if tight else roomy
    return all(
        tell(which, bytes_) == 1
        for which, bytes_ in ((_MMAP_THRESHOLD, largest), (_TRIM_THRESHOLD, _KEPT))
    )
