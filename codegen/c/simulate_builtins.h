/* Part of simulate.h: the functions of prelude.cuh and those of CUDA that kernels call. */
#pragma once

/* ---- what emitted code calls: prelude.cuh ---- */
#define SIMULATED_LINE int line = __builtin_LINE()

static inline void report_error(long long *error, int launch, int site, long long value) {
    if (error[0] == 0) error[0] = site, error[1] = value, error[2] = launch;
}

static inline void __syncthreads(SIMULATED_LINE) { simulated::barrier_sync(0, simulated::at.threads, true, line, "__syncthreads"); }
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SIMULATED_LINE) {
    simulated::full(mask, line, "__syncwarp");
    simulated::warp_sync(line, "__syncwarp", [](simulated::Warp &) {});
}

template <class T> static inline T shuffle_down(T x, int k, int width, SIMULATED_LINE) { return simulated::exchange(x, line, "shuffle_down", simulated::source_down(k, width)); }
template <class T> static inline T shuffle_xor(T x, int k, int width, SIMULATED_LINE) { return simulated::exchange(x, line, "shuffle_xor", simulated::source_xor(k, width)); }
template <class T> static inline T shuffle_from(T x, int k, int width, SIMULATED_LINE) { return simulated::exchange(x, line, "shuffle_from", simulated::source_from(k, width)); }
#define SIMULATED_SHUFFLE(name, number, source) \
    template <class T> static inline T name(unsigned mask, T x, number k, int width = 32, SIMULATED_LINE) { \
        simulated::full(mask, line, #name); \
        return simulated::exchange(x, line, #name, simulated::source((int)k, width)); \
    }
SIMULATED_SHUFFLE(__shfl_sync, int, source_from)
SIMULATED_SHUFFLE(__shfl_down_sync, unsigned, source_down)
SIMULATED_SHUFFLE(__shfl_up_sync, unsigned, source_up)
SIMULATED_SHUFFLE(__shfl_xor_sync, int, source_xor)
static inline unsigned __ballot_sync(unsigned mask, int x, SIMULATED_LINE) {
    simulated::full(mask, line, "__ballot_sync");
    simulated::Warp &w = simulated::at.warp[simulated::at.current / 32];
    w.values[w.turn][simulated::lane()] = x != 0;
    int turn = simulated::warp_sync(line, "__ballot_sync", [](simulated::Warp &) {});
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= (unsigned)w.values[turn][i] << i;
    return all;
}
static inline int __any_sync(unsigned mask, int x, SIMULATED_LINE) { return __ballot_sync(mask, x, line) != 0; }
static inline int __all_sync(unsigned mask, int x, SIMULATED_LINE) { return __ballot_sync(mask, x, line) == 0xFFFFFFFFu; }

template <class T, int N> struct alignas(sizeof(T) * N) wide {
    T lane[N];
};
template <int N, class T> static inline wide<T, N> load_wide(const T *p, SIMULATED_LINE) {
    if ((size_t)p % (sizeof(T) * N)) SIMULATED_FAIL("a misaligned wide load in line %d", line);
    return *(const wide<T, N> *)p;
}
template <int N, class T> static inline void store_wide(T *p, wide<T, N> x, SIMULATED_LINE) {
    if ((size_t)p % (sizeof(T) * N)) SIMULATED_FAIL("a misaligned wide store in line %d", line);
    *(wide<T, N> *)p = x;
}

template <int N, int K> struct members {
    long long word[N][K];
    long long *error;
    long long launch;
};
template <int N, int K> static inline int find_member(const members<N, K> &table, int block) {
    int member = 0;
    while (block >= table.word[member][K - 1]) ++member;
    return member;
}

static inline void copy_async_16(void *shared, const void *global, int bytes, SIMULATED_LINE) { simulated::copy_async(shared, global, 16, bytes, line); }
static inline void copy_async_8(void *shared, const void *global, int bytes, SIMULATED_LINE) { simulated::copy_async(shared, global, 8, bytes, line); }
static inline void copy_async_4(void *shared, const void *global, int bytes, SIMULATED_LINE) { simulated::copy_async(shared, global, 4, bytes, line); }
static inline void copy_async_commit() { ++simulated::at.thread[simulated::at.current].groups; }
static inline void copy_async_wait_0() { simulated::copy_async_wait(0); }
static inline void copy_async_wait_1() { simulated::copy_async_wait(1); }
static inline void copy_async_wait_2() { simulated::copy_async_wait(2); }
static inline void copy_async_wait_3() { simulated::copy_async_wait(3); }
static inline void copy_async_wait_4() { simulated::copy_async_wait(4); }
static inline void copy_async_wait_5() { simulated::copy_async_wait(5); }
static inline void copy_async_wait_6() { simulated::copy_async_wait(6); }
static inline void copy_async_wait_7() { simulated::copy_async_wait(7); }

static inline void ldmatrix_x4(unsigned *r, const void *shared, SIMULATED_LINE) { simulated::ldmatrix(r, shared, 4, false, line, "ldmatrix_x4"); }
static inline void ldmatrix_x4_trans(unsigned *r, const void *shared, SIMULATED_LINE) { simulated::ldmatrix(r, shared, 4, true, line, "ldmatrix_x4_trans"); }
static inline void ldmatrix_x2(unsigned *r, const void *shared, SIMULATED_LINE) { simulated::ldmatrix(r, shared, 2, false, line, "ldmatrix_x2"); }
static inline void ldmatrix_x2_trans(unsigned *r, const void *shared, SIMULATED_LINE) { simulated::ldmatrix(r, shared, 2, true, line, "ldmatrix_x2_trans"); }
static inline void exp2_approximate(float *x) { *x = exp2f(*x); }
static inline void pack_bf16(unsigned *r, float low, float high) { *r = float_to_bfloat(low) | (unsigned)float_to_bfloat(high) << 16; }
static inline void pack_f16(unsigned *r, float low, float high) { *r = float_to_half(low) | (unsigned)float_to_half(high) << 16; }

static inline void mma_16816_bf16(float *d, const unsigned *a, const unsigned *b, SIMULATED_LINE) { simulated::mma_16816<bfloat_to_float>(d, a, b, line, "mma_16816_bf16"); }
static inline void mma_16816_f16(float *d, const unsigned *a, const unsigned *b, SIMULATED_LINE) { simulated::mma_16816<half_to_float>(d, a, b, line, "mma_16816_f16"); }
static inline void mma_1688_tf32(float *d, const unsigned *a, const unsigned *b, SIMULATED_LINE) { simulated::mma_1688(d, a, b, line, "mma_1688_tf32"); }

/* ---- CUDA's own functions ---- */
namespace simulated {
template <class T> struct same {
    using type = T;
};
template <class T> using Same = typename same<T>::type;
} // namespace simulated

/* Nothing runs at the same time, so plain code is atomic. */
#define SIMULATED_ATOMIC(name, value) \
    template <class T> static inline T name(T *p, simulated::Same<T> x) { \
        T old = *p; \
        *p = value; \
        return old; \
    }
SIMULATED_ATOMIC(atomicAdd, old + x)
SIMULATED_ATOMIC(atomicSub, old - x)
SIMULATED_ATOMIC(atomicExch, x)
SIMULATED_ATOMIC(atomicMin, x < old ? x : old)
SIMULATED_ATOMIC(atomicMax, x > old ? x : old)
SIMULATED_ATOMIC(atomicAnd, old & x)
SIMULATED_ATOMIC(atomicOr, old | x)
SIMULATED_ATOMIC(atomicXor, old ^ x)
template <class T> static inline T atomicCAS(T *p, simulated::Same<T> expected, simulated::Same<T> x) {
    T old = *p;
    if (old == expected) *p = x;
    return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, simulated::Same<T> x) { *p = x; }
template <class T> static inline void __stcg(T *p, simulated::Same<T> x) { *p = x; }

static inline unsigned __float_as_uint(float x) { return float_bits(x); }
static inline int __float_as_int(float x) { return (int)float_bits(x); }
static inline float __uint_as_float(unsigned x) { return bits_float(x); }
static inline float __int_as_float(int x) { return bits_float((unsigned)x); }
static inline long long __double_as_longlong(double x) { return (long long)double_bits(x); }
static inline double __longlong_as_double(long long x) { return bits_double((unsigned long long)x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return mulhi_u32(a, b); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return mulhi_u64(a, b); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

#define SIMULATED_VECTOR(name, type, pair) \
    struct alignas(2 * sizeof(type)) name##2 { \
        type x, y; \
    }; \
    struct alignas(pair) name##4 { \
        type x, y, z, w; \
    }; \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SIMULATED_VECTOR(float, float, 16)
SIMULATED_VECTOR(int, int, 16)
SIMULATED_VECTOR(uint, unsigned, 16)
SIMULATED_VECTOR(ushort, unsigned short, 8)
SIMULATED_VECTOR(short, short, 8)
SIMULATED_VECTOR(uchar, unsigned char, 4)
SIMULATED_VECTOR(char, signed char, 4)
SIMULATED_VECTOR(double, double, 16)
SIMULATED_VECTOR(longlong, long long, 16)
SIMULATED_VECTOR(ulonglong, unsigned long long, 16)
