// A stand-in for libcuda, libnvrtc and libcublas that runs kernels on the CPU through shim.h, so that the
// host code around the kernels (launches, buffers, products, the order of steps) is tested without a GPU.
//
// An "image" is a shared library that the C++ compiler makes of the kernel's source. Everything happens at
// once, in the order of the calls, so streams and events mean nothing. Only what optimized/src/cuda calls is
// here. Not modelled: what shim.h does not model, memory limits, speed.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include <dlfcn.h>
#include <unistd.h>

#ifndef AQLM_SHIM_FOLDER
#error "AQLM_SHIM_FOLDER must name the folder of shim.h"
#endif

namespace {

constexpr char MAGIC[8] = {'a', 'q', 'l', 'm', 's', 'h', 'i', 'm'};

std::recursive_mutex one_at_a_time;
using Lock = std::lock_guard<std::recursive_mutex>;

using Entry = void (*)(unsigned, unsigned, unsigned, unsigned, size_t, void**);
struct Function {
    Entry entry;
    std::string name;
    // of each argument, in bytes
    const std::vector<size_t>* sizes;
};

// A launch in a graph, with a copy of its arguments.
struct Recorded {
    Entry entry;
    unsigned grid[2], block, cluster;
    size_t shared;
    std::vector<std::vector<char>> arguments;

    void replay() {
        std::vector<void*> pointers;
        for (auto& argument : arguments) pointers.push_back(argument.data());
        entry(grid[0], grid[1], block, cluster, shared, pointers.data());
    }
};
using Graph = std::vector<Recorded>;

// The graph to which launches go instead of being run; none outside a capture.
Graph* recording = nullptr;

// f16, by way of its bits.
struct Half {
    uint16_t bits;
    operator float() const {
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
        if (exponent == 31) value = mantissa ? NAN : INFINITY;
        return static_cast<float>(bits & 0x8000 ? -value : value);
    }
    // To nearest, ties to even.
    explicit Half(float value) {
        const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
        const double size = std::fabs(value);
        int exponent;
        std::frexp(size, &exponent);
        const int place = exponent - 11 < -24 ? -24 : exponent - 11;
        const double rounded = std::nearbyint(std::ldexp(size, -place));
        bits = std::isnan(size) ? 0x7e00 : size == 0 ? sign : size >= 65520.0 ? sign | 0x7c00
            : static_cast<uint16_t>(sign | static_cast<uint16_t>(place == -24 ? rounded : (place + 24) * 1024 + rounded));
    }
};

struct Program {
    std::string source, name, log, image;
};

std::string temporary(const char* suffix) {
    static int count = 0;
    const char* base = std::getenv("TMPDIR");
    return std::string(base ? base : "/tmp") + "/aqlm-driver-" + std::to_string(getpid()) + "-" + std::to_string(count++) + suffix;
}

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// The entry of kernel OP/kN_name is called OP.
std::string entry_of(const std::string& name) { return name.substr(0, name.find('/')); }

struct Handle {};

// With AQLM_STAND_IN_COMPUTE=90 the device is of compute capability 9.0, with clusters; else of 8.0.
bool has_clusters() {
    const char* compute = std::getenv("AQLM_STAND_IN_COMPUTE");
    return compute && std::string(compute) == "90";
}
int multiprocessors() { return has_clusters() ? 16 : 4; }

// The program by which the host counts clusters. It is never run.
const std::string PROBE = "cluster probe";

// Of live allocations. The stand-in has 8 GiB and refuses nothing.
std::map<uint64_t, size_t> live;
size_t used = 0;

template <class T> T element(const T* matrix, bool transposed, int64_t stride, int64_t row, int64_t column) {
    return transposed ? matrix[column + row * stride] : matrix[row + column * stride];
}

struct Bf16 {
    uint16_t bits;
    operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

// Factors of type T, sums of type S, results of type C.
template <class T, class S, class C>
void multiply(bool ta, bool tb, int m, int n, int k, S alpha, const T* a, int lda, const T* b, int ldb, S beta, C* c, int ldc) {
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < m; ++i) {
            S sum = 0;
            for (int64_t l = 0; l < k; ++l) sum += static_cast<S>(element(a, ta, lda, i, l)) * static_cast<S>(element(b, tb, ldb, l, j));
            C& to = c[i + j * ldc];
            to = static_cast<C>(beta == 0 ? alpha * sum : alpha * sum + beta * static_cast<S>(to));
        }
    }
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int* version) { *version = 13000; return 0; }
API cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
API cuDeviceGetCount(int* count) { *count = 1; return 0; }
API cuDeviceGetName(char* name, int length, int) { std::snprintf(name, static_cast<size_t>(length), "the CPU, in place of a GPU"); return 0; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = multiprocessors(); break;
        case 75: *value = has_clusters() ? 9 : 8; break;  // compute capability
        case 76: *value = 0; break;
        case 97: *value = has_clusters() ? 232448 : 166912; break;  // shared memory of a block
        default: *value = 0;              // no memory pools
    }
    return 0;
}
API cuDevicePrimaryCtxRetain(void** context, int) { static Handle one; *context = &one; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuDevicePrimaryCtxRelease(int) { return 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuCtxGetCurrent(void** context) { return cuDevicePrimaryCtxRetain(context, 0); }
API cuCtxSynchronize() { return 0; }
API cuStreamCreate(void** stream, unsigned) { static Handle one; *stream = &one; return 0; }
API cuStreamSynchronize(void*) { return 0; }
API cuStreamDestroy_v2(void*) { return 0; }
API cuStreamDestroy(void*) { return 0; }
API cuStreamWaitEvent(void*, void*, unsigned) { return 0; }
API cuEventCreate(void** event, unsigned) { static Handle one; *event = &one; return 0; }
API cuEventRecord(void*, void*) { return 0; }
API cuEventSynchronize(void*) { return 0; }
API cuEventElapsedTime_v2(float* ms, void*, void*) { *ms = 0; return 0; }
API cuEventElapsedTime(float* ms, void*, void*) { *ms = 0; return 0; }
API cuEventDestroy_v2(void*) { return 0; }
API cuEventDestroy(void*) { return 0; }

// Fresh memory is poison: reading what nothing wrote gives NaN.
API cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    void* memory = std::aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!memory) return 2;
    std::memset(memory, 0xff, bytes);
    *pointer = reinterpret_cast<uint64_t>(memory);
    Lock lock(one_at_a_time);
    live[*pointer] = bytes;
    used += bytes;
    return 0;
}
API cuMemAllocAsync(uint64_t* pointer, size_t bytes, void*) { return cuMemAlloc_v2(pointer, bytes); }
API cuMemFree_v2(uint64_t pointer) {
    Lock lock(one_at_a_time);
    const auto found = live.find(pointer);
    if (found == live.end()) return 1;
    used -= found->second;
    live.erase(found);
    std::free(reinterpret_cast<void*>(pointer));
    return 0;
}
API cuMemFreeAsync(uint64_t pointer, void*) { return cuMemFree_v2(pointer); }
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    Lock lock(one_at_a_time);
    *total = size_t{8} << 30;
    *free = *total - used;
    return 0;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) { std::memcpy(reinterpret_cast<void*>(to), from, bytes); return 0; }
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) { std::memcpy(to, reinterpret_cast<void*>(from), bytes); return 0; }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); return 0; }
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) { std::memset(reinterpret_cast<void*>(to), value, bytes); return 0; }

API cuModuleLoadData(void** module, const void* image) {
    Lock lock(one_at_a_time);
    const char* bytes = static_cast<const char*>(image);
    if (std::memcmp(bytes, MAGIC, 8) != 0) return 200;
    uint64_t length;
    std::memcpy(&length, bytes + 8, 8);
    const std::string path = temporary(".so");
    std::ofstream(path, std::ios::binary).write(bytes + 16, static_cast<std::streamsize>(length));
    *module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!*module) std::fprintf(stderr, "%s\n", dlerror());
    unlink(path.c_str());
    return *module ? 0 : 200;
}
API cuModuleUnload(void*) { return 0; }
API cuModuleGetFunction(void** function, void* module, const char* name) {
    auto entry = reinterpret_cast<Entry>(dlsym(module, "aqlm_launch"));
    if (!entry) return 500;
    using Sizes = const std::vector<size_t>* (*)();
    auto sizes = reinterpret_cast<Sizes>(dlsym(module, "aqlm_sizes"));
    if (!sizes) return 500;
    *function = new Function{entry, name, sizes()};
    return 0;
}
API cuFuncSetAttribute(void*, int, int) { return 0; }
API cuFuncGetAttribute(int* value, int, void*) { *value = 1 << 20; return 0; }

struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void* stream;
    void* attributes;
    unsigned count;
};
// Clusters of at most eight blocks, a block a multiprocessor.
API cuOccupancyMaxActiveClusters(int* count, void*, const LaunchConfig* config) {
    const unsigned size = config->grid[0];
    *count = size <= 8 ? multiprocessors() / static_cast<int>(size) : 0;
    return 0;
}
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
    Lock lock(one_at_a_time);
    // The first attribute that asks for clusters: id 4, then the sizes after four bytes of padding.
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->count; ++i) {
        const char* attribute = static_cast<const char*>(config->attributes) + size_t{72} * i;
        int id;
        std::memcpy(&id, attribute, 4);
        if (id == 4) std::memcpy(&cluster, attribute + 8, 4);
    }
    auto* called = static_cast<Function*>(function);
    if (recording) {
        Recorded launch{called->entry, {config->grid[0], config->grid[1]}, config->block[0], cluster, config->shared, {}};
        for (size_t i = 0; i < called->sizes->size(); ++i) {
            const char* argument = static_cast<const char*>(arguments[i]);
            launch.arguments.emplace_back(argument, argument + (*called->sizes)[i]);
        }
        recording->push_back(launch);
        return 0;
    }
    called->entry(config->grid[0], config->grid[1], config->block[0], cluster, config->shared, arguments);
    return 0;
}

API cuStreamBeginCapture_v2(void*, int) {
    Lock lock(one_at_a_time);
    if (recording) return 900;
    recording = new Graph;
    return 0;
}
API cuStreamEndCapture(void*, void** graph) {
    Lock lock(one_at_a_time);
    *graph = recording;
    recording = nullptr;
    return *graph ? 0 : 901;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return 0;
}
API cuGraphLaunch(void* executable, void*) {
    Lock lock(one_at_a_time);
    for (auto& launch : *static_cast<Graph*>(executable)) launch.replay();
    return 0;
}
API cuGraphExecDestroy(void* executable) { delete static_cast<Graph*>(executable); return 0; }
API cuGraphDestroy(void* graph) { delete static_cast<Graph*>(graph); return 0; }
API cuGetErrorString(int, const char** text) { *text = "an error of the stand-in for the driver"; return 0; }
API cuGetErrorName(int, const char** text) { *text = "AQLM_STAND_IN"; return 0; }

API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
API nvrtcGetNumSupportedArchs(int* count) { *count = 1; return 0; }
API nvrtcGetSupportedArchs(int* known) { *known = has_clusters() ? 90 : 80; return 0; }
API nvrtcCreateProgram(void** program, const char* source, const char* name, int, const char**, const char**) {
    *program = new Program{source, name ? name : "", "", ""};
    return 0;
}
API nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    Lock lock(one_at_a_time);
    auto& program = *static_cast<Program*>(handle);
    if (program.name.find(PROBE) != std::string::npos) {
        program.name = "probe";
        program.source = "extern \"C\" void probe(float*) {}";
    }
    const std::string cpp = temporary(".cpp"), library = temporary(".so"), log = temporary(".log");
    std::ofstream(cpp) << "#include \"" AQLM_SHIM_FOLDER "/shim.h\"\n"
                       << program.source << "\n"
                       << "template <class... A, size_t... I> void aqlm_call(void (*k)(A...), void** a, std::index_sequence<I...>) { k(*static_cast<A*>(a[I])...); }\n"
                       << "template <class... A> void aqlm_unpack(void (*k)(A...), void** a) { aqlm_call(k, a, std::index_sequence_for<A...>{}); }\n"
                       << "static void** aqlm_arguments;\n"
                       << "template <class... A> std::vector<size_t> aqlm_sizes_of(void (*)(A...)) { return {sizeof(A)...}; }\n"
                       << "extern \"C\" const std::vector<size_t>* aqlm_sizes() { static const auto sizes = aqlm_sizes_of(" << entry_of(program.name) << "); return &sizes; }\n"
                       << "extern \"C\" void aqlm_launch(unsigned x, unsigned y, unsigned block, unsigned cluster, size_t shared, void** arguments) {\n"
                       << "aqlm_arguments = arguments; static Arguments none;\n"
                       << "run_grid({x, y, 1}, {block, 1, 1}, cluster, shared, [] { aqlm_unpack(" << entry_of(program.name) << ", aqlm_arguments); }, none); }\n";
    const char* compiler = std::getenv("CXX");
    std::string command = std::string(compiler ? compiler : "c++") + " -std=c++17 -O1 -w -shared -fPIC -o " + library + " " + cpp;
    for (int i = 0; i < count; ++i) {
        if (std::strncmp(options[i], "-D", 2) == 0) command += std::string(" ") + options[i];
    }
    const int status = std::system((command + " 2>" + log).c_str());
    program.log = contents(log);
    if (status == 0) {
        const std::string bytes = contents(library);
        const uint64_t length = bytes.size();
        program.image = std::string(MAGIC, 8) + std::string(reinterpret_cast<const char*>(&length), 8) + bytes;
    }
    for (const auto& path : {cpp, library, log}) unlink(path.c_str());
    return status == 0 ? 0 : 6;
}
API nvrtcGetProgramLogSize(void* program, size_t* size) { *size = static_cast<Program*>(program)->log.size() + 1; return 0; }
API nvrtcGetProgramLog(void* program, char* log) { std::strcpy(log, static_cast<Program*>(program)->log.c_str()); return 0; }
API nvrtcGetCUBINSize(void* program, size_t* size) { *size = static_cast<Program*>(program)->image.size(); return 0; }
API nvrtcGetCUBIN(void* program, char* image) { const auto& from = static_cast<Program*>(program)->image; std::memcpy(image, from.data(), from.size()); return 0; }
API nvrtcDestroyProgram(void** program) { delete static_cast<Program*>(*program); *program = nullptr; return 0; }
extern "C" const char* nvrtcGetErrorString(int) { return "an error of the stand-in for NVRTC"; }

API cublasCreate_v2(void** handle) { static Handle one; *handle = &one; return 0; }
API cublasDestroy_v2(void*) { return 0; }
API cublasSetStream_v2(void*, void*) { return 0; }
API cublasSetMathMode(void*, int) { return 0; }
// Factors and results in f32, f64, or f16; or factors in f16 or bf16 and results in f32; whatever the compute
// type.
API cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type, int lda, const void* b, int, int ldb, const void* beta, void* c, int c_type, int ldc, int, int) {
    Lock lock(one_at_a_time);
    if (type == 0 && c_type == 0) {
        multiply<float, float>(ta, tb, m, n, k, *static_cast<const float*>(alpha), static_cast<const float*>(a), lda, static_cast<const float*>(b), ldb, *static_cast<const float*>(beta), static_cast<float*>(c), ldc);
    } else if (type == 1 && c_type == 1) {
        multiply<double, double>(ta, tb, m, n, k, *static_cast<const double*>(alpha), static_cast<const double*>(a), lda, static_cast<const double*>(b), ldb, *static_cast<const double*>(beta), static_cast<double*>(c), ldc);
    } else if (type == 14 && c_type == 0) {
        multiply<Bf16, float>(ta, tb, m, n, k, *static_cast<const float*>(alpha), static_cast<const Bf16*>(a), lda, static_cast<const Bf16*>(b), ldb, *static_cast<const float*>(beta), static_cast<float*>(c), ldc);
    } else if (type == 2 && c_type == 2) {
        multiply<Half, float>(ta, tb, m, n, k, *static_cast<const float*>(alpha), static_cast<const Half*>(a), lda, static_cast<const Half*>(b), ldb, *static_cast<const float*>(beta), static_cast<Half*>(c), ldc);
    } else if (type == 2 && c_type == 0) {
        multiply<Half, float>(ta, tb, m, n, k, *static_cast<const float*>(alpha), static_cast<const Half*>(a), lda, static_cast<const Half*>(b), ldb, *static_cast<const float*>(beta), static_cast<float*>(c), ldc);
    } else {
        return 15;
    }
    return 0;
}
// f32 only.
API cublasGemmStridedBatchedEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type, int lda, long long a_stride, const void* b, int b_type, int ldb, long long b_stride, const void* beta, void* c, int to, int ldc, long long c_stride, int count, int compute, int algorithm) {
    if (type != 0 || b_type != 0 || to != 0) return 15;
    for (int64_t i = 0; i < count; ++i) {
        const int failed = cublasGemmEx(handle, ta, tb, m, n, k, alpha, static_cast<const float*>(a) + i * a_stride, type, lda, static_cast<const float*>(b) + i * b_stride, b_type, ldb, beta, static_cast<float*>(c) + i * c_stride, to, ldc, compute, algorithm);
        if (failed) return failed;
    }
    return 0;
}
