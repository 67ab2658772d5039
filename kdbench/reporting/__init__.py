"""Tables and leaderboards from a frame of results, one row per cell (``kdbench.store.folders.load_results``). No torch in here.

Read in this order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure),
``table`` (one ``Table`` of typed cells), ``markup``, ``latex`` and ``render`` (the table as markdown, LaTeX, CSV, HTML,
text), ``statistics`` (intervals and tests over pairs), ``leaderboard`` (methods ranked), ``leaderboard_render`` (the
ranking as text, markdown, rich), ``picture`` (the ranking as a PNG or SVG), ``published`` (published figures beside ours).

Then ``costs`` (hours, memory, students at inference), ``files`` (a cell's own files), ``paired`` (within one pair: seeds,
images), ``classes`` (by class and superclass), ``ranks`` (who cannot be told apart); ``plots`` (all plots, with ``plotstyle``,
``plots_matrix``, ``plots_scatter``, ``plots_stored`` and ``plots_teacher``); ``page`` (the HTML report, with ``page_words``,
``page_tables``, ``page_classes``, ``page_data`` and the files ``page.html.j2``, ``page.css``, ``page.js``).
"""
