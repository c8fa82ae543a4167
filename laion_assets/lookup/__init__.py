"""Look-ups: how the rows that a URL, a host, an image's hash or a SAMPLE_ID names are found without
a scan.

Each partition of pairs and of images has small sorted files of hashes (:mod:`.files`), written when
it is made (:mod:`.write`). To find a row in ten thousand partitions is to open as many files and to
read a few bytes of each (:mod:`.find`). What follows from a find does not belong here.
"""
