// Kernels for test_simulate.py: right ones, and one for each mistake that simulation must find.
extern "C" __global__ void __launch_bounds__(256) add(const float *a, const float *b, float *c, long long n) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll) c[i] = a[i] + b[i];
}

extern "C" __global__ void __launch_bounds__(128) sum(const float *a, float *c, int n) {
    __shared__ float part[4];
    float x = 0.0f;
    for (int i = threadIdx.x; i < n; i += 128) x = x + a[i];
    #pragma unroll
    for (int k = 16; k; k >>= 1) x = x + shuffle_down(x, k, 32);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
    if (threadIdx.x == 0) c[0] = part[0] + part[1] + part[2] + part[3];
}

extern "C" __global__ void __launch_bounds__(256) tiles(const float *a, const float *b, float *c, int n, int barriers) {
    __shared__ float left[16][16], right[16][16];
    const int i = threadIdx.x / 16, j = threadIdx.x % 16, bi = blockIdx.x / (n / 16), bj = blockIdx.x % (n / 16);
    float x = 0.0f;
    for (int k = 0; k < n; k += 16) {
        left[i][j] = a[(bi * 16 + i) * n + k + j];
        right[i][j] = b[(k + i) * n + bj * 16 + j];
        if (barriers & 1) __syncthreads();
        for (int q = 0; q < 16; ++q) x = fmaf(left[i][q], right[q][j], x);
        if (barriers & 2) __syncthreads();
    }
    c[(bi * 16 + i) * n + bj * 16 + j] = x;
}

// A transpose within each warp; `barriers` 0 leaves out the barrier of the warp.
extern "C" __global__ void warps(const int *a, int *c, int barriers) {
    __shared__ int s[64];
    const int warp = threadIdx.x & ~31, lane = threadIdx.x & 31;
    s[warp + lane] = a[threadIdx.x];
    if (barriers) __syncwarp();
    c[threadIdx.x] = s[warp + 31 - lane];
}

extern "C" __global__ void divergent_barrier(float *c) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void left_behind(float *c) {
    if (threadIdx.x == 40) return;
    __syncthreads();
}

extern "C" __global__ void half_a_warp(float *c) {
    if (threadIdx.x % 32 < 16) c[0] = shuffle_down(1.0f, 1, 32);
}

extern "C" __global__ void two_shuffles(float *c) {
    float x = 1.0f;
    if (threadIdx.x % 2)
        x = shuffle_xor(x, 2, 32);
    else
        x = shuffle_xor(x, 4, 32);
    c[threadIdx.x] = x;
}

extern "C" __global__ void store_at(float *c, int offset) {
    if (threadIdx.x == 3) c[offset] = 1.0f;
}

extern "C" __global__ void load_at(const float *a, float *c, int offset) {
    c[threadIdx.x] = a[offset];
}

extern "C" __global__ void shared_at(float *c, int offset) {
    __shared__ float s[64];
    s[threadIdx.x + offset] = 1.0f;
    __syncthreads();
    c[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void shared_through_pointer(float *c, int offset) {
    __shared__ float s[64];
    float *volatile hidden = s;
    float *p = hidden;
    p[threadIdx.x + offset] = 1.0f;
    __syncthreads();
    c[threadIdx.x] = p[threadIdx.x];
}

extern "C" __global__ void local_at(float *c, int offset) {
    float s[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    c[threadIdx.x] = s[offset];
}

extern "C" __global__ void dynamic_at(float *c, int offset) {
    DYNAMIC_SHARED(bytes);
    float *s = (float *)bytes;
    s[threadIdx.x + offset] = (float)threadIdx.x;
    __syncthreads();
    c[threadIdx.x] = s[31 - threadIdx.x];
}

extern "C" __global__ void wide_at(const float *a, float *c, int offset) {
    const wide<float, 4> x = load_wide<4>(a + offset);
    if (threadIdx.x == 0) store_wide(c, x);
}

extern "C" __global__ void overflowing(int *c, int n) {
    c[threadIdx.x] = n + 1;
}

extern "C" __global__ void dividing(int *c, int n) {
    c[threadIdx.x] = 7 / n;
}

extern "C" __global__ void uninitialised(unsigned *c) {
    __shared__ unsigned s[32];
    DYNAMIC_SHARED(bytes);
    c[threadIdx.x] = s[threadIdx.x] & ((unsigned *)bytes)[threadIdx.x];
    s[threadIdx.x] = 5u;
}

extern "C" __global__ void endless(int *c) {
#ifdef SIMULATED
    simulated::wait_until([c] { return *c == 1; }, __LINE__, "a flag");
#endif
}

extern "C" __global__ void handshake(volatile int *c) {
#ifdef SIMULATED
    if (threadIdx.x == 7) c[0] = 1;
    simulated::wait_until([c] { return c[0] == 1; }, __LINE__, "a flag");
    c[1] = 2;
#endif
}

extern "C" __global__ void numbered(int *counter, int *order) {
    order[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}

#define SHUFFLES(name, type) \
    extern "C" __global__ void name(const type *a, type *c, int k, int width) { \
        const type x = a[threadIdx.x]; \
        c[threadIdx.x] = shuffle_down(x, k, width); \
        c[64 + threadIdx.x] = shuffle_xor(x, k, width); \
        c[128 + threadIdx.x] = shuffle_from(x, k, width); \
    }
SHUFFLES(shuffle_bool, bool)
SHUFFLES(shuffle_i8, signed char)
SHUFFLES(shuffle_u16, unsigned short)
SHUFFLES(shuffle_i32, int)
SHUFFLES(shuffle_u64, unsigned long long)
SHUFFLES(shuffle_f32, float)
SHUFFLES(shuffle_f64, double)

extern "C" __global__ void atomics(int *c, unsigned long long *flag, unsigned *ballots, long long *error) {
    atomicAdd(c, 2);
    atomicMax(c + 1, (int)threadIdx.x);
    atomicMin(c + 2, -(int)threadIdx.x);
    if (atomicCAS(flag, 0ull, 1ull + threadIdx.x) == 0ull) atomicExch(c + 3, (int)threadIdx.x);
    ballots[threadIdx.x] = __ballot_sync(0xFFFFFFFFu, threadIdx.x % 3 == 0);
    report_error(error, 9, 3, 100 + threadIdx.x);
}

// Rows of 32 floats through two stages of asynchronous copies. what: 0 right, 1 without the waits, 2 waits for too little,
// 3 without the barrier before a stage is filled again, 4 from an odd address, 5 to memory that is not shared.
extern "C" __global__ void pipeline(const float *a, float *c, int rows, int what) {
    __shared__ __align__(16) float stage[2][32];
    const int t = threadIdx.x;
    if (what == 4 && t == 1) copy_async_16(stage[0], a + 1, 16);
    if (what == 5 && t == 1) copy_async_16(c, a, 16);
    copy_async_4(&stage[0][t], a + t, 4);
    copy_async_commit();
    for (int row = 0; row < rows; ++row) {
        const bool more = row + 1 < rows;
        copy_async_4(&stage[(row + 1) & 1][t], a + (more ? (row + 1) * 32 + t : 0), more ? 4 : 0);
        copy_async_commit();
        if (what != 1) {
            if (what == 2)
                copy_async_wait_2();
            else
                copy_async_wait_1();
        }
        __syncthreads();
        c[row * 32 + t] = stage[row & 1][31 - t];
        if (what != 3) __syncthreads();
    }
}

extern "C" __global__ void zero_fill(const float *a, float *c, int bytes) {
    __shared__ __align__(16) float s[32][4];
    copy_async_16(s[threadIdx.x], a + 4 * threadIdx.x, bytes);
    copy_async_commit();
    copy_async_wait_0();
    __syncthreads();
    for (int i = 0; i < 4; ++i) c[4 * threadIdx.x + i] = s[threadIdx.x][i];
}

// d[16][8] = c + a[16][16] b[8][16] transposed, by fragments from ldmatrix.
#define PRODUCT(name, multiply) \
    extern "C" __global__ void name(const unsigned short *a, const unsigned short *b, float *d) { \
        __shared__ __align__(16) unsigned short left[16][24], right[8][24]; \
        const int t = threadIdx.x; \
        for (int i = t; i < 256; i += 32) left[i / 16][i % 16] = a[i]; \
        for (int i = t; i < 128; i += 32) right[i / 16][i % 16] = b[i]; \
        __syncwarp(); \
        unsigned x[4], y[2]; \
        float z[4]; \
        ldmatrix_x4(x, &left[t % 16][t / 16 * 8]); \
        ldmatrix_x2(y, &right[t % 8][t / 8 % 2 * 8]); \
        for (int i = 0; i < 4; ++i) z[i] = d[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2]; \
        multiply(z, x, y); \
        for (int i = 0; i < 4; ++i) d[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = z[i]; \
    }
PRODUCT(product_bf16, mma_16816_bf16)
PRODUCT(product_f16, mma_16816_f16)

// The same with both operands stored along the other dimension: a[k][16], b[k][8].
extern "C" __global__ void product_transposed(const unsigned short *a, const unsigned short *b, float *d) {
    __shared__ __align__(16) unsigned short left[16][24], right[16][8];
    const int t = threadIdx.x;
    for (int i = t; i < 256; i += 32) left[i / 16][i % 16] = a[i];
    for (int i = t; i < 128; i += 32) right[i / 8][i % 8] = b[i];
    __syncwarp();
    unsigned x[4], y[2];
    float z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    ldmatrix_x4_trans(x, &left[t % 8 + t / 16 * 8][t / 8 % 2 * 8]);
    ldmatrix_x2_trans(y, right[t % 16]);
    mma_16816_bf16(z, x, y);
    for (int i = 0; i < 4; ++i) d[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = z[i];
}

extern "C" __global__ void product_tf32(const unsigned *a, const unsigned *b, float *d) {
    const int t = threadIdx.x, g = t / 4, c = t % 4;
    const unsigned x[4] = {a[g * 8 + c], a[(g + 8) * 8 + c], a[g * 8 + c + 4], a[(g + 8) * 8 + c + 4]};
    const unsigned y[2] = {b[c * 8 + g], b[(c + 4) * 8 + g]};
    float z[4];
    for (int i = 0; i < 4; ++i) z[i] = d[(g + i / 2 * 8) * 8 + c * 2 + i % 2];
    mma_1688_tf32(z, x, y);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + c * 2 + i % 2] = z[i];
}
