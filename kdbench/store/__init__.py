"""Results on disk.

Read in this order: ``layout`` (what lies where), ``result`` (what a result holds), ``files`` (whole or absent), ``folders``
(the folders of cells and teachers), ``claims`` (who trains what), ``rows`` (all results as one table),
``declared`` (hypotheses before their results),
``older`` (what no plan of today would make), ``merge`` (several run directories into one), ``submission`` (one file to hand in)
and ``problems`` (what is wrong in it),
``log`` (of a cell), ``classnames`` (of a data set), ``reading`` (the other files of a cell), ``provenance`` (code, versions, device).
"""
