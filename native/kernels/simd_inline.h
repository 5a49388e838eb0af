// Compiler words that the vector kernels lean on.
#pragma once

// BITQWEN_PORTABLE_VECTORS: the tests put calls in place of the CPU's instructions, and inline none.
#if defined(BITQWEN_PORTABLE_VECTORS)
#define BITQWEN_INLINE inline
#define BITQWEN_INLINE_LAMBDA
#else
#define BITQWEN_INLINE inline __attribute__((always_inline))
#define BITQWEN_INLINE_LAMBDA __attribute__((always_inline))
#endif

// gcc rearranges a chain of integer additions into a tree, which holds every product in a register (or
// on the stack) until the end. Naming the sum in an empty asm statement keeps the chain a chain.
#if defined(__x86_64__) && !defined(BITQWEN_PORTABLE_VECTORS)
#define BITQWEN_KEEP_CHAIN(sum) asm("" : "+v"(sum))
#elif defined(__aarch64__) && !defined(BITQWEN_PORTABLE_VECTORS)
#define BITQWEN_KEEP_CHAIN(sum) asm("" : "+w"(sum))
#else
#define BITQWEN_KEEP_CHAIN(sum) ((void)(sum))
#endif
