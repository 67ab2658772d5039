"""Tables and leaderboards from a frame of results, one row per cell (``kdbench.load_results``). No torch in here.

In reading order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure), ``table`` (one
``Table`` of typed cells), ``statistics`` (intervals and tests over pairs), ``standing`` and ``leaderboard`` (methods ranked), ``published``
(published figures beside ours; names in ``aliases``, which figures in ``claims``), ``costs`` (hours, memory, students at
inference), ``paired`` (within one pair: seeds, images), ``classes`` (by class and superclass), ``ranks`` (which methods the
pairs cannot tell apart). Then ``text``, ``plots`` and ``html``.
"""
