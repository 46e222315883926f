/* Selective scan and short causal convolution on one processor, forward and backward.

   Built on first use by `build.py`; nothing but a C compiler with GNU vector types is needed. All
   arrays are float32 and row-major. A sequence is (L, D) with rows `*_row` floats apart, so that
   slices of wider tensors are read in place; sequences follow each other L rows apart. The state is
   (N, D). With `reverse` every sequence runs from its last step to its first.

   Channels are worked off a vector at a time, with the states of that vector in registers, and time
   in tiles, so that a tile's rows stay in the second-level cache from one vector to the next.

   Legend: B sequences, L steps, D channels, N states per channel, K taps, V channels per vector. */

#include "vectors.h"

#include "scan.h"

#include "conv.h"
