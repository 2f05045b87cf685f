/* Functions for kernels on sm_90a: barriers that count bytes, copies by the bulk tensor copy engine, and products of whole
   warpgroups (wgmma). simulate_hopper.h has a function of the same name and meaning for each of these. Sections are
   copied by codegen/c/prelude.py as those of numbers.h are. References are to the PTX ISA, version 8.0 and later.

   Invariants: tiles in shared memory start at multiples of 1024 bytes; their rows are 128 bytes, 16-byte unit u of row r
   lying at unit u ^ (r % 8) (the 128-byte swizzle of the copy engine and of wgmma alike). */
#define INLINE static __device__ __forceinline__

// function TensorMap
/* Opaque, made by cuTensorMapEncodeTiled; passed as `const __grid_constant__ TensorMap`. */
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

// function shared_address
INLINE unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// function mbarrier_init
INLINE void mbarrier_init(unsigned long long *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// function mbarrier_init_done
/* After the inits of one thread, before the block's barrier: the copy engine sees them too. */
INLINE void mbarrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// function mbarrier_arrive
INLINE void mbarrier_arrive(unsigned long long *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// function mbarrier_arrive_cluster
/* One arrival at this barrier of each of the first `blocks` blocks of the cluster. */
INLINE void mbarrier_arrive_cluster(unsigned long long *barrier, int blocks) {
    for (int i = 0; i < blocks; ++i)
        asm volatile(
            "{\n"
            ".reg .b32 there;\n"
            "mapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
            "}" ::"r"(shared_address(barrier)),
            "r"(i)
            : "memory");
}

// function cluster_barrier
/* All threads of all blocks of the cluster have arrived; a block must not begin to copy to others before, nor end.
   Warps arrive as a whole. */
INLINE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// function mbarrier_arrive_expect
/* One arrival, and this many bytes more to wait for in this phase. */
INLINE void mbarrier_arrive_expect(unsigned long long *barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// function mbarrier_wait
/* Until the phase of this parity has ended. A fresh barrier is in phase 0: waiting for parity 1 returns at once. */
INLINE void mbarrier_wait(unsigned long long *barrier, int parity) {
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

// function bulk_prefetch_map
INLINE void bulk_prefetch_map(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((unsigned long long)map) : "memory");
}

// function BULK_LOAD
#define BULK_LOAD(rank, rest) \
    "cp.async.bulk.tensor." #rank "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes" rest

// function bulk_load_2d
INLINE void bulk_load_2d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1) {
    asm volatile(BULK_LOAD(2, " [%0], [%1, {%3, %4}], [%2];") ::"r"(shared_address(to)), "l"((unsigned long long)map),
               "r"(shared_address(barrier)), "r"(c0), "r"(c1)
               : "memory");
}

// function bulk_load_3d
INLINE void bulk_load_3d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2) {
    asm volatile(BULK_LOAD(3, " [%0], [%1, {%3, %4, %5}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

// function bulk_load_4d
INLINE void bulk_load_4d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2,
                                    int c3) {
    asm volatile(BULK_LOAD(4, " [%0], [%1, {%3, %4, %5, %6}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}

// function bulk_load_5d
INLINE void bulk_load_5d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2,
                                    int c3, int c4) {
    asm volatile(BULK_LOAD(5, " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];") ::"r"(shared_address(to)),
               "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
               : "memory");
}

// function bulk_load_2d_part
/* One part of a tile that all blocks of a cluster need: the block of that rank asks for it, and it lands at the same place
   in each block whose bit is set in `blocks`, counted on the barrier there. */
INLINE void bulk_load_2d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1,
                                    int part, int rank, int blocks) {
    if (part != rank) return;
    asm volatile(BULK_LOAD(2, ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;") ::"r"(shared_address(to)),
                 "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1),
                 "h"((unsigned short)blocks)
                 : "memory");
}

// function bulk_load_3d_part
INLINE void bulk_load_3d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2,
                                    int part, int rank, int blocks) {
    if (part != rank) return;
    asm volatile(BULK_LOAD(3, ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;") ::"r"(shared_address(to)),
                 "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
                 "h"((unsigned short)blocks)
                 : "memory");
}

// function bulk_load_4d_part
INLINE void bulk_load_4d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3,
                                    int part, int rank, int blocks) {
    if (part != rank) return;
    asm volatile(BULK_LOAD(4, ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;") ::"r"(shared_address(to)),
                 "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                 "h"((unsigned short)blocks)
                 : "memory");
}

// function bulk_load_5d_part
INLINE void bulk_load_5d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3, int c4,
                                    int part, int rank, int blocks) {
    if (part != rank) return;
    asm volatile(BULK_LOAD(5, ".multicast::cluster [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;") ::"r"(shared_address(to)),
                 "l"((unsigned long long)map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4),
                 "h"((unsigned short)blocks)
                 : "memory");
}

// function bulk_store_2d
/* Shared memory to the map's buffer. After ordinary stores: async_proxy_fence in each writer, a barrier, then one thread. */
INLINE void bulk_store_2d(const TensorMap *map, const void *from, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                   (unsigned long long)map),
               "r"(shared_address(from)), "r"(c0), "r"(c1)
               : "memory");
}

// function bulk_store_3d
INLINE void bulk_store_3d(const TensorMap *map, const void *from, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                   (unsigned long long)map),
               "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

// function bulk_store_commit
INLINE void bulk_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// function bulk_store_wait_read
/* Until all stores of this thread have read their shared memory. */
INLINE void bulk_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// function bulk_store_wait
/* Until all stores of this thread are done. */
INLINE void bulk_store_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// function async_proxy_fence
/* This thread's ordinary stores to shared memory come before what the copy engine and wgmma do after the next barrier. */
INLINE void async_proxy_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// function named_barrier
/* Barrier `id` (1 to 15) of `threads` threads of the block. */
INLINE void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// function registers_decrease_24
/* Registers of each thread of the calling warpgroup from here on; all its warps call it. */
INLINE void registers_decrease_24() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
}

// function registers_decrease_40
INLINE void registers_decrease_40() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
}

// function registers_increase_232
INLINE void registers_increase_232() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
}

// function registers_increase_240
INLINE void registers_increase_240() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
}

// function wgmma_fence
/* wgmma: d (64 x N, float32, in the registers of 128 threads) += a (64 x k) * b (k x N), both in shared memory. Thread t of
   the warpgroup holds in d[4 j + 2 h + i] the element of row 16 (t / 32) + t % 32 / 4 + 8 h and column 8 j + 2 (t % 4) + i.
   From the fence to the wait nothing else may touch d, nor write a and b. */
INLINE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// function wgmma_commit
INLINE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// function wgmma_wait_0
INLINE void wgmma_wait_0() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// function wgmma_wait_1
INLINE void wgmma_wait_1() {
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

// function wgmma_descriptor
/* The matrix descriptor: start address, leading and stride byte offsets in 16-byte units, layout 1 (128-byte swizzle) in
   bits 62 and 63, base offset 0 as tiles start at multiples of 1024 bytes. Stride: from 8 rows of 128 bytes to the next
   8. Leading: not read where neighbours run along k; where they run along the other dimension, from 64 of its elements to
   the next 64, which are 64 rows (of k) further on. */
INLINE unsigned long long wgmma_descriptor(const void *tile, int along_k) {
    const unsigned long long start = (shared_address(tile) & 0x3ffff) >> 4;
    const unsigned long long leading = along_k ? 1 : (64 * 128) >> 4, stride = 1024 >> 4;
    return start | leading << 16 | stride << 32 | 1ull << 62;
}

// function WGMMA_NAMES_32
#define WGMMA_NAMES_32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

// function WGMMA_NAMES_64
#define WGMMA_NAMES_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// function WGMMA_NAMES_128
#define WGMMA_NAMES_128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

// function WGMMA_OPERANDS_8
#define WGMMA_OPERANDS_8(d, i) \
    "+f"((d)[(i)]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), \
        "+f"((d)[(i) + 4]), "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])

// function WGMMA_OPERANDS_32
#define WGMMA_OPERANDS_32(d, i) \
    WGMMA_OPERANDS_8(d, i), WGMMA_OPERANDS_8(d, (i) + 8), WGMMA_OPERANDS_8(d, (i) + 16), WGMMA_OPERANDS_8(d, (i) + 24)

// function WGMMA_OPERANDS_64
#define WGMMA_OPERANDS_64(d, i) WGMMA_OPERANDS_32(d, i), WGMMA_OPERANDS_32(d, (i) + 32)

// function WGMMA_OPERANDS_128
#define WGMMA_OPERANDS_128(d, i) WGMMA_OPERANDS_64(d, i), WGMMA_OPERANDS_64(d, (i) + 64)

// function WGMMA_STEP_16
/* One instruction. Behind the descriptors: add to d, do not negate a and b, then whether neighbours in memory run along the
   rows of a (the columns of b) instead of along k. */
#define WGMMA_STEP_16(name, type, n, names, operands, a, b, major_a, major_b) \
    template <int A, int B> INLINE void name(float *d, unsigned long long a_at, unsigned long long b_at) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " " names \
                     ", " a ", " b ", 1, 1, 1, " major_a ", " major_b ";" \
                     : operands(d, 0) \
                     : "l"(a_at), "l"(b_at), "n"(A), "n"(B) \
                     : "memory"); \
    }

// function WGMMA_STEP_32
/* The same for tf32, whose neighbours run along k. */
#define WGMMA_STEP_32(name, n, names, operands, a, b) \
    template <int A, int B> INLINE void name(float *d, unsigned long long a_at, unsigned long long b_at) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 " names ", " a ", " b ", 1, 1, 1;" \
                     : operands(d, 0) \
                     : "l"(a_at), "l"(b_at) \
                     : "memory"); \
    }

// function WGMMA_TILE
/* The four steps of tiles whose k is 128 bytes. A step is 32 bytes of a row or, where neighbours do not run along k
   (A, B), 16 rows of 128 bytes; descriptors count in 16 bytes. */
#define WGMMA_TILE(name, step, A, B) \
    INLINE void name(float *d, const void *a, const void *b) { \
        const unsigned long long a_at = wgmma_descriptor(a, !A), b_at = wgmma_descriptor(b, !B); \
        step<A, B>(d, a_at, b_at); \
        step<A, B>(d, a_at + (A ? 128 : 2), b_at + (B ? 128 : 2)); \
        step<A, B>(d, a_at + (A ? 256 : 4), b_at + (B ? 256 : 4)); \
        step<A, B>(d, a_at + (A ? 384 : 6), b_at + (B ? 384 : 6)); \
    }

// function wgmma_step_bf16_n64
WGMMA_STEP_16(wgmma_step_bf16_n64, bf16, 64, WGMMA_NAMES_32, WGMMA_OPERANDS_32, "%32", "%33", "%34", "%35")

// function wgmma_bf16_n64_kk
WGMMA_TILE(wgmma_bf16_n64_kk, wgmma_step_bf16_n64, 0, 0)

// function wgmma_bf16_n64_km
WGMMA_TILE(wgmma_bf16_n64_km, wgmma_step_bf16_n64, 0, 1)

// function wgmma_bf16_n64_mk
WGMMA_TILE(wgmma_bf16_n64_mk, wgmma_step_bf16_n64, 1, 0)

// function wgmma_bf16_n64_mm
WGMMA_TILE(wgmma_bf16_n64_mm, wgmma_step_bf16_n64, 1, 1)

// function wgmma_step_bf16_n128
WGMMA_STEP_16(wgmma_step_bf16_n128, bf16, 128, WGMMA_NAMES_64, WGMMA_OPERANDS_64, "%64", "%65", "%66", "%67")

// function wgmma_bf16_n128_kk
WGMMA_TILE(wgmma_bf16_n128_kk, wgmma_step_bf16_n128, 0, 0)

// function wgmma_bf16_n128_km
WGMMA_TILE(wgmma_bf16_n128_km, wgmma_step_bf16_n128, 0, 1)

// function wgmma_bf16_n128_mk
WGMMA_TILE(wgmma_bf16_n128_mk, wgmma_step_bf16_n128, 1, 0)

// function wgmma_bf16_n128_mm
WGMMA_TILE(wgmma_bf16_n128_mm, wgmma_step_bf16_n128, 1, 1)

// function wgmma_step_bf16_n256
WGMMA_STEP_16(wgmma_step_bf16_n256, bf16, 256, WGMMA_NAMES_128, WGMMA_OPERANDS_128, "%128", "%129", "%130", "%131")

// function wgmma_bf16_n256_kk
WGMMA_TILE(wgmma_bf16_n256_kk, wgmma_step_bf16_n256, 0, 0)

// function wgmma_bf16_n256_km
WGMMA_TILE(wgmma_bf16_n256_km, wgmma_step_bf16_n256, 0, 1)

// function wgmma_bf16_n256_mk
WGMMA_TILE(wgmma_bf16_n256_mk, wgmma_step_bf16_n256, 1, 0)

// function wgmma_bf16_n256_mm
WGMMA_TILE(wgmma_bf16_n256_mm, wgmma_step_bf16_n256, 1, 1)

// function wgmma_step_f16_n64
WGMMA_STEP_16(wgmma_step_f16_n64, f16, 64, WGMMA_NAMES_32, WGMMA_OPERANDS_32, "%32", "%33", "%34", "%35")

// function wgmma_f16_n64_kk
WGMMA_TILE(wgmma_f16_n64_kk, wgmma_step_f16_n64, 0, 0)

// function wgmma_f16_n64_km
WGMMA_TILE(wgmma_f16_n64_km, wgmma_step_f16_n64, 0, 1)

// function wgmma_f16_n64_mk
WGMMA_TILE(wgmma_f16_n64_mk, wgmma_step_f16_n64, 1, 0)

// function wgmma_f16_n64_mm
WGMMA_TILE(wgmma_f16_n64_mm, wgmma_step_f16_n64, 1, 1)

// function wgmma_step_f16_n128
WGMMA_STEP_16(wgmma_step_f16_n128, f16, 128, WGMMA_NAMES_64, WGMMA_OPERANDS_64, "%64", "%65", "%66", "%67")

// function wgmma_f16_n128_kk
WGMMA_TILE(wgmma_f16_n128_kk, wgmma_step_f16_n128, 0, 0)

// function wgmma_f16_n128_km
WGMMA_TILE(wgmma_f16_n128_km, wgmma_step_f16_n128, 0, 1)

// function wgmma_f16_n128_mk
WGMMA_TILE(wgmma_f16_n128_mk, wgmma_step_f16_n128, 1, 0)

// function wgmma_f16_n128_mm
WGMMA_TILE(wgmma_f16_n128_mm, wgmma_step_f16_n128, 1, 1)

// function wgmma_step_f16_n256
WGMMA_STEP_16(wgmma_step_f16_n256, f16, 256, WGMMA_NAMES_128, WGMMA_OPERANDS_128, "%128", "%129", "%130", "%131")

// function wgmma_f16_n256_kk
WGMMA_TILE(wgmma_f16_n256_kk, wgmma_step_f16_n256, 0, 0)

// function wgmma_f16_n256_km
WGMMA_TILE(wgmma_f16_n256_km, wgmma_step_f16_n256, 0, 1)

// function wgmma_f16_n256_mk
WGMMA_TILE(wgmma_f16_n256_mk, wgmma_step_f16_n256, 1, 0)

// function wgmma_f16_n256_mm
WGMMA_TILE(wgmma_f16_n256_mm, wgmma_step_f16_n256, 1, 1)

// function wgmma_step_tf32_n64
WGMMA_STEP_32(wgmma_step_tf32_n64, 64, WGMMA_NAMES_32, WGMMA_OPERANDS_32, "%32", "%33")

// function wgmma_tf32_n64_kk
WGMMA_TILE(wgmma_tf32_n64_kk, wgmma_step_tf32_n64, 0, 0)

// function wgmma_step_tf32_n128
WGMMA_STEP_32(wgmma_step_tf32_n128, 128, WGMMA_NAMES_64, WGMMA_OPERANDS_64, "%64", "%65")

// function wgmma_tf32_n128_kk
WGMMA_TILE(wgmma_tf32_n128_kk, wgmma_step_tf32_n128, 0, 0)

// function wgmma_step_tf32_n256
WGMMA_STEP_32(wgmma_step_tf32_n256, 256, WGMMA_NAMES_128, WGMMA_OPERANDS_128, "%128", "%129")

// function wgmma_tf32_n256_kk
WGMMA_TILE(wgmma_tf32_n256_kk, wgmma_step_tf32_n256, 0, 0)

// function wgmma_hold_32
/* After a wait: what reads d stays behind it. The wait itself does not say which registers it is about. */
INLINE void wgmma_hold_32(float *d) {
    asm volatile("" : WGMMA_OPERANDS_32(d, 0) : : "memory");
}

// function wgmma_hold_64
INLINE void wgmma_hold_64(float *d) {
    asm volatile("" : WGMMA_OPERANDS_64(d, 0) : : "memory");
}

// function wgmma_hold_128
INLINE void wgmma_hold_128(float *d) {
    asm volatile("" : WGMMA_OPERANDS_128(d, 0) : : "memory");
}

// function WGMMA_STEP_R
/* One instruction whose left operand is in registers, four for each thread: the 16 rows of its warp by 16 k, spread as
   those of mma.m16n8k16. Neighbours of b run along its columns. */
#define WGMMA_STEP_R(name, type, n, names, operands, a, b) \
    INLINE void name(float *d, const unsigned *r, unsigned long long b_at) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " " names ", {" a "}, " b ", 1, 1, 1, 1;" \
                     : operands(d, 0) \
                     : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(b_at) \
                     : "memory"); \
    }

// function WGMMA_TILE_R
/* 64 k: 16 registers, and 64 rows of b. */
#define WGMMA_TILE_R(name, step) \
    INLINE void name(float *d, const unsigned *r, const void *b) { \
        const unsigned long long b_at = wgmma_descriptor(b, 0); \
        step(d, r, b_at); \
        step(d, r + 4, b_at + 128); \
        step(d, r + 8, b_at + 256); \
        step(d, r + 12, b_at + 384); \
    }

// function wgmma_step_bf16_n64_r
WGMMA_STEP_R(wgmma_step_bf16_n64_r, bf16, 64, WGMMA_NAMES_32, WGMMA_OPERANDS_32, "%32, %33, %34, %35", "%36")

// function wgmma_bf16_n64_rm
WGMMA_TILE_R(wgmma_bf16_n64_rm, wgmma_step_bf16_n64_r)

// function wgmma_step_bf16_n128_r
WGMMA_STEP_R(wgmma_step_bf16_n128_r, bf16, 128, WGMMA_NAMES_64, WGMMA_OPERANDS_64, "%64, %65, %66, %67", "%68")

// function wgmma_bf16_n128_rm
WGMMA_TILE_R(wgmma_bf16_n128_rm, wgmma_step_bf16_n128_r)

// function wgmma_step_bf16_n256_r
WGMMA_STEP_R(wgmma_step_bf16_n256_r, bf16, 256, WGMMA_NAMES_128, WGMMA_OPERANDS_128, "%128, %129, %130, %131", "%132")

// function wgmma_bf16_n256_rm
WGMMA_TILE_R(wgmma_bf16_n256_rm, wgmma_step_bf16_n256_r)

// function wgmma_step_f16_n64_r
WGMMA_STEP_R(wgmma_step_f16_n64_r, f16, 64, WGMMA_NAMES_32, WGMMA_OPERANDS_32, "%32, %33, %34, %35", "%36")

// function wgmma_f16_n64_rm
WGMMA_TILE_R(wgmma_f16_n64_rm, wgmma_step_f16_n64_r)

// function wgmma_step_f16_n128_r
WGMMA_STEP_R(wgmma_step_f16_n128_r, f16, 128, WGMMA_NAMES_64, WGMMA_OPERANDS_64, "%64, %65, %66, %67", "%68")

// function wgmma_f16_n128_rm
WGMMA_TILE_R(wgmma_f16_n128_rm, wgmma_step_f16_n128_r)

// function wgmma_step_f16_n256_r
WGMMA_STEP_R(wgmma_step_f16_n256_r, f16, 256, WGMMA_NAMES_128, WGMMA_OPERANDS_128, "%128, %129, %130, %131", "%132")

// function wgmma_f16_n256_rm
WGMMA_TILE_R(wgmma_f16_n256_rm, wgmma_step_f16_n256_r)
