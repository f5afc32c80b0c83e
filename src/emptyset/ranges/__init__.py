"""Range estimators: from the values of a tensor to the low and high end of its integer grid.

How to use one::

    from emptyset import registry
    entry = registry.ranges.get("lp_norm")          # min_max, moving_average, percentile, lp_norm
    factory = entry.make(entry.config())            # settings: the entry's frozen dataclass
    estimator = factory.estimator(axis=None, quant_min=0, quant_max=255, symmetric=False)
    for x in stream:
        estimator.update(x)                         # memory stays flat
    low, high = estimator.low_high()                # 0-dim, or (C,) with ``axis=0``

The exact search over one weight tensor is ``emptyset.ranges.lp_search.lp_search``.
"""

from emptyset.registry import import_folder

import_folder(__name__, list(__path__))
