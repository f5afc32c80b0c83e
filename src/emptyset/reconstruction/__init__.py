"""The machine under AdaRound, BRECQ, QDrop and Genie-M: a student learnt block by block.

``reconstruct`` walks down the chain of blocks of a prepared student. Of each block it keeps inputs
and targets (``caches``), learns rounding and scales (``units``, ``graph_function``, ``learnables``,
``step``, ``optimisation``), writes the outcome into the student (``outcome``), and computes from
this block's outputs what the next block reads.
"""
