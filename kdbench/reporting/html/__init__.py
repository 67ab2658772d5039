"""The report as one HTML file: ``page`` (all of it, with page.html.j2, page.css and page.js), ``words`` (the summary), ``tables`` and
``classes`` (its tables), ``data`` (the list of cells and their files).
"""
