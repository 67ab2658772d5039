"""Tables, leaderboards, plots and reports from a frame of results, one row per cell (``kdbench.load_results``). No torch in here.

In reading order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure), ``table`` (one
``Table`` of typed cells), ``statistics`` (intervals and tests over pairs), ``costs`` (hours, memory, students at inference),
``leaderboard`` (methods ranked), ``published`` (published figures beside ours), ``classes`` (by class and superclass), ``paired``
(within one pair: seeds, images), ``ranks`` (which methods cannot be told apart). How they look: ``text``, ``plots``, ``html``.
"""
