"""Bytes: NARs, references, cutting, manifests and the block store. Synchronous, no network."""
