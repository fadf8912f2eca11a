"""Training of the generator and of SyncNet."""
