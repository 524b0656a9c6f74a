"""Before a worker goes: its next owners get the pages that readers are at, so that the store is not asked."""
