// Functions for kernels on sm_90a: barriers that count bytes, copies by the bulk tensor copy engine, and products of
// whole warpgroups (wgmma). All PTX that emitted kernels need for them is here; simulate_hopper.h defines the same
// functions for the CPU. References are to the PTX ISA, version 8.0 and later.
//
// Invariants: tiles in shared memory start at multiples of 1024 bytes; their rows are 128 bytes, 16-byte unit u of row r
// lying at unit u ^ (r % 8) (the 128-byte swizzle of the copy engine and of wgmma alike).
#ifndef GRAPHC_HOPPER_H
#define GRAPHC_HOPPER_H

#ifdef GRAPHC_SIMULATE
#include "simulate_hopper.h"
#else

#define HOPPER_FUNCTION static __device__ __forceinline__

// Opaque, made by cuTensorMapEncodeTiled; passed as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  unsigned long long words[16];
};

HOPPER_FUNCTION unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- mbarrier: a phase ends when all expected arrivals and all expected bytes have come -------------------------

HOPPER_FUNCTION void mbarrier_init(unsigned long long *barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After the inits of one thread, before the block's barrier: the copy engine sees them too.
HOPPER_FUNCTION void mbarrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

HOPPER_FUNCTION void mbarrier_arrive(unsigned long long *barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One arrival, and this many bytes more to wait for in this phase.
HOPPER_FUNCTION void mbarrier_arrive_expect(unsigned long long *barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Until the phase of this parity has ended. A fresh barrier is in phase 0: waiting for parity 1 returns at once.
HOPPER_FUNCTION void mbarrier_wait(unsigned long long *barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- bulk tensor copies: one thread asks, the bytes count on a barrier; coordinates innermost first ---------------

HOPPER_FUNCTION void bulk_prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"((unsigned long long)map) : "memory");
}

#define BULK_LOAD(rank, ...) "cp.async.bulk.tensor." #rank "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes" __VA_ARGS__

HOPPER_FUNCTION void bulk_load_2d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1) {
  asm volatile(BULK_LOAD(2, " [%0], [%1, {%3, %4}], [%2];") ::"r"(shared_address(to)), "l"((unsigned long long)map),
               "r"(shared_address(barrier)), "r"(c0), "r"(c1)
               : "memory");
}

HOPPER_FUNCTION void bulk_load_3d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2) {
  asm volatile(BULK_LOAD(3, " [%0], [%1, {%3, %4, %5}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

HOPPER_FUNCTION void bulk_load_4d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2,
                                  int c3) {
  asm volatile(BULK_LOAD(4, " [%0], [%1, {%3, %4, %5, %6}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}

HOPPER_FUNCTION void bulk_load_5d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2,
                                  int c3, int c4) {
  asm volatile(BULK_LOAD(5, " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
               : "memory");
}

// The same bytes to the same place in every block of the cluster whose bit is set in `blocks`, each on its own barrier.
HOPPER_FUNCTION void bulk_load_2d_multicast(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1,
                                            int blocks) {
  asm volatile(BULK_LOAD(2, ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "h"((unsigned short)blocks)
               : "memory");
}

HOPPER_FUNCTION void bulk_load_3d_multicast(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1,
                                            int c2, int blocks) {
  asm volatile(BULK_LOAD(3, ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
               "h"((unsigned short)blocks)
               : "memory");
}

// Shared memory to the map's buffer. After ordinary stores: async_proxy_fence in each writer, a barrier, then one thread.
HOPPER_FUNCTION void bulk_store_2d(const TensorMap *map, const void *from, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                   (unsigned long long)map),
               "r"(shared_address(from)), "r"(c0), "r"(c1)
               : "memory");
}

HOPPER_FUNCTION void bulk_store_3d(const TensorMap *map, const void *from, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                   (unsigned long long)map),
               "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

HOPPER_FUNCTION void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all stores of this thread have read their shared memory.
HOPPER_FUNCTION void bulk_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Until all stores of this thread are done.
HOPPER_FUNCTION void bulk_store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// This thread's ordinary stores to shared memory come before what the copy engine and wgmma do after the next barrier.
HOPPER_FUNCTION void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- threads and registers -----------------------------------------------------------------------------------------

// Barrier `id` (1 to 15) of `threads` threads of the block.
HOPPER_FUNCTION void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers of each thread of the calling warpgroup from here on; all its warps call it.
HOPPER_FUNCTION void registers_decrease_24() { asm volatile("setmaxnreg.dec.sync.aligned.u32 24;"); }
HOPPER_FUNCTION void registers_decrease_40() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
HOPPER_FUNCTION void registers_increase_232() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }
HOPPER_FUNCTION void registers_increase_240() { asm volatile("setmaxnreg.inc.sync.aligned.u32 240;"); }

// ---- wgmma: d (64 x N, float32, in the registers of 128 threads) += a (64 x k) * b (k x N), both in shared memory -------
//
// Thread t of the warpgroup holds in d[4 j + 2 h + i] the element of row 16 (t / 32) + t % 32 / 4 + 8 h and column
// 8 j + 2 (t % 4) + i. Between wgmma_fence and wgmma_wait nothing else may touch d, nor write a and b.

HOPPER_FUNCTION void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
HOPPER_FUNCTION void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
HOPPER_FUNCTION void wgmma_wait_0() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
HOPPER_FUNCTION void wgmma_wait_1() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }

// The matrix descriptor: start address, leading and stride byte offsets in 16-byte units, layout 1 (128-byte swizzle) in
// bits 62 and 63, base offset 0 as tiles start at multiples of 1024 bytes.
// Stride: from 8 rows of 128 bytes to the next 8. Leading: not read where neighbours run along k; where they run along
// the other dimension, from 64 of its elements to the next 64, which are 64 rows (of k) on.
HOPPER_FUNCTION unsigned long long wgmma_descriptor(const void *tile, int along_k) {
  const unsigned long long leading = along_k ? 1 : 64 * 128 >> 4;
  return (unsigned long long)((shared_address(tile) & 0x3ffff) >> 4) | leading << 16 | (unsigned long long)(1024 >> 4) << 32 |
         1ull << 62;
}

#define WGMMA_NAMES_32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_NAMES_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WGMMA_NAMES_128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

#define WGMMA_OPERANDS_8(d, i) \
  "+f"((d)[(i)]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]), "+f"((d)[(i) + 5]), \
      "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
#define WGMMA_OPERANDS_32(d, i) \
  WGMMA_OPERANDS_8(d, i), WGMMA_OPERANDS_8(d, (i) + 8), WGMMA_OPERANDS_8(d, (i) + 16), WGMMA_OPERANDS_8(d, (i) + 24)
#define WGMMA_OPERANDS_64(d, i) WGMMA_OPERANDS_32(d, i), WGMMA_OPERANDS_32(d, (i) + 32)
#define WGMMA_OPERANDS_128(d, i) WGMMA_OPERANDS_64(d, i), WGMMA_OPERANDS_64(d, (i) + 64)

// One instruction. After the descriptors: add to d, do not negate a and b; then, for 16-bit types, whether neighbours in
// memory run along the rows of a (the columns of b) instead of along k.
#define WGMMA_STEP_16(type, n, registers, a, b, major_a, major_b) \
  template <int A, int B> \
  HOPPER_FUNCTION void wgmma_step_##type##_n##n(float *d, unsigned long long a_at, unsigned long long b_at) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " " WGMMA_NAMES_##registers \
                 ", " a ", " b ", 1, 1, 1, " major_a ", " major_b ";" \
                 : WGMMA_OPERANDS_##registers(d, 0) \
                 : "l"(a_at), "l"(b_at), "n"(A), "n"(B) \
                 : "memory"); \
  }

#define WGMMA_STEP_32(type, n, registers, a, b) \
  template <int A, int B> \
  HOPPER_FUNCTION void wgmma_step_##type##_n##n(float *d, unsigned long long a_at, unsigned long long b_at) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k8.f32." #type "." #type " " WGMMA_NAMES_##registers \
                 ", " a ", " b ", 1, 1, 1;" \
                 : WGMMA_OPERANDS_##registers(d, 0) \
                 : "l"(a_at), "l"(b_at) \
                 : "memory"); \
  }

// The four steps of a tile whose k is 128 bytes. A step is 32 bytes of a row, or, where neighbours do not run along k,
// 16 rows of 128 bytes; in 16-byte units.
#define WGMMA_BLOCK(type, n, a, b, A, B) \
  HOPPER_FUNCTION void wgmma_##type##_n##n##_##a##b(float *d, const void *a_tile, const void *b_tile) { \
    const unsigned long long a_at = wgmma_descriptor(a_tile, !A), b_at = wgmma_descriptor(b_tile, !B); \
    wgmma_step_##type##_n##n<A, B>(d, a_at, b_at); \
    wgmma_step_##type##_n##n<A, B>(d, a_at + (A ? 128 : 2), b_at + (B ? 128 : 2)); \
    wgmma_step_##type##_n##n<A, B>(d, a_at + (A ? 256 : 4), b_at + (B ? 256 : 4)); \
    wgmma_step_##type##_n##n<A, B>(d, a_at + (A ? 384 : 6), b_at + (B ? 384 : 6)); \
  }
#define WGMMA_BLOCKS(type, n) \
  WGMMA_BLOCK(type, n, k, k, 0, 0) \
  WGMMA_BLOCK(type, n, k, m, 0, 1) \
  WGMMA_BLOCK(type, n, m, k, 1, 0) \
  WGMMA_BLOCK(type, n, m, m, 1, 1)

WGMMA_STEP_16(bf16, 64, 32, "%32", "%33", "%34", "%35")
WGMMA_STEP_16(bf16, 128, 64, "%64", "%65", "%66", "%67")
WGMMA_STEP_16(bf16, 256, 128, "%128", "%129", "%130", "%131")
WGMMA_STEP_16(f16, 64, 32, "%32", "%33", "%34", "%35")
WGMMA_STEP_16(f16, 128, 64, "%64", "%65", "%66", "%67")
WGMMA_STEP_16(f16, 256, 128, "%128", "%129", "%130", "%131")
WGMMA_STEP_32(tf32, 64, 32, "%32", "%33")
WGMMA_STEP_32(tf32, 128, 64, "%64", "%65")
WGMMA_STEP_32(tf32, 256, 128, "%128", "%129")

WGMMA_BLOCKS(bf16, 64)
WGMMA_BLOCKS(bf16, 128)
WGMMA_BLOCKS(bf16, 256)
WGMMA_BLOCKS(f16, 64)
WGMMA_BLOCKS(f16, 128)
WGMMA_BLOCKS(f16, 256)
WGMMA_BLOCK(tf32, 64, k, k, 0, 0)
WGMMA_BLOCK(tf32, 128, k, k, 0, 0)
WGMMA_BLOCK(tf32, 256, k, k, 0, 0)

#endif  // GRAPHC_SIMULATE
#endif  // GRAPHC_HOPPER_H
