"""Methods and metrics by name, those of plugins too.

In reading order: ``registry`` (methods, found by reading their source), ``hyperparameters`` (as a method declares them), ``metrics``
(what is measured), ``template`` (the text of a new method), ``methodtable`` (the page docs/methods.md).
"""
