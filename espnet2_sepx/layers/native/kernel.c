/* Everything that is compiled for the CPU; built on first use by `build.py`.

   Nothing but a C compiler with GNU vector types is needed. All arrays are float32, row-major and,
   where nothing else is said, without gaps. */

#include "vectors.h"

#include "scan.h"

#include "conv.h"

#include "mixture.h"
