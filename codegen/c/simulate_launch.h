/* Part of simulate.h: launches, and what ends them early. */
#pragma once

namespace simulated {

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
        describe("a check of the compiler failed (an index outside of its array, a misaligned or null address, or an overflow of a signed integer)");
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
static void (*at_block_begin)() = nullptr, (*at_block_end)() = nullptr;

static void run_block(long long number) {
    blockIdx.x = (unsigned)number;
    if (at_block_begin) at_block_begin();
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
    if (at_block_end) at_block_end();
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

template <int... I> struct Numbers {};
#if defined(__clang__)
template <class T, T... I> using NumbersOf = Numbers<I...>;
template <int N> using CountTo = __make_integer_seq<NumbersOf, int, N>;
#else
template <int N> using CountTo = Numbers<__integer_pack(N)...>;
#endif

template <class T> constexpr bool points = false;
template <class T> constexpr bool points<T *> = true;

/* Calls a kernel with the values that `args` points to, as cuLaunchKernel does. */
template <auto K> struct Entry;
template <class... P, void (*K)(P...)> struct Entry<K> {
    static constexpr int count = sizeof...(P);
    static constexpr bool is_pointer[] = {points<P>..., false};
    static constexpr int sizes[] = {(int)sizeof(P)..., 0};
    template <int... I> static void spread(const void *const *args, Numbers<I...>) { K(*(P *)const_cast<void *>(args[I])...); }
    static void body(const void *const *args) { spread(args, CountTo<sizeof...(P)>()); }
};

} // namespace simulated
