"""What goes into chosen modules, for as long as a ``with`` block lasts."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Recorded = list[tuple[int, Tensor]]
"""``(position of the module, its input)`` in the order of the calls."""


@contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[Recorded]:
    """Record the first argument of every call of ``modules``.

    The list grows with every forward: whoever runs several clears it before each. The hooks are
    removed at the end of the block, also when its body raises.
    """
    recorded: Recorded = []

    def recorder(position: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            recorded.append((position, arguments[0]))

        return record

    handles = [
        module.register_forward_pre_hook(recorder(position))
        for position, module in enumerate(modules)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
        recorded.clear()
