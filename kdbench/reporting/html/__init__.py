"""The report as one HTML file, and the site: a page for all suites, and one for each method.

In reading order: ``page`` (the report), ``words`` (its summary), ``tables``, ``classes`` (accuracy by class), ``data`` (what it
holds of each cell), ``views`` (what ranks are computed from anew), ``site``, ``methods`` (a method's page), ``render``. Templates:
``base`` is what every page has, ``page`` the report and the site's first page, ``method``, ``cells`` and ``macros`` are parts.
Scripts: ``shared.js`` on every page, ``views.js`` and ``cells.js`` where there is what they show.
"""
