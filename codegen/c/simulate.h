/* CUDA C as C++ on the CPU: put in front of a translation unit of codegen/c/cuda.py, it runs the same text.

   Blocks run one after another, the threads of a block as fibers on one CPU thread. A thread runs until it waits (for a
   barrier, a shuffle, a tensor-core product), so a missing barrier is a race that shows: the order of threads and blocks is
   ascending for seed 0, descending for seed 1, shuffled for others; a right kernel gives the same bits for all.

   What the hardware leaves open is made to show: shared memory and dynamic shared memory start as 0xFF bytes, the target of an asynchronous
   copy is 0xFF bytes until its wait, which does the copying. What is wrong ends the launch with a message that
   names the kernel, block and thread: a barrier that some thread has left behind or that lies on another line, a warp operation
   without all 32 threads, a misaligned copy, an access outside of memory (with buffers between guard pages), and whatever
   the compiler's checks (-fsanitize=..., trapping) find.

   Tensor-core products: exact products, accumulated in float32 one by one in ascending k. The hardware has an order and roundings of its
   own, so only the sums of small integers agree with it to the bit. tf32 operands lose their low 13 bits.

   Threads of another block never run while a block runs. x86-64 has a switch of its own; other machines use ucontext. Built by
   codegen/cuda/simulate.py, which adds simulate_hopper.h where a kernel needs it. The parts are in the files included below. */
#pragma once
#define SIMULATED 1
/* The headers of C as they are: those of C++ around them would take most of the time of a small unit. */
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <float.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <pthread.h>
#include <initializer_list>

#include "numbers.h"

struct dim3 {
    unsigned x, y, z;
};
using uint3 = dim3;
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __CUDA_ARCH__ 900

#include "simulate_threads.h"
#include "simulate_tensor.h"
#include "simulate_launch.h"

extern "C" __attribute__((visibility("default"))) const char *simulate_message() { return simulated::at.message; }
extern "C" __attribute__((visibility("default"))) unsigned long long simulate_fault() { return simulated::at.fault; }
/* MOST_THREADS places for the memory of stacks, of which one launch at a time makes use. */
extern "C" __attribute__((visibility("default"))) void simulate_share_stacks(char **slots) { simulated::at.slots = slots; }

#if defined(__SANITIZE_ADDRESS__)
/* The sanitizer watches over arrays of no section of ours only. */
#define __shared__ static
#define SIMULATED_SHARED(name) char *const from = nullptr, *const to = nullptr;
#else
#define __shared__ static __attribute__((section(SIMULATED_SECTION)))
#define SIMULATED_SHARED(name) \
    extern char __start_shared_##name[] __attribute__((weak)), __stop_shared_##name[] __attribute__((weak)); \
    char *const from = __start_shared_##name, *const to = __stop_shared_##name;
#endif
/* The launcher of a kernel, and the bytes of each of its arguments, then 0. */
#define SIMULATED_KERNEL(name) \
    extern "C" __attribute__((visibility("default"))) const int *simulate_sizes_##name() { return simulated::Entry<&name>::sizes; } \
    extern "C" __attribute__((visibility("default"))) int simulate_##name(const void *const *args, long long blocks, int threads, long long dynamic_shared, unsigned seed) { \
        SIMULATED_SHARED(name) \
        using Entry = simulated::Entry<&name>; \
        return simulated::launch(#name, Entry::body, args, Entry::is_pointer, Entry::count, blocks, threads, dynamic_shared, seed, from, to); \
    }
#define DYNAMIC_SHARED(name) unsigned char *const name = (unsigned char *)simulated::at.dynamic

#include "simulate_builtins.h"
