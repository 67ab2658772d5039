"""Methods, metrics and hooks by name, those of plugins too.

In reading order: ``entry`` (a method as its class registers it), ``source`` (what a file registers, read without importing it),
``registry`` (all methods by name), ``tuned`` (values published for single pairs), ``citations`` (their papers), ``metrics`` (what is
measured), ``hooks`` (of files that the command line names), ``template`` (the text of a new method).
"""
