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
   codegen/cuda/simulate.py. */
#pragma once
#define SIMULATED 1
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
#include <utility>

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
#define __align__(n) alignas(n)
#define __grid_constant__
#define __CUDA_ARCH__ 900

namespace simulated {

constexpr int WARP = 32, MOST_THREADS = 1024, BARRIERS = 16;
constexpr size_t STACK = 256 << 10, PAGE = 4096;

enum Wait { NONE, BLOCK, WARP_SYNC, POLL, LEFT };
static const char *const waits[] = {"running", "at a barrier", "at an operation of the warp", "waiting for a condition", "has left the kernel"};

/* One fiber's stack and where it stopped. */
struct Stack {
    char *memory = nullptr;
#if defined(__x86_64__)
    void *pointer = nullptr;
#else
    ucontext_t context;
#endif
};

struct Copy {
    char *to;
    const char *from;
    int size, bytes, group;
};

struct Thread {
    Stack *stack;
    Wait wait;
    int line, barrier;
    const char *what;
    int groups, copies, capacity; /* asynchronous copies: committed groups, pending copies */
    Copy *queue;
};

struct Warp {
    int arrived, line, turn;
    const char *what;
    unsigned long long values[2][WARP];
    void *d[WARP];
    const void *a[WARP], *b[WARP];
};

struct Barrier {
    int arrived, expected, line;
};

static struct {
    const char *kernel;
    void (*body)(const void *const *);
    const void *const *args;
    const void *pointers[64];
    int pointer_count;
    int threads, current, live;
    unsigned seed;
    unsigned long long random;
    Thread thread[MOST_THREADS];
    Warp warp[MOST_THREADS / WARP];
    Barrier barrier[BARRIERS];
    short order[MOST_THREADS];
    short ring[2 * MOST_THREADS]; /* threads that can go on */
    int head, count, polls;
    Stack pool[MOST_THREADS], home, *starting;
    Stack *idle[MOST_THREADS];
    int idles, stacks;
    sigjmp_buf leave;
    char *dynamic, *dynamic_block;
    size_t dynamic_bytes, dynamic_capacity;
    char *shared_start, *shared_stop;
    unsigned long long fault;
    char message[1024];
} at;

static void describe(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    int n = snprintf(at.message, sizeof at.message, "kernel %s, block %u, thread %d: ", at.kernel, blockIdx.x, at.current);
    vsnprintf(at.message + n, sizeof at.message - n, format, rest);
    va_end(rest);
}

/* Ends the launch. */
#define SIMULATED_FAIL(...) (simulated::describe(__VA_ARGS__), siglongjmp(simulated::at.leave, 1))

static unsigned random_below(unsigned n) {
    unsigned long long x = at.random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    at.random = x;
    return (unsigned)((x >> 32) * n >> 32);
}

/* ---- switching stacks ---- */

static void fiber_main();

#if defined(__x86_64__)
extern "C" void simulated_switch(void **save, void *load);
__asm__(
    ".text\n.local simulated_switch\n.type simulated_switch, @function\nsimulated_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size simulated_switch, .-simulated_switch\n");

static void prepare(Stack *s) {
    void **top = (void **)(s->memory + STACK);
    *--top = nullptr; /* where fiber_main would return to, which it never does */
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    s->pointer = top;
}

static void jump(Stack *from, Stack *to) { simulated_switch(&from->pointer, to->pointer); }
#else
static void prepare(Stack *s) {
    getcontext(&s->context);
    s->context.uc_stack.ss_sp = s->memory;
    s->context.uc_stack.ss_size = STACK;
    s->context.uc_link = nullptr;
    makecontext(&s->context, fiber_main, 0);
}

static void jump(Stack *from, Stack *to) { swapcontext(&from->context, &to->context); }
#endif

static Stack *new_stack() {
    Stack *s = at.idles ? at.idle[--at.idles] : &at.pool[at.stacks++];
    if (!s->memory) {
        char *memory = (char *)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) SIMULATED_FAIL("no memory for the stack of a thread");
        mprotect(memory, PAGE, PROT_NONE);
        s->memory = memory + PAGE;
    }
    prepare(s);
    return s;
}

/* ---- who runs next ---- */

static void push_back(int t) { at.ring[(at.head + at.count++) % (2 * MOST_THREADS)] = (short)t; }

static void push_front(int t) {
    at.head = (at.head + 2 * MOST_THREADS - 1) % (2 * MOST_THREADS);
    at.ring[at.head] = (short)t;
    ++at.count;
}

/* Lets threads go on, in the order of the seed; before those that wait for their turn, or after them. */
static void release(const short *threads, int n) {
    bool front = at.seed < 2 || random_below(2);
    for (int i = 0; i < n; ++i) {
        int t = threads[front ? n - 1 - i : i];
        at.thread[t].wait = NONE;
        front ? push_front(t) : push_back(t);
    }
    at.polls = 0;
}

/* No thread can go on: says which waits for which. */
static void stuck() {
    int waiting = -1, other = -1;
    for (int t = at.threads - 1; t >= 0; --t)
        if (at.thread[t].wait != LEFT) waiting = t;
    const Thread &w = at.thread[waiting];
    for (int t = at.threads - 1; t >= 0; --t) {
        const Thread &o = at.thread[t];
        if (w.wait == WARP_SYNC && t / WARP != waiting / WARP) continue;
        if (o.wait != w.wait || o.line != w.line) other = t;
    }
    at.current = waiting;
    if (other < 0) SIMULATED_FAIL("waits for ever in line %d (%s)", w.line, w.what);
    const Thread &o = at.thread[other];
    if (o.wait == LEFT) SIMULATED_FAIL("waits in line %d (%s), but thread %d has left the kernel", w.line, w.what, other);
    SIMULATED_FAIL("waits in line %d (%s), but thread %d waits in line %d (%s)", w.line, w.what, other, o.line, o.what);
}

static int next_thread() {
    if (!at.count) stuck();
    int t = at.ring[at.head];
    at.head = (at.head + 1) % (2 * MOST_THREADS);
    --at.count;
    at.current = t;
    threadIdx.x = (unsigned)t;
    return t;
}

/* The current thread cannot go on: others do, and this returns when it may. */
static __attribute__((noinline)) void pause() {
    Stack *mine = at.thread[at.current].stack;
    int t = next_thread();
    Stack *to = at.thread[t].stack;
    if (!to) at.starting = to = new_stack();
    if (to != mine) jump(mine, to);
}

/* Runs threads to their ends one after another; a thread that waits keeps this stack, and others get theirs. */
static void fiber_main() {
    Stack *const mine = at.starting;
    for (;;) {
        at.thread[at.current].stack = mine;
        at.body(at.args);
        at.thread[at.current].wait = LEFT;
        at.polls = 0;
        if (!--at.live) jump(mine, &at.home);
        Stack *to = at.thread[next_thread()].stack;
        if (!to) continue;
        at.idle[at.idles++] = mine;
        jump(mine, to);
    }
}

static void mark(Wait wait, int line, const char *what) {
    Thread &me = at.thread[at.current];
    me.wait = wait, me.line = line, me.what = what;
}

/* Until `condition()` holds; for memory barriers and other things that another thread of the block brings about. */
template <class F> static void wait_until(F condition, int line, const char *what) {
    if (condition()) return;
    at.polls = 0;
    do {
        if (at.polls++ > at.count) {
            mark(POLL, line, what);
            stuck();
        }
        mark(POLL, line, what);
        push_back(at.current);
        pause();
    } while (!condition());
    at.thread[at.current].wait = NONE;
    at.polls = 0;
}

static void barrier_complete(int id) {
    short others[MOST_THREADS];
    int n = 0;
    for (int i = 0; i < at.threads; ++i) {
        const Thread &o = at.thread[at.order[i]];
        if (o.wait == BLOCK && o.barrier == id) others[n++] = at.order[i];
    }
    at.barrier[id].arrived = 0;
    release(others, n);
}

/* `expected` threads, a multiple of 32, arrive at barrier `id`; where `stay`, until all have. Barrier 0 of the whole block is __syncthreads. */
static void barrier_sync(int id, int expected, bool stay, int line, const char *what) {
    Barrier &b = at.barrier[id];
    if (!b.arrived)
        b.expected = expected, b.line = line;
    else if (b.expected != expected)
        SIMULATED_FAIL("barrier %d of %d threads in line %d (%s), where others wait for %d", id, expected, line, what, b.expected);
    else if (id == 0 && b.line != line)
        SIMULATED_FAIL("at the barrier in line %d, while other threads of the block are at the barrier in line %d", line, b.line);
    if (++b.arrived == expected) return barrier_complete(id);
    if (!stay) return;
    mark(BLOCK, line, what);
    at.thread[at.current].barrier = id;
    pause();
}

/* All 32 threads of the warp arrive; the last one does `together(warp)`. The turn of this operation. */
template <class F> static int warp_sync(int line, const char *what, F together) {
    Warp &w = at.warp[at.current / WARP];
    int turn = w.turn;
    if (!w.arrived)
        w.line = line, w.what = what;
    else if (w.line != line || strcmp(w.what, what))
        SIMULATED_FAIL("in line %d (%s), while other threads of the warp are in line %d (%s)", line, what, w.line, w.what);
    if (++w.arrived < WARP) {
        mark(WARP_SYNC, line, what);
        pause();
        return turn;
    }
    together(w);
    w.arrived = 0;
    w.turn ^= 1;
    short others[WARP];
    int n = 0, first = at.current / WARP * WARP;
    for (int i = 0; i < WARP; ++i) {
        int t = first + (at.seed == 0 ? i : at.seed == 1 ? WARP - 1 - i : (int)((i * 7 + at.seed * 5) % WARP));
        if (t != at.current) others[n++] = (short)t;
    }
    release(others, n);
    return turn;
}

template <class T> static T exchange(T x, int line, const char *what, int from) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    Warp &w = at.warp[at.current / WARP];
    memcpy(&w.values[w.turn][at.current % WARP], &x, sizeof x);
    int turn = warp_sync(line, what, [](Warp &) {});
    memcpy(&x, &w.values[turn][from], sizeof x);
    return x;
}

static int lane() { return at.current % WARP; }

static int source_down(int k, int width) { return (lane() & (width - 1)) + k < width && k >= 0 ? lane() + k : lane(); }
static int source_up(int k, int width) { return (lane() & (width - 1)) - k >= 0 ? lane() - k : lane(); }
static int source_xor(int k, int width) { return (lane() ^ k) / width > lane() / width ? lane() : (lane() ^ k) & (WARP - 1); }
static int source_from(int k, int width) { return (lane() & ~(width - 1)) + (k & (width - 1)); }

static void full(unsigned mask, int line, const char *what) {
    if (mask != 0xFFFFFFFFu) SIMULATED_FAIL("%s in line %d with a mask of not all threads of the warp", what, line);
}

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

/* The rule of the head of this file: d[16][8] += a[16][k] * b[k][8], each product exact, one addition at a time. */
static void multiply(Warp &w, const float (*a)[16], const float (*b)[8], int depth) {
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

template <float (*widen)(unsigned short)> static void mma_16816(float *d, const unsigned *a, const unsigned *b, int line, const char *what) {
    offer(d, a, b);
    warp_sync(line, what, [](Warp &w) {
        float left[16][16], right[16][8];
        for (int t = 0; t < WARP; ++t) {
            int g = t / 4, c = 2 * (t % 4);
            for (int r = 0; r < 4; ++r)
                for (int h = 0; h < 2; ++h) left[g + 8 * (r % 2)][c + h + 8 * (r / 2)] = widen((unsigned short)(((const unsigned *)w.a[t])[r] >> 16 * h));
            for (int r = 0; r < 2; ++r)
                for (int h = 0; h < 2; ++h) right[c + h + 8 * r][g] = widen((unsigned short)(((const unsigned *)w.b[t])[r] >> 16 * h));
        }
        multiply(w, left, right, 16);
    });
}

static void mma_1688(float *d, const unsigned *a, const unsigned *b, int line, const char *what) {
    offer(d, a, b);
    warp_sync(line, what, [](Warp &w) {
        float left[16][16], right[16][8];
        for (int t = 0; t < WARP; ++t) {
            int g = t / 4, c = t % 4;
            for (int r = 0; r < 4; ++r) left[g + 8 * (r % 2)][c + 4 * (r / 2)] = bits_float(((const unsigned *)w.a[t])[r] & 0xFFFFE000u);
            for (int r = 0; r < 2; ++r) right[c + 4 * r][g] = bits_float(((const unsigned *)w.b[t])[r] & 0xFFFFE000u);
        }
        multiply(w, left, right, 8);
    });
}

/* ---- launches ---- */

static void on_signal(int number, siginfo_t *info, void *context) {
    unsigned long long pc = 0;
#if defined(__x86_64__)
    pc = (unsigned long long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    pc = (unsigned long long)((ucontext_t *)context)->uc_mcontext.pc;
#endif
    Dl_info module;
    at.fault = pc && dladdr((void *)&at, &module) ? pc - (unsigned long long)module.dli_fbase : 0;
    const char *where = (const char *)info->si_addr;
    if (number == SIGILL || number == SIGTRAP)
        describe("a check of the compiler failed (an index outside of its array, a misaligned or null address, an overflow of a signed integer, or a shift too far)");
    else if (number == SIGFPE)
        describe("an integer division by zero, or of the least integer by -1");
    else {
        int nearest = -1;
        for (int i = 0; i < at.pointer_count; ++i)
            if (nearest < 0 || llabs(where - (const char *)at.pointers[i]) < llabs(where - (const char *)at.pointers[nearest])) nearest = i;
        if (nearest >= 0 && where)
            describe("an access outside of memory, %lld bytes from the start of pointer argument %d", (long long)(where - (const char *)at.pointers[nearest]), nearest);
        else
            describe("an access outside of memory or a misaligned one, at %p", (const void *)where);
    }
    siglongjmp(at.leave, 1);
}

static const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};

/* Ascending, descending or any order: start + i * step (mod n). */
static void pick_order(long long n, long long *start, long long *step) {
    *start = at.seed == 1 ? n - 1 : 0;
    *step = at.seed == 1 ? n - 1 : 1;
    if (at.seed < 2 || n < 3) return;
    *start = random_below((unsigned)n);
    long long a, b;
    do {
        *step = 1 + random_below((unsigned)n - 1);
        for (a = n, b = *step; b; ) {
            long long rest = a % b;
            a = b, b = rest;
        }
    } while (a != 1);
}

/* What simulate_hopper.h has to do about it. */
static void (*at_block_begin)(), (*at_block_end)();

static void run_block(long long number) {
    blockIdx.x = (unsigned)number;
    at_block_begin();
    if (at.shared_start) memset(at.shared_start, 0xFF, (size_t)(at.shared_stop - at.shared_start));
    if (at.dynamic_bytes) memset(at.dynamic, 0xFF, at.dynamic_bytes);
    at.head = at.count = at.polls = at.idles = at.stacks = 0;
    at.live = at.threads;
    memset(at.barrier, 0, sizeof at.barrier);
    for (int i = 0; i < at.threads / WARP; ++i) at.warp[i].arrived = at.warp[i].turn = 0;
    if (at.seed > 1)
        for (int i = at.threads - 1; i > 0; --i) {
            int j = (int)random_below((unsigned)i + 1);
            short x = at.order[i];
            at.order[i] = at.order[j], at.order[j] = x;
        }
    for (int i = 0; i < at.threads; ++i) {
        Thread &t = at.thread[i];
        t.stack = nullptr;
        t.wait = NONE;
        t.groups = t.copies = 0;
        push_back(at.order[i]);
    }
    next_thread();
    at.starting = new_stack();
    jump(&at.home, at.starting);
    at_block_end();
}

/* Dynamic shared memory ends at a page that must not be touched. */
static void get_dynamic(size_t bytes) {
    size_t room = (bytes + 1023) / 1024 * 1024;
    if (room > at.dynamic_capacity) {
        size_t pages = (room + PAGE - 1) / PAGE * PAGE;
        if (at.dynamic_block) munmap(at.dynamic_block, at.dynamic_capacity + PAGE);
        at.dynamic_block = (char *)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(at.dynamic_block + pages, PAGE, PROT_NONE);
        at.dynamic_capacity = pages;
    }
    at.dynamic = at.dynamic_block + at.dynamic_capacity - room;
    at.dynamic_bytes = bytes;
}

static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
static char signal_stack[64 << 10];

static int run_blocks(long long blocks) {
    if (sigsetjmp(at.leave, 1)) return 1;
    long long start, step;
    pick_order(blocks, &start, &step);
    for (long long i = 0; i < blocks; ++i) {
        run_block(start);
        start = (start + step) % blocks;
    }
    return 0;
}

/* 0, or 1 with a message. */
static int launch(const char *kernel, void (*body)(const void *const *), const void *const *args, const bool *is_pointer, int count,
                  long long blocks, int threads, long long dynamic_shared, unsigned seed, char *shared_start, char *shared_stop) {
    pthread_mutex_lock(&one_launch);
    at.kernel = kernel, at.body = body, at.args = args, at.threads = threads, at.seed = seed;
    at.shared_start = shared_start, at.shared_stop = shared_stop;
    at.random = 0x9E3779B97F4A7C15ull * (seed + 1ull);
    at.current = 0, at.fault = 0, at.message[0] = 0, blockIdx = {0, 0, 0};
    int failed = 1;
    if (threads < 1 || threads > MOST_THREADS || threads % WARP)
        describe("%d threads in a block; a multiple of 32 up to 1024 is possible", threads);
    else if (blocks < 0 || blocks > INT_MAX)
        describe("%lld blocks; 0 to 2147483647 are possible", blocks);
    else if (dynamic_shared < 0 || dynamic_shared + (shared_stop - shared_start) > (227 << 10))
        describe("%lld bytes of shared memory; no device has more than 227 KiB for a block", dynamic_shared + (long long)(shared_stop - shared_start));
    else
        failed = 0;
    if (!failed && blocks) {
        at.pointer_count = 0;
        for (int i = 0; i < count; ++i)
            if (is_pointer[i] && at.pointer_count < 64) at.pointers[at.pointer_count++] = *(const void *const *)args[i];
        blockDim = {(unsigned)threads, 1, 1}, gridDim = {(unsigned)blocks, 1, 1}, threadIdx = {0, 0, 0};
        for (int i = 0; i < threads; ++i) at.order[i] = (short)(seed == 1 ? threads - 1 - i : i);
        get_dynamic((size_t)dynamic_shared);
        struct sigaction handler, before[5];
        memset(&handler, 0, sizeof handler);
        handler.sa_sigaction = on_signal;
        handler.sa_flags = SA_SIGINFO | SA_ONSTACK;
        stack_t mine = {}, old;
        mine.ss_sp = signal_stack, mine.ss_size = sizeof signal_stack;
        sigaltstack(&mine, &old);
        for (int i = 0; i < 5; ++i) sigaction(caught[i], &handler, &before[i]);
        failed = run_blocks(blocks);
        for (int i = 0; i < 5; ++i) sigaction(caught[i], &before[i], nullptr);
        sigaltstack(&old, nullptr);
    }
    pthread_mutex_unlock(&one_launch);
    return failed;
}

template <class T> constexpr bool points = false;
template <class T> constexpr bool points<T *> = true;

/* Calls a kernel with the values that `args` points to, as cuLaunchKernel does. */
template <auto K> struct Entry;
template <class... P, void (*K)(P...)> struct Entry<K> {
    static constexpr int count = sizeof...(P);
    static constexpr bool is_pointer[] = {points<P>..., false};
    template <size_t... I> static void spread(const void *const *args, std::index_sequence<I...>) { K(*(P *)const_cast<void *>(args[I])...); }
    static void body(const void *const *args) { spread(args, std::make_index_sequence<sizeof...(P)>()); }
};

} // namespace simulated

extern "C" __attribute__((visibility("default"))) const char *simulate_message() { return simulated::at.message; }
extern "C" __attribute__((visibility("default"))) unsigned long long simulate_fault() { return simulated::at.fault; }

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
#define SIMULATED_KERNEL(name) \
    extern "C" __attribute__((visibility("default"))) int simulate_##name(const void *const *args, long long blocks, int threads, long long dynamic_shared, unsigned seed) { \
        SIMULATED_SHARED(name) \
        using Entry = simulated::Entry<&name>; \
        return simulated::launch(#name, Entry::body, args, Entry::is_pointer, Entry::count, blocks, threads, dynamic_shared, seed, from, to); \
    }
#define DYNAMIC_SHARED(name) unsigned char *const name = (unsigned char *)simulated::at.dynamic

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

#include "simulate_hopper.h"
