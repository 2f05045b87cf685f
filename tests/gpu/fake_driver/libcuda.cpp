/* A driver library without a GPU: the functions of libcuda.so.1 that pycuda and graphc call, for kernels that are simulation
   libraries (codegen/cuda/simulate.py) instead of cubins. What is not here is made by build(), returns "not supported" and says so.

   Strict where hardware is: work runs only when somebody waits, or bit by bit when somebody asks; memory of the device cannot
   be touched from the host, is not zero and is gone when freed; arguments of launches and what is copied from pageable memory are read
   at the call; a call without a current context fails; a failed kernel fails everything after it.

   Environment: FAKE_CUDA_VERSION, FAKE_CUDA_DEVICES, FAKE_CUDA_MEMORY (bytes), FAKE_CUDA_SEED (order of threads). Types and numbers are
   those of cuda.h of CUDA 13.0. */
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int
using Address = unsigned long long;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801
};
static const std::map<int, std::pair<const char *, const char *>> errors = {
    {SUCCESS, {"CUDA_SUCCESS", "no error"}},
    {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {NO_BINARY, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {INVALID_HANDLE, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {NOT_READY, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {LAUNCH_FAILED, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {NOT_SUPPORTED, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
};

static long long setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

struct Stream;
struct Mark {
    Stream *stream;
    bool done = false;
    std::chrono::steady_clock::time_point time;
};
using Task = std::function<void()>;

struct Device {
    int number;
    char *memory = nullptr; /* all that the device has; closed while nothing runs */
    size_t total, used = 0;
    std::map<Address, size_t> held;
    std::vector<Stream *> streams;
    Stream *null_stream;
    int open = 0, failed = SUCCESS, retained = 0;
};
struct Stream {
    Device *device;
    std::deque<Task> tasks;
};
struct Event {
    std::shared_ptr<Mark> mark;
    bool timed;
};
struct Function {
    Device *device;
    std::string name;
    int (*launch)(const void *const *, long long, int, long long, unsigned);
    const char *(*message)();
    const int *sizes;
    int dynamic = 48 << 10;
};
struct Module {
    Device *device;
    void *library;
    std::map<std::string, std::unique_ptr<Function>> functions;
};
struct NodeParameters {
    Function *function;
    unsigned grid[3], block[3], shared;
    void **parameters, **extra;
    void *kernel, *context;
};
struct Launch {
    Function *function;
    unsigned blocks, threads, shared;
    std::vector<std::vector<char>> values;
};
struct Graph {
    std::vector<std::shared_ptr<Launch>> nodes;
};

static std::recursive_mutex lock;
static std::vector<std::unique_ptr<Device>> devices;
static bool initialized = false;
static std::map<char *, size_t> pinned;
static thread_local std::vector<Device *> contexts; /* the stack of the thread; null: none */

#define LOCKED std::lock_guard<std::recursive_mutex> hold(lock)
/* The device that is current, or an error. */
#define CURRENT \
    LOCKED; \
    if (!initialized) return NOT_INITIALIZED; \
    Device *device = contexts.empty() ? nullptr : contexts.back(); \
    if (!device || !device->retained) return INVALID_CONTEXT; \
    if (device->failed) return device->failed

/* The memory of the device is open to the process as long as one of these lives. */
struct Open {
    Device *device;
    explicit Open(Device *d) : device(d) {
        if (!device->open++) mprotect(device->memory, device->total, PROT_READ | PROT_WRITE);
    }
    ~Open() {
        if (!--device->open) mprotect(device->memory, device->total, PROT_NONE);
    }
};

static void drain(Stream *s, const Mark *until = nullptr) {
    Open open(s->device);
    while (!s->tasks.empty() && !(until && until->done)) {
        Task task = std::move(s->tasks.front());
        s->tasks.pop_front();
        task();
    }
}

static void drain_all(Device *d) {
    for (Stream *s : d->streams) drain(s);
}

/* Work for a stream; the null stream waits for all others, and they for it. */
static int add(Device *device, Stream *stream, Task task) {
    if (!stream || stream == device->null_stream) {
        drain_all(device);
        Open open(device);
        task();
        return device->failed;
    }
    stream->tasks.push_back(std::move(task));
    return SUCCESS;
}

static bool inside(Device *device, Address at, size_t bytes) {
    auto found = device->held.upper_bound(at);
    if (found == device->held.begin()) return bytes == 0;
    --found;
    return at + bytes <= found->first + found->second;
}

static bool is_pinned(const void *p, size_t bytes) {
    auto found = pinned.upper_bound((char *)p);
    if (found == pinned.begin()) return false;
    --found;
    return (const char *)p + bytes <= found->first + found->second;
}

static bool reachable(Device *device, Address at, size_t bytes) { return inside(device, at, bytes) || is_pinned((void *)at, bytes); }

/* ---- the library and its devices ---- */

API cuInit(unsigned) {
    LOCKED;
    int count = (int)setting("FAKE_CUDA_DEVICES", 1);
    if (!count) return NO_DEVICE;
    for (int i = (int)devices.size(); i < count; ++i) {
        devices.push_back(std::make_unique<Device>());
        Device *d = devices.back().get();
        d->number = i;
        d->total = (size_t)setting("FAKE_CUDA_MEMORY", 256 << 20);
        d->memory = (char *)mmap(nullptr, d->total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        d->null_stream = new Stream{d, {}};
        d->streams.push_back(d->null_stream);
    }
    initialized = true;
    return SUCCESS;
}
/* NVRTC asks for this. */
API cuGetExportTable(const void **table, const void *) { return *table = nullptr, NOT_FOUND; }
API cuDriverGetVersion(int *version) { return *version = (int)setting("FAKE_CUDA_VERSION", 13000), SUCCESS; }
API cuGetErrorName(int status, const char **text) {
    auto found = errors.find(status);
    *text = found == errors.end() ? nullptr : found->second.first;
    return found == errors.end() ? INVALID_VALUE : SUCCESS;
}
API cuGetErrorString(int status, const char **text) {
    auto found = errors.find(status);
    *text = found == errors.end() ? nullptr : found->second.second;
    return found == errors.end() ? INVALID_VALUE : SUCCESS;
}
API cuDeviceGetCount(int *count) { return *count = (int)devices.size(), SUCCESS; }
API cuDeviceGet(int *device, int number) {
    if (!initialized) return NOT_INITIALIZED;
    if (number < 0 || number >= (int)devices.size()) return INVALID_DEVICE;
    return *device = number, SUCCESS;
}
API cuDeviceGetName(char *name, int length, int number) { return snprintf(name, (size_t)length, "fake GPU %d", number), SUCCESS; }
API cuDeviceTotalMem_v2(size_t *bytes, int number) { return *bytes = devices[number]->total, SUCCESS; }
API cuDeviceComputeCapability(int *major, int *minor, int) { return *major = 9, *minor = 0, SUCCESS; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> known = {{1, 1024}, {8, 48 << 10}, {10, 32}, {16, 132}, {38, 50 << 20}, {39, 2048}, {41, 1}, {75, 9}, {76, 0}, {97, 227 << 10}};
    auto found = known.find(attribute);
    return *value = found == known.end() ? 0 : found->second, SUCCESS;
}

/* ---- contexts: the primary one of each device ---- */

API cuDevicePrimaryCtxRetain(Device **context, int number) {
    LOCKED;
    if (number < 0 || number >= (int)devices.size()) return INVALID_DEVICE;
    ++devices[number]->retained;
    return *context = devices[number].get(), SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int number) {
    LOCKED;
    return devices[number]->retained-- > 0 ? SUCCESS : INVALID_CONTEXT;
}
API cuCtxPushCurrent_v2(Device *context) { return contexts.push_back(context), SUCCESS; }
API cuCtxPopCurrent_v2(Device **context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    if (context) *context = contexts.back();
    return contexts.pop_back(), SUCCESS;
}
API cuCtxSetCurrent(Device *context) {
    if (!contexts.empty()) contexts.pop_back();
    if (context) contexts.push_back(context);
    return SUCCESS;
}
API cuCtxGetCurrent(Device **context) { return *context = contexts.empty() ? nullptr : contexts.back(), SUCCESS; }
API cuCtxGetDevice(int *number) {
    CURRENT;
    return *number = device->number, SUCCESS;
}
API cuCtxGetApiVersion(Device *, unsigned *version) { return *version = 13000, SUCCESS; }
API cuCtxSynchronize() {
    CURRENT;
    drain_all(device);
    return device->failed;
}

/* ---- memory ---- */

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    CURRENT;
    return *free = device->total - device->used, *total = device->total, SUCCESS;
}
API cuMemAlloc_v2(Address *at, size_t bytes) {
    CURRENT;
    if (!bytes) return INVALID_VALUE;
    size_t room = (bytes + 511) / 512 * 512, place = 0;
    for (auto &[start, size] : device->held) { /* the first gap that is large enough */
        size_t offset = start - (Address)device->memory;
        if (offset - place >= room) break;
        place = offset + size;
    }
    if (place + room > device->total) return OUT_OF_MEMORY;
    *at = (Address)device->memory + place;
    device->held[*at] = room;
    device->used += room;
    Open open(device);
    memset(device->memory + place, 0xA5, room);
    return SUCCESS;
}
API cuMemFree_v2(Address at) {
    CURRENT;
    auto found = device->held.find(at);
    if (found == device->held.end()) return INVALID_VALUE;
    drain_all(device);
    Open open(device);
    memset((void *)at, 0xDD, found->second);
    device->used -= found->second;
    device->held.erase(found);
    return device->failed;
}
API cuMemHostAlloc(void **p, size_t bytes, unsigned) {
    CURRENT;
    if (posix_memalign(p, 4096, bytes ? bytes : 1)) return OUT_OF_MEMORY;
    memset(*p, 0xA5, bytes);
    pinned[(char *)*p] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void *p) {
    CURRENT;
    if (!pinned.erase((char *)p)) return INVALID_VALUE;
    drain_all(device);
    free(p);
    return SUCCESS;
}
API cuMemHostGetDevicePointer_v2(Address *at, void *p, unsigned) { return *at = (Address)p, SUCCESS; }

API cuPointerGetAttribute(unsigned *value, int attribute, Address at) {
    CURRENT;
    if (attribute != 2) return NOT_SUPPORTED;
    if (!inside(device, at, 1) && !is_pinned((void *)at, 1)) return INVALID_VALUE; /* memory that CUDA has not heard of */
    *value = is_pinned((void *)at, 1) ? 1 : 2;
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    CURRENT;
    if (!reachable(device, to, bytes)) return INVALID_VALUE;
    if (is_pinned(from, bytes)) return add(device, stream, [=] { memcpy((void *)to, from, bytes); });
    std::vector<char> data((const char *)from, (const char *)from + bytes);
    return add(device, stream, [to, data] { memcpy((void *)to, data.data(), data.size()); });
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    CURRENT;
    if (!reachable(device, from, bytes)) return INVALID_VALUE;
    int status = add(device, stream, [=] { memcpy(to, (void *)from, bytes); });
    if (stream && !is_pinned(to, bytes)) drain(stream); /* pageable memory is written before the call returns */
    return status ? status : device->failed;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    CURRENT;
    if (!reachable(device, to, bytes) || !reachable(device, from, bytes)) return INVALID_VALUE;
    return add(device, stream, [=] { memmove((void *)to, (void *)from, bytes); });
}
API cuMemcpyPeerAsync(Address to, Device *there, Address from, Device *here, size_t bytes, Stream *stream) {
    CURRENT;
    if (!reachable(there, to, bytes) || !reachable(here, from, bytes)) return INVALID_VALUE;
    return add(device, stream, [=] {
        Open first(there), second(here);
        memcpy((void *)to, (void *)from, bytes);
    });
}
template <class T> static int fill(Address to, T value, size_t count, Stream *stream) {
    CURRENT;
    if (!reachable(device, to, count * sizeof(T)) || to % sizeof(T)) return INVALID_VALUE;
    return add(device, stream, [=] {
        for (size_t i = 0; i < count; ++i) ((T *)to)[i] = value;
    });
}
API cuMemsetD8Async(Address to, unsigned char value, size_t count, Stream *stream) { return fill(to, value, count, stream); }
API cuMemsetD16Async(Address to, unsigned short value, size_t count, Stream *stream) { return fill(to, value, count, stream); }
API cuMemsetD32Async(Address to, unsigned value, size_t count, Stream *stream) { return fill(to, value, count, stream); }

/* ---- streams and events ---- */

API cuStreamCreate(Stream **stream, unsigned) {
    CURRENT;
    *stream = new Stream{device, {}};
    device->streams.push_back(*stream);
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream *stream) {
    LOCKED;
    drain(stream);
    std::erase(stream->device->streams, stream);
    delete stream;
    return SUCCESS;
}
API cuStreamSynchronize(Stream *stream) {
    CURRENT;
    if (stream) drain(stream);
    else drain_all(device);
    return device->failed;
}
/* Who asks again and again gets there. */
static void step(Stream *s) {
    if (s->tasks.empty()) return;
    Open open(s->device);
    Task task = std::move(s->tasks.front());
    s->tasks.pop_front();
    task();
}
API cuStreamQuery(Stream *stream) {
    CURRENT;
    Stream *s = stream ? stream : device->null_stream;
    bool done = s->tasks.empty();
    step(s);
    return done ? device->failed : NOT_READY;
}
API cuEventCreate(Event **event, unsigned flags) {
    CURRENT;
    return *event = new Event{nullptr, !(flags & 2)}, SUCCESS;
}
API cuEventDestroy_v2(Event *event) { return delete event, SUCCESS; }
API cuEventRecord(Event *event, Stream *stream) {
    CURRENT;
    auto mark = std::make_shared<Mark>();
    mark->stream = stream ? stream : device->null_stream;
    event->mark = mark;
    return add(device, stream, [mark] {
        mark->done = true;
        mark->time = std::chrono::steady_clock::now();
    });
}
API cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    CURRENT;
    auto mark = event->mark;
    if (!mark || mark->done) return SUCCESS;
    return add(device, stream, [mark] {
        if (!mark->done) drain(mark->stream, mark.get());
    });
}
API cuEventQuery(Event *event) {
    CURRENT;
    if (!event->mark || event->mark->done) return device->failed;
    step(event->mark->stream);
    return NOT_READY;
}
API cuEventSynchronize(Event *event) {
    CURRENT;
    if (event->mark && !event->mark->done) drain(event->mark->stream, event->mark.get());
    return device->failed;
}
API cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    LOCKED;
    if (!from->timed || !to->timed || !from->mark || !to->mark) return INVALID_HANDLE;
    if (!from->mark->done || !to->mark->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->mark->time - from->mark->time).count();
    return SUCCESS;
}
API cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) { return cuEventElapsedTime(milliseconds, from, to); }

/* ---- kernels ---- */

API cuModuleLoadData(Module **module, const void *image) {
    CURRENT;
    const char *bytes = (const char *)image;
    if (memcmp(bytes, "\177ELF", 4)) return INVALID_IMAGE;
    unsigned short machine, entry, count;
    unsigned long long table;
    memcpy(&machine, bytes + 18, 2), memcpy(&table, bytes + 40, 8), memcpy(&entry, bytes + 58, 2), memcpy(&count, bytes + 60, 2);
    if (machine == 190) return NO_BINARY; /* a true cubin: there is nothing here that could run it */
    char path[] = "/tmp/fake-cuda-XXXXXX";
    int file = mkstemp(path);
    size_t size = table + (size_t)entry * count;
    bool written = write(file, image, size) == (ssize_t)size;
    close(file);
    void *library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path);
    if (!library) return fprintf(stderr, "fake driver: %s\n", dlerror()), INVALID_IMAGE;
    *module = new Module{device, library, {}};
    return SUCCESS;
}
API cuModuleUnload(Module *module) { return delete module, SUCCESS; }
API cuModuleGetFunction(Function **function, Module *module, const char *name) {
    CURRENT;
    if (module->device != device) return INVALID_HANDLE;
    auto &known = module->functions[name];
    if (!known) {
        std::string text(name);
        void *launch = dlsym(module->library, ("simulate_" + text).c_str());
        if (!launch) return module->functions.erase(text), NOT_FOUND;
        auto sizes = (const int *(*)())dlsym(module->library, ("simulate_sizes_" + text).c_str());
        known.reset(new Function{device, text, (decltype(Function::launch))launch,
                                 (decltype(Function::message))dlsym(module->library, "simulate_message"), sizes()});
    }
    return *function = known.get(), SUCCESS;
}
API cuFuncSetAttribute(Function *function, int attribute, int value) {
    CURRENT;
    if (attribute != 8) return NOT_SUPPORTED;
    if (value > 227 << 10) return INVALID_VALUE;
    return function->dynamic = value, SUCCESS;
}

static int make_launch(Device *device, Launch &l, Function *f, unsigned blocks, unsigned threads, unsigned shared, void **parameters) {
    if (f->device != device) return INVALID_HANDLE;
    if (!blocks || !threads || threads > 1024 || (int)shared > f->dynamic) return INVALID_VALUE;
    l = {f, blocks, threads, shared, {}};
    for (const int *size = f->sizes; *size; ++size) {
        const char *value = (const char *)parameters[size - f->sizes];
        l.values.emplace_back(value, value + *size);
    }
    return SUCCESS;
}
static void run(const Launch &l) {
    if (l.function->device->failed) return;
    std::vector<const void *> values;
    std::vector<std::unique_ptr<char, void (*)(void *)>> aligned; /* tensor maps lie at multiples of 64 */
    for (auto &v : l.values) {
        aligned.emplace_back((char *)aligned_alloc(64, (v.size() + 63) / 64 * 64), free);
        memcpy(aligned.back().get(), v.data(), v.size());
        values.push_back(aligned.back().get());
    }
    values.push_back(nullptr);
    if (!l.function->launch(values.data(), l.blocks, (int)l.threads, l.shared, (unsigned)setting("FAKE_CUDA_SEED", 0))) return;
    fprintf(stderr, "fake driver: %s\n", l.function->message());
    l.function->device->failed = LAUNCH_FAILED;
}
API cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream *stream, void **parameters, void **) {
    CURRENT;
    if (gy != 1 || gz != 1 || by != 1 || bz != 1) return NOT_SUPPORTED;
    Launch l;
    int status = make_launch(device, l, f, gx, bx, shared, parameters);
    return status ? status : add(device, stream, [l] { run(l); });
}

/* ---- graphs: chains ---- */

API cuGraphCreate(Graph **graph, unsigned) { return *graph = new Graph, SUCCESS; }
API cuGraphAddKernelNode_v2(Launch **node, Graph *graph, Launch *const *before, size_t count, const NodeParameters *p) {
    CURRENT;
    bool chained = graph->nodes.empty() ? count == 0 : count == 1 && *before == graph->nodes.back().get();
    if (!chained) return NOT_SUPPORTED;
    auto made = std::make_shared<Launch>();
    int status = make_launch(device, *made, p->function, p->grid[0], p->block[0], p->shared, p->parameters);
    if (status) return status;
    graph->nodes.push_back(made);
    return *node = made.get(), SUCCESS;
}
struct Executable {
    std::vector<Launch> launches;
    std::map<Launch *, size_t> of;
};
API cuGraphInstantiateWithFlags(Executable **executable, Graph *graph, unsigned long long) {
    *executable = new Executable;
    for (auto &node : graph->nodes) {
        (*executable)->of[node.get()] = (*executable)->launches.size();
        (*executable)->launches.push_back(*node);
    }
    return SUCCESS;
}
API cuGraphExecKernelNodeSetParams_v2(Executable *executable, Launch *node, const NodeParameters *p) {
    CURRENT;
    auto found = executable->of.find(node);
    if (found == executable->of.end() || executable->launches[found->second].function != p->function) return INVALID_VALUE;
    return make_launch(device, executable->launches[found->second], p->function, p->grid[0], p->block[0], p->shared, p->parameters);
}
API cuGraphLaunch(Executable *executable, Stream *stream) {
    CURRENT;
    auto launches = executable->launches;
    return add(device, stream, [launches] {
        for (auto &l : launches) run(l);
    });
}
API cuGraphExecDestroy(Executable *executable) { return delete executable, SUCCESS; }
API cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }

/* ---- tensor maps: what codegen/c/simulate_hopper.h reads ---- */

struct TensorMap {
    Address start;
    int rank, size, rounded, reserved;
    long long sizes[5], strides[4];
    int box[5], unused[3];
};
static_assert(sizeof(TensorMap) == 128);
API cuTensorMapEncodeTiled(TensorMap *map, int type, unsigned rank, Address start, const unsigned long long *sizes, const unsigned long long *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int, int) {
    static const std::map<int, int> bytes = {{6, 2}, {7, 4}, {9, 2}, {11, 4}};
    auto size = bytes.find(type);
    if ((size_t)map % 64 || size == bytes.end() || rank < 2 || rank > 5 || start % 16 || interleave || swizzle != 3) return INVALID_VALUE;
    if (box[0] * (unsigned)size->second > 128) return INVALID_VALUE;
    *map = {start, (int)rank, size->second, type == 11, 0, {}, {}, {}, {}};
    for (unsigned d = 0; d < rank; ++d) {
        if (!sizes[d] || sizes[d] > 1ull << 32 || !box[d] || box[d] > 256 || steps[d] != 1) return INVALID_VALUE;
        map->sizes[d] = (long long)sizes[d], map->box[d] = (int)box[d];
        if (d + 1 < rank && (strides[d] % 16 || strides[d] >> 40)) return INVALID_VALUE;
        if (d + 1 < rank) map->strides[d] = (long long)strides[d];
    }
    return SUCCESS;
}
