"""The payment stack of one region: a folder per domain noun, its rules apart from its I/O."""
