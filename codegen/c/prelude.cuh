/* What emitted CUDA C may call: the only place with inline PTX, and everything that a simulation on the CPU replaces.

   codegen/c/simulate.h has a function of the same name and meaning for each of these. Sections are copied by
   codegen/c/prelude.py as those of numbers.h are; a section here wins over one of the same name there. */
#define INLINE static __device__ __forceinline__

// function DYNAMIC_SHARED
/* Names the block's dynamic shared memory, an array of bytes. */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// function half_to_float
INLINE float half_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// function float_to_half
INLINE unsigned short float_to_half(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// function float_to_bfloat
INLINE unsigned short float_to_bfloat(float x) {
    /* Without .ftz the instruction keeps subnormals (PTX ISA, cvt). */
#if __CUDA_ARCH__ >= 800
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    unsigned bits = float_bits(x), upper = bits >> 16;
    if (x != x) return (unsigned short)(upper | 0x40u);
    return (unsigned short)((bits + 0x7FFFu + (upper & 1u)) >> 16);
#endif
}

// function mulhi_u32
INLINE unsigned mulhi_u32(unsigned a, unsigned b) {
    return __umulhi(a, b);
}

// function mulhi_u64
INLINE unsigned long long mulhi_u64(unsigned long long a, unsigned long long b) {
    return __umul64hi(a, b);
}

// function report_error
INLINE void report_error(long long *error, int launch, int site, long long value) {
    /* error is {site, value, launch}; the first to claim it stays. */
    if (error[0] != 0) return;
    if (atomicCAS((unsigned long long *)error, 0ull, (unsigned long long)site) != 0ull) return;
    error[1] = value;
    error[2] = launch;
}

// function shuffle_down
template <class T> INLINE T shuffle_down(T x, int k, int width) {
    /* Of the thread k further on in its run of `width`; at the end of the run, x itself. All 32 threads of the warp take part. */
    return (T)__shfl_down_sync(0xFFFFFFFFu, x, (unsigned)k, width);
}

// function shuffle_xor
template <class T> INLINE T shuffle_xor(T x, int k, int width) {
    return (T)__shfl_xor_sync(0xFFFFFFFFu, x, k, width);
}

// function shuffle_from
template <class T> INLINE T shuffle_from(T x, int k, int width) {
    return (T)__shfl_sync(0xFFFFFFFFu, x, k, width);
}

// function wide
/* N elements in one access: aligned to their size together, at most 16 bytes. */
template <class T, int N> struct alignas(sizeof(T) * N) wide {
    T lane[N];
};

// function load_wide
template <int N, class T> INLINE wide<T, N> load_wide(const T *p) {
    return *(const wide<T, N> *)p;
}

// function store_wide
template <int N, class T> INLINE void store_wide(T *p, wide<T, N> x) {
    *(wide<T, N> *)p = x;
}

// function members
/* The argument of a launch for N members: of each K words, the last of which is the end of its blocks. */
template <int N, int K> struct members {
    long long word[N][K];
    long long *error;
    long long launch;
};

// function find_member
template <int N, int K> INLINE int find_member(const members<N, K> &table, int block) {
    int low = 0, high = N - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (block < table.word[middle][K - 1]) high = middle;
        else low = middle + 1;
    }
    return low;
}

// function shared_address
INLINE unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// function copy_async_16
INLINE void copy_async_16(void *shared, const void *global, int bytes) {
    /* 16 bytes to shared memory past the registers, zeros from `bytes` (0..16) on. Done at the matching wait. */
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
#else
    if (bytes == 16) *(int4 *)shared = *(const int4 *)global;
    else
        for (int i = 0; i < 16; ++i) ((unsigned char *)shared)[i] = i < bytes ? ((const unsigned char *)global)[i] : 0;
#endif
}

// function copy_async_8
INLINE void copy_async_8(void *shared, const void *global, int bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
#else
    if (bytes == 8) *(int2 *)shared = *(const int2 *)global;
    else
        for (int i = 0; i < 8; ++i) ((unsigned char *)shared)[i] = i < bytes ? ((const unsigned char *)global)[i] : 0;
#endif
}

// function copy_async_4
INLINE void copy_async_4(void *shared, const void *global, int bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
#else
    if (bytes == 4) *(int *)shared = *(const int *)global;
    else
        for (int i = 0; i < 4; ++i) ((unsigned char *)shared)[i] = i < bytes ? ((const unsigned char *)global)[i] : 0;
#endif
}

// function copy_async_commit
INLINE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// function copy_async_wait_0
INLINE void copy_async_wait_0() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
}

// function copy_async_wait_1
INLINE void copy_async_wait_1() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// function copy_async_wait_2
INLINE void copy_async_wait_2() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 2;" ::: "memory");
#endif
}

// function copy_async_wait_3
INLINE void copy_async_wait_3() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 3;" ::: "memory");
#endif
}

// function copy_async_wait_4
INLINE void copy_async_wait_4() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 4;" ::: "memory");
#endif
}

// function copy_async_wait_5
INLINE void copy_async_wait_5() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 5;" ::: "memory");
#endif
}

// function copy_async_wait_6
INLINE void copy_async_wait_6() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 6;" ::: "memory");
#endif
}

// function copy_async_wait_7
INLINE void copy_async_wait_7() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 7;" ::: "memory");
#endif
}

// function ldmatrix_x4
INLINE void ldmatrix_x4(unsigned *r, const void *shared) {
    /* Thread t names row t mod 8 of matrix t / 8; r[i] gets elements 2 (t mod 4) and the next of row t / 4 of matrix i. */
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared)) : "memory");
#else
    asm volatile("trap;");
#endif
}

// function ldmatrix_x4_trans
INLINE void ldmatrix_x4_trans(unsigned *r, const void *shared) {
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared)) : "memory");
#else
    asm volatile("trap;");
#endif
}

// function ldmatrix_x2
INLINE void ldmatrix_x2(unsigned *r, const void *shared) {
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(shared)) : "memory");
#else
    asm volatile("trap;");
#endif
}

// function ldmatrix_x2_trans
INLINE void ldmatrix_x2_trans(unsigned *r, const void *shared) {
#if __CUDA_ARCH__ >= 750
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(shared)) : "memory");
#else
    asm volatile("trap;");
#endif
}

// function mma_16816_bf16
INLINE void mma_16816_bf16(float *d, const unsigned *a, const unsigned *b) {
    /* d (16 x 8, float) += a (16 x 16) * b (16 x 8), spread over the warp as in PTX ISA, mma.m16n8k16. */
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
}

// function mma_16816_f16
INLINE void mma_16816_f16(float *d, const unsigned *a, const unsigned *b) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
}

// function mma_1688_tf32
INLINE void mma_1688_tf32(float *d, const unsigned *a, const unsigned *b) {
    /* d (16 x 8, float) += a (16 x 8) * b (8 x 8); the low 13 bits of the operands do not count. */
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
}

// function exp2_approximate
INLINE void exp2_approximate(float *x) {
    /* *x = 2^*x to about 2^-22 of it, subnormals as 0 (PTX ISA, ex2.approx): for weights of tensor-core products only. */
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(*x));
}

// function pack_bf16
INLINE void pack_bf16(unsigned *r, float low, float high) {
    /* Two floats, each rounded to nearest even, in one register of a fragment. */
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*r) : "f"(high), "f"(low));
#else
    *r = float_to_bfloat(low) | (unsigned)float_to_bfloat(high) << 16;
#endif
}

// function pack_f16
INLINE void pack_f16(unsigned *r, float low, float high) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*r) : "f"(high), "f"(low));
#else
    *r = float_to_half(low) | (unsigned)float_to_half(high) << 16;
#endif
}
