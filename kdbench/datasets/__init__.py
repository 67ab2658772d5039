"""Data sets, read from their files.

In reading order: ``load`` (a data set by its name), ``digits``, ``cifar100``, ``imagefolder``, ``tinyimagenet`` and the package
``imagenet`` (one data set each), then what they share: ``parts`` (one split on disk), ``folders`` (class folders), ``sources``
(encoded images in files and archives), ``download``.
"""
