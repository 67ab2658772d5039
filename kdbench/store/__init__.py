"""Results on disk.

Read in this order: ``layout`` (what lies where), ``result`` (what a result holds), ``files`` (whole or absent), ``folders``
(the folders of cells and teachers), ``claims`` (who trains what), ``rows`` and ``rowcache`` (all results as one table),
``classnames`` (of a data set), ``reading`` (the other files of a cell), ``log`` (a cell's log), ``provenance`` (code, versions,
device).
"""
