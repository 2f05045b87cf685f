/* Part of simulate.h: asynchronous copies, fragments of matrices, products of a warp. */
#pragma once

namespace simulated {

/* ---- asynchronous copies: done at the wait ---- */

static bool in_shared(const void *p, int bytes) {
    const char *c = (const char *)p;
    bool fixed = !at.shared_start || (c >= at.shared_start && c + bytes <= at.shared_stop);
    return fixed || (c >= at.dynamic && c + bytes <= at.dynamic + at.dynamic_bytes);
}

static void copy_async(void *to, const void *from, int size, int bytes, int line) {
    Thread &me = at.thread[at.current];
    if ((size_t)to % size || (size_t)from % size) SIMULATED_FAIL("copy_async_%d in line %d between addresses that are not both multiples of %d", size, line, size);
    if (bytes < 0 || bytes > size) SIMULATED_FAIL("copy_async_%d in line %d of %d bytes", size, line, bytes);
    if (!in_shared(to, size)) SIMULATED_FAIL("copy_async_%d in line %d to what is not shared memory", size, line);
    memset(to, 0xFF, (size_t)size);
    if (me.copies == me.capacity) {
        me.capacity = me.capacity ? 2 * me.capacity : 64;
        me.queue = (Copy *)realloc((void *)me.queue, sizeof(Copy) * (size_t)me.capacity);
    }
    me.queue[me.copies++] = {(char *)to, (const char *)from, size, bytes, me.groups};
}

static void copy_async_wait(int pending) {
    Thread &me = at.thread[at.current];
    int done = 0;
    while (done < me.copies && me.queue[done].group < me.groups - pending) {
        const Copy &c = me.queue[done++];
        memcpy(c.to, c.from, (size_t)c.bytes);
        memset(c.to + c.bytes, 0, (size_t)(c.size - c.bytes));
    }
    me.copies -= done;
    memmove((void *)me.queue, (void *)(me.queue + done), sizeof(Copy) * (size_t)me.copies);
}

/* ---- tensor cores ---- */

static void ldmatrix(unsigned *r, const void *row, int matrices, bool transposed, int line, const char *what) {
    if (lane() < 8 * matrices) {
        if ((size_t)row % 16) SIMULATED_FAIL("%s in line %d from an address that is not a multiple of 16", what, line);
        if (!in_shared(row, 16)) SIMULATED_FAIL("%s in line %d from what is not shared memory", what, line);
    }
    Warp &w = at.warp[at.current / WARP];
    w.d[lane()] = r;
    w.a[lane()] = row;
    warp_sync(line, what, [matrices, transposed](Warp &w) {
        for (int m = 0; m < matrices; ++m) {
            unsigned short element[8][8];
            for (int i = 0; i < 8; ++i) memcpy(element[i], w.a[8 * m + i], 16);
            for (int t = 0; t < WARP; ++t) {
                int i = t / 4, j = 2 * (t % 4);
                unsigned low = transposed ? element[j][i] : element[i][j], high = transposed ? element[j + 1][i] : element[i][j + 1];
                ((unsigned *)w.d[t])[m] = low | high << 16;
            }
        }
    });
}

/* Here most of the time of a tensor-core kernel goes, so the compiler's checks are left out. */
#define SIMULATED_FAST static __attribute__((noinline, optimize("O3"), no_sanitize_undefined))

/* The rule of the head of simulate.h: d[16][8] += a[16][k] * b[k][8], each product exact, one addition at a time. */
SIMULATED_FAST void multiply(Warp &w, const float (*a)[16], const float (*b)[8], int depth) {
    float d[16][8];
    for (int t = 0; t < WARP; ++t)
        for (int i = 0; i < 4; ++i) d[t / 4 + 8 * (i / 2)][2 * (t % 4) + i % 2] = ((const float *)w.d[t])[i];
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < depth; ++k)
            for (int n = 0; n < 8; ++n) d[m][n] = fmaf(a[m][k], b[k][n], d[m][n]);
    for (int t = 0; t < WARP; ++t)
        for (int i = 0; i < 4; ++i) ((float *)w.d[t])[i] = d[t / 4 + 8 * (i / 2)][2 * (t % 4) + i % 2];
}

static void offer(float *d, const unsigned *a, const unsigned *b) {
    Warp &w = at.warp[at.current / WARP];
    w.d[lane()] = d, w.a[lane()] = a, w.b[lane()] = b;
}

/* Both halves of each register, spread as PTX ISA says of mma.m16n8k16. */
template <float (*widen)(unsigned short)> SIMULATED_FAST void spread_16816(const Warp &w, float (*left)[16], float (*right)[8]) {
    for (int t = 0; t < WARP; ++t) {
        const unsigned *a = (const unsigned *)w.a[t], *b = (const unsigned *)w.b[t];
        int g = t / 4, c = 2 * (t % 4);
        for (int h = 0; h < 2; ++h) {
            for (int r = 0; r < 4; ++r) left[g + 8 * (r % 2)][c + h + 8 * (r / 2)] = widen((unsigned short)(a[r] >> 16 * h));
            for (int r = 0; r < 2; ++r) right[c + h + 8 * r][g] = widen((unsigned short)(b[r] >> 16 * h));
        }
    }
}

/* The same of mma.m16n8k8. */
SIMULATED_FAST void spread_1688(const Warp &w, float (*left)[16], float (*right)[8]) {
    for (int t = 0; t < WARP; ++t) {
        const unsigned *a = (const unsigned *)w.a[t], *b = (const unsigned *)w.b[t];
        int g = t / 4, c = t % 4;
        for (int r = 0; r < 4; ++r) left[g + 8 * (r % 2)][c + 4 * (r / 2)] = bits_float(a[r] & 0xFFFFE000u);
        for (int r = 0; r < 2; ++r) right[c + 4 * r][g] = bits_float(b[r] & 0xFFFFE000u);
    }
}

template <float (*widen)(unsigned short)> static void mma_16816(float *d, const unsigned *a, const unsigned *b, int line, const char *what) {
    offer(d, a, b);
    warp_sync(line, what, [](Warp &w) {
        float left[16][16], right[16][8];
        spread_16816<widen>(w, left, right);
        multiply(w, left, right, 16);
    });
}

static void mma_1688(float *d, const unsigned *a, const unsigned *b, int line, const char *what) {
    offer(d, a, b);
    warp_sync(line, what, [](Warp &w) {
        float left[16][16], right[16][8];
        spread_1688(w, left, right);
        multiply(w, left, right, 8);
    });
}

} // namespace simulated
