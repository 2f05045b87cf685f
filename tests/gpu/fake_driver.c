/* A driver library without a GPU, for tests of what calls one: device memory is memory of the host, work is done at once, and a
   module is a library of simulated kernels (codegen/c/simulate.h). Types as in cuda.h of CUDA 13.0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef CHECKED
#include <cuda.h>
#else
typedef int CUresult, CUdevice;
typedef unsigned long long CUdeviceptr;
typedef void *CUcontext, *CUstream, *CUmodule, *CUgraph, *CUgraphExec, *CUgraphNode, *CUevent, *CUkernel;
typedef struct CUfunc_st *CUfunction;
typedef struct {
    CUfunction func;
    unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams, **extra;
    CUkernel kern;
    CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS;
#endif

typedef int (*Launcher)(const void *const *, long long, int, long long, unsigned);
struct CUfunc_st {
    Launcher run;
    int most_shared;
};
enum { ROOM = 256 << 20, MOST_NODES = 512 };
static size_t used, calls_of_graphs;
static __thread CUcontext current;

#define NEED_CONTEXT if (!current) return 201

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDriverGetVersion(int *v) { return *v = 13000, 0; }
CUresult cuGetErrorName(CUresult e, const char **s) { return *s = e == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_OTHER", 0; }
CUresult cuGetErrorString(CUresult e, const char **s) { return *s = "told by the fake driver", 0; }
CUresult cuDeviceGetCount(int *n) { return *n = 1, 0; }
CUresult cuDeviceGet(CUdevice *d, int i) { return *d = i, 0; }
CUresult cuDeviceGetName(char *s, int n, CUdevice d) { return snprintf(s, (size_t)n, "Fake GPU"), 0; }
CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d) { return *n = ROOM, 0; }
#ifdef CHECKED
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute what, CUdevice d) {
#else
CUresult cuDeviceGetAttribute(int *v, int what, CUdevice d) {
#endif
    static const int known[][2] = {{10, 32}, {16, 132}, {38, 50 << 20}, {75, 9}, {76, 0}, {97, 227 << 10}, {8, 48 << 10}};
    for (unsigned i = 0; i < sizeof known / sizeof *known; ++i)
        if (known[i][0] == (int)what) return *v = known[i][1], 0;
    return 1;
}
static __thread CUcontext stack[16];
static __thread int depth;
CUresult cuCtxPushCurrent_v2(CUcontext c) { return stack[depth++] = current, current = c, 0; }
CUresult cuCtxPopCurrent_v2(CUcontext *c) {
    if (!depth) return 201;
    return *c = current, current = stack[--depth], 0;
}
CUresult cuCtxGetDevice(CUdevice *d) { NEED_CONTEXT; return *d = (int)(size_t)current - 0x100, 0; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) { return 0; }
CUresult cuStreamCreate(CUstream *s, unsigned flags) { NEED_CONTEXT; return (*s = calloc(1, 8)) ? 0 : 2; }
CUresult cuStreamDestroy_v2(CUstream s) { free(s); return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return *c = (CUcontext)(size_t)(0x100 + d), 0; }
CUresult cuCtxSetCurrent(CUcontext c) { return current = c, 0; }
CUresult cuCtxSynchronize(void) { NEED_CONTEXT; return 0; }
CUresult cuMemGetInfo_v2(size_t *free_, size_t *total) { NEED_CONTEXT; return *free_ = ROOM - used, *total = ROOM, 0; }

CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
    NEED_CONTEXT;
    if (used + n > ROOM) return 2;
    size_t *block = aligned_alloc(256, (n + 511) / 256 * 256);
    memset(block, 0xA5, n + 256);
    *block = n, used += n;
    return *p = (CUdeviceptr)(size_t)block + 256, 0;
}
CUresult cuMemFree_v2(CUdeviceptr p) {
    NEED_CONTEXT;
    size_t *block = (size_t *)(size_t)(p - 256);
    used -= *block;
    free(block);
    return 0;
}
CUresult cuMemHostAlloc(void **p, size_t n, unsigned flags) { NEED_CONTEXT; return (*p = calloc(1, n)) ? 0 : 2; }
CUresult cuMemFreeHost(void *p) { free(p); return 0; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream s) { NEED_CONTEXT; memcpy((void *)(size_t)to, from, n); return 0; }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) { NEED_CONTEXT; memcpy(to, (void *)(size_t)from, n); return 0; }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) { NEED_CONTEXT; memcpy((void *)(size_t)to, (void *)(size_t)from, n); return 0; }
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext a, CUdeviceptr from, CUcontext b, size_t n, CUstream s) { return cuMemcpyDtoDAsync_v2(to, from, n, s); }
#define FILL(bits, type) \
    CUresult cuMemsetD##bits##Async(CUdeviceptr to, unsigned type v, size_t n, CUstream s) { \
        NEED_CONTEXT; \
        for (size_t i = 0; i < n; ++i) ((unsigned type *)(size_t)to)[i] = v; \
        return 0; \
    }
FILL(8, char)
FILL(16, short)
FILL(32, int)

CUresult cuStreamQuery(CUstream s) { NEED_CONTEXT; return 0; }
CUresult cuStreamSynchronize(CUstream s) { NEED_CONTEXT; return 0; }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) { NEED_CONTEXT; return 0; }
CUresult cuEventCreate(CUevent *e, unsigned flags) { NEED_CONTEXT; return *e = calloc(1, sizeof(struct timespec)), 0; }
CUresult cuEventRecord(CUevent e, CUstream s) { NEED_CONTEXT; return clock_gettime(CLOCK_MONOTONIC, (struct timespec *)e), 0; }
CUresult cuEventQuery(CUevent e) { return 0; }
CUresult cuEventSynchronize(CUevent e) { return 0; }
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) {
    struct timespec *x = (struct timespec *)a, *y = (struct timespec *)b;
    return *ms = (y->tv_sec - x->tv_sec) * 1e3f + (y->tv_nsec - x->tv_nsec) / 1e6f, 0;
}
CUresult cuEventDestroy_v2(CUevent e) { free(e); return 0; }

/* The image: its length as 8 bytes, then the library. */
CUresult cuModuleLoadData(CUmodule *m, const void *image) {
    NEED_CONTEXT;
    char path[] = "/tmp/graphc-module-XXXXXX";
    int file = mkstemp(path);
    long long size;
    memcpy(&size, image, 8);
    if (file < 0 || write(file, (const char *)image + 8, (size_t)size) != size) return 200;
    close(file);
    *m = (CUmodule)dlopen(path, RTLD_NOW | RTLD_LOCAL);
    unlink(path);
    return *m ? 0 : 200;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    NEED_CONTEXT;
    char symbol[256];
    snprintf(symbol, sizeof symbol, "simulate_%s", name);
    Launcher run = (Launcher)dlsym((void *)m, symbol);
    if (!run) return 500;
    *f = malloc(sizeof **f);
    (*f)->run = run, (*f)->most_shared = 48 << 10;
    return 0;
}
#ifdef CHECKED
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute what, int value) {
#else
CUresult cuFuncSetAttribute(CUfunction f, int what, int value) {
#endif
    if (what != 8) return 1;
    return f->most_shared = value, 0;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                        CUstream s, void **params, void **extra) {
    NEED_CONTEXT;
    if (gy != 1 || gz != 1 || by != 1 || bz != 1 || extra || (int)shared > f->most_shared) return 1;
    return f->run((const void *const *)params, gx, (int)bx, shared, 0) ? 700 : 0;
}

/* A node keeps the parameters as they were, so it copies as many bytes as a kernel may have. */
typedef struct {
    CUDA_KERNEL_NODE_PARAMS p;
    void *values[128];
    int count;
} Node;
typedef struct {
    Node *nodes[MOST_NODES];
    int count;
} Graph;

static void keep(Node *n, const CUDA_KERNEL_NODE_PARAMS *p) {
    n->p = *p;
    /* graphc's values lie in one block, and a null pointer follows those to them. How long the last value is nobody says. */
    int count = 0;
    while (p->kernelParams[count]) ++count;
    char *first = p->kernelParams[0], *last = p->kernelParams[count - 1];
    size_t size = ((size_t)(last - first) + 4096 + 63) / 64 * 64;
    char *values = aligned_alloc(64, size);
    struct iovec to = {values, size}, from = {first, size};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) < last - first + 4) abort();
    for (int i = 0; i < count; ++i) n->values[i] = values + ((char *)p->kernelParams[i] - first);
    n->p.kernelParams = n->values;
}
CUresult cuGraphCreate(CUgraph *g, unsigned flags) { return *g = calloc(1, sizeof(Graph)), 0; }
CUresult cuGraphAddKernelNode_v2(CUgraphNode *n, CUgraph g, const CUgraphNode *before, size_t count, const CUDA_KERNEL_NODE_PARAMS *p) {
    Graph *graph = (Graph *)g;
    if (graph->count == MOST_NODES || count != (graph->count ? 1 : 0)) return 1;
    if (count && (Node *)before[0] != graph->nodes[graph->count - 1]) return 1;
    Node *made = calloc(1, sizeof *made);
    keep(made, p);
    *n = (CUgraphNode)(graph->nodes[graph->count++] = made);
    return 0;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *e, CUgraph g, unsigned long long flags) { return *e = (CUgraphExec)g, 0; }
CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec e, CUgraphNode n, const CUDA_KERNEL_NODE_PARAMS *p) { NEED_CONTEXT; keep((Node *)n, p); return 0; }
CUresult cuGraphLaunch(CUgraphExec e, CUstream s) {
    Graph *graph = (Graph *)e;
    ++calls_of_graphs;
    for (int i = 0; i < graph->count; ++i) {
        CUDA_KERNEL_NODE_PARAMS *p = &graph->nodes[i]->p;
        int failed = cuLaunchKernel(p->func, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX, p->blockDimY, p->blockDimZ,
                                    p->sharedMemBytes, s, p->kernelParams, p->extra);
        if (failed) return failed;
    }
    return 0;
}
CUresult cuGraphExecDestroy(CUgraphExec e) { return 0; }
CUresult cuGraphDestroy(CUgraph g) { free(g); return 0; }
size_t fake_graph_launches(void) { return calls_of_graphs; }
