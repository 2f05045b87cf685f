/* Part of simulate.h: the threads of a block as fibers, who runs next, barriers, operations of a warp. */
#pragma once

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
    char **slots; /* memory of stacks that all libraries of a process use, or null */
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
    /* Tops at different lines of the caches. */
    void **top = (void **)(s->memory + STACK - (s - at.pool) % 61 * 320);
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
    if (!s->memory && at.slots) s->memory = at.slots[s - at.pool];
    if (!s->memory) {
        char *memory = (char *)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) SIMULATED_FAIL("no memory for the stack of a thread");
        mprotect(memory, PAGE, PROT_NONE);
        s->memory = memory + PAGE;
        if (at.slots) at.slots[s - at.pool] = s->memory;
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

} // namespace simulated
