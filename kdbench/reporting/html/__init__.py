"""The report as one HTML file.

In reading order: ``page`` (the file), ``words`` (its summary), ``tables``, ``classes`` (accuracy by class), ``data`` (what it holds
of each cell). ``page.html.j2``, ``page.css`` and ``page.js`` are its template, style and script.
"""
