"""Methods, metrics and hooks by name, those of plugins too.

In reading order: ``registry`` (methods, found by reading their source), ``hyperparameters`` (as a method declares them),
``metrics`` (what is measured), ``hooks`` (of mmengine), ``source`` (files of plugins), ``template`` (the text of a new method),
``methodtable`` (the page docs/methods.md).
"""
