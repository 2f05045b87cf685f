/* The functions of hopper.h on the CPU, by their definition; the last part of simulate.h.

   What the hardware does on its own time happens here as late as it may: a bulk copy destroys its target at once and lands
   when somebody waits on its barrier (now and then at once, for seeds above 1); a product reads shared memory when it is
   waited for; a bulk store reads it likewise. Descriptors, byte counts, phases and swizzle are those of the hardware, so
   that what is encoded wrongly gives wrong numbers or never arrives.

   Products accumulate as those of simulate.h do. tf32 operands lose their low 13 bits, which the copy engine's rounding
   has made zero.

   The blocks of a cluster run one after another: each does for itself what the others would do for it (the parts of a tile, the
   arrivals at its barriers). */
#pragma once

/* In place of the hardware's opaque 128 bytes: codegen/cuda/tensormap.py fills both. */
struct TensorMap {
    char *start;
    int rank, size, rounded, reserved;  /* size: bytes of an element */
    long long sizes[5], strides[4];     /* elements of each dimension, the innermost first; bytes from one to the next */
    int box[5], unused[3];
};
static_assert(sizeof(TensorMap) == 128, "as large as the hardware's");

namespace simulated {

constexpr int MOST_COPIES = 4096, MOST_PRODUCTS = 64;

/* A barrier's 64 bits. */
struct Phase {
    unsigned long long parity : 1, expected : 20, pending : 20;
    long long bytes : 23;
};

struct BulkCopy {
    TensorMap map;
    char *shared;
    unsigned long long *barrier; /* null: a store */
    int at[5], thread;
};

enum Kind { BF16, F16, TF32 };

struct Product {
    Kind kind;
    int columns, group;
    bool a_major, b_major;
    unsigned long long a, b;
    float *d[WARP];
    const unsigned *r[WARP]; /* the left operand, if it is in registers */
};

struct Products {
    int count, groups;
    bool fenced;
    Product queue[MOST_PRODUCTS];
};

static struct {
    BulkCopy copies[MOST_COPIES];
    int count;
    Products warp[MOST_THREADS / WARP];
    float left[16 * 16], right[16 * 256];
} bulk;

static char *within(const void *p, int bytes, int line, const char *what) {
    if (!in_shared(p, bytes)) SIMULATED_FAIL("%s in line %d of what is not shared memory", what, line);
    return (char *)p;
}

/* ---- mbarrier ---- */

static Phase *phase_of(unsigned long long *barrier, int line, const char *what) {
    if ((size_t)barrier % 8) SIMULATED_FAIL("%s in line %d at an address that is not a multiple of 8", what, line);
    return (Phase *)within(barrier, 8, line, what);
}

static void settle(Phase *p) {
    if (p->pending || p->bytes) return;
    p->parity ^= 1;
    p->pending = p->expected;
    at.polls = 0;
}

static void arrive(unsigned long long *barrier, int bytes, int line, const char *what) {
    Phase *p = phase_of(barrier, line, what);
    if (!p->pending) SIMULATED_FAIL("%s in line %d: more arrivals than the barrier expects", what, line);
    p->bytes += bytes;
    --p->pending;
    settle(p);
}

/* ---- the copy engine ---- */

static float to_tf32(float x) {
    unsigned bits = float_bits(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) return x;
    return bits_float((bits + 0xFFFu + (bits >> 13 & 1)) & 0xFFFFE000u);
}

/* Calls f(element of the box in shared memory, element in global memory or null) for the whole box. */
template <class F> static long long each_element(const BulkCopy &c, F f) {
    const TensorMap &m = c.map;
    long long row = 0;
    int i[5] = {};
    for (bool more = true; more; ++row) {
        bool inside = true;
        const char *from = m.start;
        for (int d = 1; d < m.rank; ++d) {
            long long k = (long long)c.at[d] + i[d];
            inside &= k >= 0 && k < m.sizes[d];
            from += k * m.strides[d - 1];
        }
        for (int e = 0; e < m.box[0]; ++e) {
            long long k = (long long)c.at[0] + e;
            size_t place = (size_t)c.shared + (size_t)row * 128 + (size_t)(e * m.size);
            place ^= (place >> 7 & 7) << 4;
            f((char *)place, inside && k >= 0 && k < m.sizes[0] ? (char *)from + k * m.size : nullptr);
        }
        more = false;
        for (int d = 1; d < m.rank && !more; ++d) {
            more = ++i[d] < m.box[d];
            if (!more) i[d] = 0;
        }
    }
    return row * 128;
}

static void land(int which) {
    BulkCopy c = bulk.copies[which];
    memmove((void *)&bulk.copies[which], (void *)&bulk.copies[which + 1], sizeof(BulkCopy) * (size_t)(--bulk.count - which));
    int size = c.map.size;
    if (!c.barrier) {
        each_element(c, [size](char *shared, char *global) {
            if (global) memcpy(global, shared, (size_t)size);
        });
        return;
    }
    bool rounded = c.map.rounded;
    long long bytes = each_element(c, [size, rounded](char *shared, char *global) {
        if (!global) {
            memset(shared, 0, (size_t)size);
        } else if (rounded) {
            float x;
            memcpy(&x, global, 4);
            x = to_tf32(x);
            memcpy(shared, &x, 4);
        } else {
            memcpy(shared, global, (size_t)size);
        }
    });
    Phase *p = (Phase *)c.barrier;
    p->bytes -= bytes;
    settle(p);
}

static void bulk_copy(void *shared, const TensorMap *map, unsigned long long *barrier, std::initializer_list<int> coordinates, int line, const char *what) {
    int rows = 1;
    for (int d = 1; d < map->rank; ++d) rows *= map->box[d];
    if (map->rank != (int)coordinates.size()) SIMULATED_FAIL("%s in line %d of a map with %d dimensions", what, line, map->rank);
    if (map->box[0] * map->size != 128) SIMULATED_FAIL("%s in line %d of boxes whose rows are not 128 bytes", what, line);
    if ((size_t)shared % 1024) SIMULATED_FAIL("%s in line %d at shared memory that is not a multiple of 1024", what, line);
    if ((size_t)map->start % 16) SIMULATED_FAIL("%s in line %d of memory that is not a multiple of 16", what, line);
    for (int d = 1; d < map->rank; ++d) {
        if (map->strides[d - 1] % 16 || map->strides[d - 1] <= 0) SIMULATED_FAIL("%s in line %d of a map with a stride of %lld bytes", what, line, map->strides[d - 1]);
        if (map->box[d] < 1 || map->box[d] > 256) SIMULATED_FAIL("%s in line %d of boxes of %d", what, line, map->box[d]);
    }
    within(shared, 128 * rows, line, what);
    if (bulk.count == MOST_COPIES) SIMULATED_FAIL("%s in line %d with %d copies under way", what, line, bulk.count);
    BulkCopy &c = bulk.copies[bulk.count++];
    c.map = *map, c.shared = (char *)shared, c.barrier = barrier, c.thread = at.current;
    int d = 0;
    for (int x : coordinates) c.at[d++] = x;
    if (!barrier) return;
    phase_of(barrier, line, what);
    memset(shared, 0xFF, 128 * (size_t)rows);
    if (at.seed > 1 && random_below(4) == 0) land(bulk.count - 1);
}

static void barrier_wait(unsigned long long *barrier, int parity, int line) {
    Phase *p = phase_of(barrier, line, "mbarrier_wait");
    wait_until(
        [p, barrier, parity] {
            for (int i = 0; (int)p->parity == parity && i < bulk.count; ++i)
                if (bulk.copies[i].barrier == barrier) land(i--);
            return (int)p->parity != parity;
        },
        line, "mbarrier_wait");
}

static void finish_stores() {
    for (int i = 0; i < bulk.count; ++i)
        if (!bulk.copies[i].barrier && bulk.copies[i].thread == at.current) land(i--);
}

static void block_begins() {
    bulk.count = 0;
    for (Products &w : bulk.warp) w.count = w.groups = 0, w.fenced = false;
}

static void block_ends() {
    if (bulk.count) SIMULATED_FAIL("the block has ended with %d bulk copies under way", bulk.count);
    for (Products &w : bulk.warp)
        if (w.count) SIMULATED_FAIL("the block has ended with products that nobody waits for");
}

/* ---- wgmma ---- */

/* The element of a tile as the matrix descriptor says: `along` counts along k in memory rows of 128 bytes or, if `major`,
   along the rows of a or the columns of b. */
static const char *tile_element(unsigned long long descriptor, bool major, int other, int k, int size) {
    const long long start = (long long)(descriptor & 0x3FFF) << 4, leading = (long long)(descriptor >> 16 & 0x3FFF) << 4;
    const long long stride = (long long)(descriptor >> 32 & 0x3FFF) << 4;
    const int line = 128 / size;
    long long place = start + (major ? other / line * leading + k / 8 * stride + k % 8 * 128 + other % line * size
                                     : other / 8 * stride + other % 8 * 128 + k * size);
    place ^= (place >> 7 & 7) << 4;
    if (place + size > (long long)at.dynamic_bytes) SIMULATED_FAIL("wgmma reads byte %lld of %lld of shared memory", place, (long long)at.dynamic_bytes);
    return at.dynamic + place;
}

static float operand(const char *from, Kind kind) {
    unsigned short half;
    float x;
    if (kind == TF32) {
        memcpy(&x, from, 4);
        return bits_float(float_bits(x) & 0xFFFFE000u);
    }
    memcpy(&half, from, 2);
    return kind == BF16 ? bfloat_to_float(half) : half_to_float(half);
}

static __attribute__((noinline)) void multiply(const Product &p, int warp) {
    const int size = p.kind == TF32 ? 4 : 2, depth = 32 / size, n = p.columns;
    for (int t = 0; p.r[0] && t < WARP; ++t)
        for (int i = 0; i < 8; ++i)
            bulk.left[(t / 4 + 8 * (i / 2 % 2)) * 16 + 2 * (t % 4) + i % 2 + 8 * (i / 4)] = operand((const char *)(p.r[t] + i / 2) + i % 2 * 2, p.kind);
    for (int i = 0; !p.r[0] && i < 16; ++i)
        for (int k = 0; k < depth; ++k) bulk.left[i * 16 + k] = operand(tile_element(p.a, p.a_major, warp % 4 * 16 + i, k, size), p.kind);
    for (int k = 0; k < depth; ++k)
        for (int j = 0; j < n; ++j) bulk.right[k * 256 + j] = operand(tile_element(p.b, p.b_major, j, k, size), p.kind);
    float row[256];
    for (int i = 0; i < 16; ++i) {
        const int t = i % 8 * 4, h = i / 8;
        for (int j = 0; j < n; ++j) row[j] = p.d[t + j % 8 / 2][j / 8 * 4 + 2 * h + j % 2];
        for (int k = 0; k < depth; ++k) {
            const float x = bulk.left[i * 16 + k], *b = bulk.right + k * 256;
            for (int j = 0; j < n; ++j) row[j] = fmaf(x, b[j], row[j]);
        }
        for (int j = 0; j < n; ++j) p.d[t + j % 8 / 2][j / 8 * 4 + 2 * h + j % 2] = row[j];
    }
}

static void wgmma(float *d, const void *a, const void *b, Kind kind, int columns, bool a_major, bool b_major, int line, const char *what, bool registers = false) {
    offer(d, (const unsigned *)a, (const unsigned *)b);
    warp_sync(line, what, [=](Warp &w) {
        Products &mine = bulk.warp[at.current / WARP];
        for (int t = 1; t < WARP; ++t)
            if ((w.a[t] != w.a[0] && !registers) || w.b[t] != w.b[0]) SIMULATED_FAIL("%s in line %d with tiles that differ between threads", what, line);
        if (!mine.fenced) SIMULATED_FAIL("%s in line %d without wgmma_fence", what, line);
        if (mine.count + 4 > MOST_PRODUCTS) SIMULATED_FAIL("%s in line %d with %d products under way", what, line, mine.count);
        unsigned long long descriptor[2];
        for (int side = registers; side < 2; ++side) {
            const char *tile = (const char *)(side ? w.b[0] : w.a[0]);
            const bool major = side ? b_major : a_major;
            if (tile < at.dynamic || tile >= at.dynamic + at.dynamic_bytes) SIMULATED_FAIL("%s in line %d of what is not dynamic shared memory", what, line);
            if ((size_t)tile % 1024) SIMULATED_FAIL("%s in line %d of a tile that is not at a multiple of 1024", what, line);
            const unsigned long long leading = major ? 64 * 128 >> 4 : 1, stride = 1024 >> 4;
            descriptor[side] = (unsigned long long)(tile - at.dynamic) >> 4 | leading << 16 | stride << 32 | 1ull << 62;
        }
        for (int step = 0; step < 4; ++step) {
            Product &p = mine.queue[mine.count++];
            p.kind = kind, p.columns = columns, p.group = mine.groups, p.a_major = a_major, p.b_major = b_major;
            p.a = registers ? 0 : descriptor[0] + (unsigned long long)(step * (a_major ? 128 : 2));
            p.b = descriptor[1] + (unsigned long long)(step * (b_major ? 128 : 2));
            for (int t = 0; t < WARP; ++t) {
                p.d[t] = (float *)w.d[t];
                p.r[t] = registers ? (const unsigned *)w.a[t] + 4 * step : nullptr;
            }
        }
    });
}

static void wgmma_wait(int pending, int line, const char *what) {
    warp_sync(line, what, [pending](Warp &) {
        Products &mine = bulk.warp[at.current / WARP];
        int done = 0;
        while (done < mine.count && mine.queue[done].group < mine.groups - pending) multiply(mine.queue[done++], at.current / WARP);
        mine.count -= done;
        memmove((void *)mine.queue, (void *)(mine.queue + done), sizeof(Product) * (size_t)mine.count);
        mine.fenced &= mine.count > 0;
    });
}

[[maybe_unused]] static const bool hooked = (at_block_begin = block_begins, at_block_end = block_ends, true);

} // namespace simulated

static inline void mbarrier_init(unsigned long long *barrier, int arrivals, SIMULATED_LINE) {
    *simulated::phase_of(barrier, line, "mbarrier_init") = {0, (unsigned)arrivals, (unsigned)arrivals, 0};
}
static inline void mbarrier_init_done() {}
static inline void mbarrier_arrive(unsigned long long *barrier, SIMULATED_LINE) { simulated::arrive(barrier, 0, line, "mbarrier_arrive"); }
static inline void mbarrier_arrive_expect(unsigned long long *barrier, int bytes, SIMULATED_LINE) { simulated::arrive(barrier, bytes, line, "mbarrier_arrive_expect"); }
static inline void mbarrier_arrive_cluster(unsigned long long *barrier, int blocks, SIMULATED_LINE) {
    for (int i = 0; i < blocks; ++i) simulated::arrive(barrier, 0, line, "mbarrier_arrive_cluster");
}
static inline void cluster_barrier(SIMULATED_LINE) {
    simulated::barrier_sync(simulated::BARRIERS - 1, simulated::at.threads, true, line, "cluster_barrier");
}
static inline void mbarrier_wait(unsigned long long *barrier, int parity, SIMULATED_LINE) { simulated::barrier_wait(barrier, parity & 1, line); }

static inline void bulk_prefetch_map(const TensorMap *) {}
static inline void bulk_load_2d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1}, line, "bulk_load_2d");
}
static inline void bulk_load_3d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2}, line, "bulk_load_3d");
}
static inline void bulk_load_4d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2, c3}, line, "bulk_load_4d");
}
static inline void bulk_load_5d(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3, int c4, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2, c3, c4}, line, "bulk_load_5d");
}
/* Whatever its rank, a block gets all parts. */
static inline void bulk_load_2d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int, int, int, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1}, line, "bulk_load_2d_part");
}
static inline void bulk_load_3d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int, int, int, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2}, line, "bulk_load_3d_part");
}
static inline void bulk_load_4d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3, int, int, int, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2, c3}, line, "bulk_load_4d_part");
}
static inline void bulk_load_5d_part(void *to, const TensorMap *map, unsigned long long *barrier, int c0, int c1, int c2, int c3, int c4, int, int, int, SIMULATED_LINE) {
    simulated::bulk_copy(to, map, barrier, {c0, c1, c2, c3, c4}, line, "bulk_load_5d_part");
}
static inline void bulk_store_2d(const TensorMap *map, const void *from, int c0, int c1, SIMULATED_LINE) {
    simulated::bulk_copy(const_cast<void *>(from), map, nullptr, {c0, c1}, line, "bulk_store_2d");
}
static inline void bulk_store_3d(const TensorMap *map, const void *from, int c0, int c1, int c2, SIMULATED_LINE) {
    simulated::bulk_copy(const_cast<void *>(from), map, nullptr, {c0, c1, c2}, line, "bulk_store_3d");
}
static inline void bulk_store_commit() {}
static inline void bulk_store_wait_read() { simulated::finish_stores(); }
static inline void bulk_store_wait() { simulated::finish_stores(); }
static inline void async_proxy_fence() {}

static inline void named_barrier(int id, int threads, SIMULATED_LINE) {
    if (id < 1 || id >= simulated::BARRIERS || threads % simulated::WARP) SIMULATED_FAIL("named_barrier %d of %d threads in line %d", id, threads, line);
    simulated::barrier_sync(id, threads, true, line, "named_barrier");
}
static inline void registers_decrease_24() {}
static inline void registers_decrease_40() {}
static inline void registers_increase_232() {}
static inline void registers_increase_240() {}

static inline void wgmma_fence() { simulated::bulk.warp[simulated::at.current / simulated::WARP].fenced = true; }
static inline void wgmma_commit(SIMULATED_LINE) {
    simulated::warp_sync(line, "wgmma_commit", [](simulated::Warp &) { ++simulated::bulk.warp[simulated::at.current / simulated::WARP].groups; });
}
static inline void wgmma_wait_0(SIMULATED_LINE) { simulated::wgmma_wait(0, line, "wgmma_wait_0"); }
static inline void wgmma_wait_1(SIMULATED_LINE) { simulated::wgmma_wait(1, line, "wgmma_wait_1"); }

static inline void wgmma_hold_32(float *) {}
static inline void wgmma_hold_64(float *) {}
static inline void wgmma_hold_128(float *) {}

#define SIMULATED_WGMMA_R(type, kind, n) \
    static inline void wgmma_##type##_n##n##_rm(float *d, const unsigned *r, const void *b, SIMULATED_LINE) { \
        simulated::wgmma(d, r, b, simulated::kind, n, false, true, line, "wgmma_" #type "_n" #n "_rm", true); \
    }
SIMULATED_WGMMA_R(bf16, BF16, 64)
SIMULATED_WGMMA_R(bf16, BF16, 128)
SIMULATED_WGMMA_R(bf16, BF16, 256)
SIMULATED_WGMMA_R(f16, F16, 64)
SIMULATED_WGMMA_R(f16, F16, 128)
SIMULATED_WGMMA_R(f16, F16, 256)

#define SIMULATED_WGMMA(type, kind, n, name, a_major, b_major) \
    static inline void wgmma_##type##_n##n##_##name(float *d, const void *a, const void *b, SIMULATED_LINE) { \
        simulated::wgmma(d, a, b, simulated::kind, n, a_major, b_major, line, "wgmma_" #type "_n" #n "_" #name); \
    }
#define SIMULATED_WGMMA_16(type, kind, n) \
    SIMULATED_WGMMA(type, kind, n, kk, false, false) \
    SIMULATED_WGMMA(type, kind, n, km, false, true) \
    SIMULATED_WGMMA(type, kind, n, mk, true, false) \
    SIMULATED_WGMMA(type, kind, n, mm, true, true)
SIMULATED_WGMMA_16(bf16, BF16, 64)
SIMULATED_WGMMA_16(bf16, BF16, 128)
SIMULATED_WGMMA_16(bf16, BF16, 256)
SIMULATED_WGMMA_16(f16, F16, 64)
SIMULATED_WGMMA_16(f16, F16, 128)
SIMULATED_WGMMA_16(f16, F16, 256)
SIMULATED_WGMMA(tf32, TF32, 64, kk, false, false)
SIMULATED_WGMMA(tf32, TF32, 128, kk, false, false)
SIMULATED_WGMMA(tf32, TF32, 256, kk, false, false)
