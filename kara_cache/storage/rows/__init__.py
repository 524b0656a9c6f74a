"""Rows: an append-only list of byte strings, in segments of any size, with an index and checksums.

index/N.blk   uint64 little-endian: the end of each row in the data
data/N.blk    the rows, one after the other
sums/N.blk    ours: a header and a checksum for each row, which other readers do not look at
"""
