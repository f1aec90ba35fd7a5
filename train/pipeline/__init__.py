"""From shards to packs: plan (arithmetic), read, encode, hand over. Nothing in this folder imports torch."""
