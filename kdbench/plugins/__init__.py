"""Methods, metrics and hooks by name, those of plugins too.

In reading order: ``registry`` (methods, and the files that are searched for them), ``source`` (what a file declares, read without
importing it), ``metrics`` (what is measured), ``hooks`` (called while a cell is trained), ``template`` (the text of a new method),
``methodtable`` (the page docs/methods.md).
"""
