"""Tables and leaderboards from a frame of results, one row per cell (``kdbench.store.load_results``). No torch in here.

Read in this order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure),
``table`` (one ``Table`` of typed cells), ``markup``, ``latex`` and ``render`` (the table as markdown, LaTeX, CSV, HTML,
text), ``statistics`` (intervals and tests over pairs), ``leaderboard`` (methods ranked), ``leaderboard_render`` (the
ranking as text, markdown, rich), ``picture`` (the ranking as a PNG or SVG), ``published`` (published figures beside ours).

Then ``files`` (a cell's own files), ``paired`` (within one pair: seeds, images), ``ranks`` (who cannot be told apart);
``plots`` (all plots, with ``plotstyle``, ``plots_matrix``, ``plots_scatter`` and ``plots_stored``); ``page`` (the HTML
report, with ``page_words``, ``page_tables``, ``page_data`` and the files ``page.html.j2``, ``page.css``, ``page.js``).
"""
