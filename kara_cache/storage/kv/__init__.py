"""Keyed, transactional authoring of data sets on LMDB. Import it as `kara_cache.kv`."""
