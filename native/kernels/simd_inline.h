// Compiler words that the vector kernels lean on.
#pragma once

#define BITQWEN_INLINE inline __attribute__((always_inline))
#define BITQWEN_INLINE_LAMBDA __attribute__((always_inline))
