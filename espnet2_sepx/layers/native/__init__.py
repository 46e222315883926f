"""C code for the CPU, and how it is built and loaded. See ``kernel.c`` and ``build``."""
