"""Tables and leaderboards from a frame of results, one row per cell (``kdbench.store.load_results``). No torch in here.

Read in this order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure),
``table`` (one ``Table`` of typed cells), ``markup``, ``latex`` and ``render`` (the table as markdown, LaTeX, CSV, HTML,
text), ``statistics`` (intervals and tests), ``leaderboard`` (methods ranked), ``leaderboard_render`` (the ranking as
text, markdown, rich), ``picture`` (the ranking as a PNG or SVG), ``published`` (published figures beside ours).
"""
