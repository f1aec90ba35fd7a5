"""From a catalogue to shards, on a CPU machine. Nothing here imports torch, transformers, deepspeed or train."""
