"""Tables and leaderboards as text: ``markup`` (how each format escapes and stresses), ``render`` (Markdown, CSV, HTML, plain),
``latex``, ``leaderboard``.
"""
