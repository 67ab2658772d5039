"""Tables and leaderboards as text.

In reading order: ``render`` (the formats), ``markup`` (what they share), ``latex``, ``leaderboard``.
"""
