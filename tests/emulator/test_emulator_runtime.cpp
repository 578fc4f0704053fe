/* The emulator's runtime: asynchrony, memory that is watched, graphs, and failures on demand. */
#include "test_emulator.h"

#include <string.h>
#include <time.h>

static __global__ void add_one(uint32_t *words, uint32_t count)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i < count) {
        words[i]++;
    }
}

static cudaStream_t open_stream()
{
    cudaStream_t stream = nullptr;

    assert_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

/* Pinned memory is read when the copy's turn comes, pageable memory at once. */
static void test_asynchrony(void **)
{
    uint32_t *device = device_words(8);
    uint32_t *pinned = nullptr;
    uint32_t pageable = 5;
    uint32_t found[8];
    cudaStream_t stream = open_stream();

    assert_cuda(cudaMallocHost(&pinned, 4));
    *pinned = 7;
    assert_cuda(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream));
    assert_cuda(cudaMemcpyAsync(device + 1, &pageable, 4, cudaMemcpyHostToDevice, stream));
    *pinned = 8; /* too early */
    pageable = 6;
    WEFT_CUDA_LAUNCH(add_one, 1, 32, 0, stream, device, 2);
    assert_cuda(cudaStreamSynchronize(stream));
    read_words(found, device, 2);
    assert_int_equal(found[0], 9);
    assert_int_equal(found[1], 6);
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaFree(device));
    assert_cuda(cudaStreamDestroy(stream));
}

static void test_events(void **)
{
    uint32_t *device = device_words(1);
    uint32_t found = 0;
    cudaStream_t first = open_stream();
    cudaStream_t second = open_stream();
    cudaEvent_t event = nullptr;
    cudaEvent_t end = nullptr;
    float milliseconds = -1;

    assert_cuda(cudaEventCreate(&event));
    assert_cuda(cudaEventCreateWithFlags(&end, cudaEventDefault));
    assert_cuda(cudaEventQuery(event)); /* never recorded */
    for (int i = 0; i < 100; i++) {
        WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, first, device, 1);
    }
    assert_cuda(cudaEventRecord(event, first));
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    assert_cuda(cudaStreamWaitEvent(second, event));
    assert_cuda(cudaMemcpyAsync(&found, device, 4, cudaMemcpyDeviceToHost, second)); /* pageable: waits */
    assert_int_equal(found, 100);
    assert_cuda(cudaEventRecord(end, second));
    assert_cuda(cudaEventSynchronize(end));
    assert_cuda(cudaEventElapsedTime(&milliseconds, event, end));
    assert_true(milliseconds >= 0);
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, first, device, 1);
    assert_int_equal(cudaStreamQuery(first), cudaErrorNotReady);
    while (cudaStreamQuery(first) == cudaErrorNotReady) {
        struct timespec pause = {0, 100000};

        nanosleep(&pause, nullptr);
    }
    assert_cuda(cudaEventDestroy(event));
    assert_cuda(cudaEventDestroy(end));
    assert_cuda(cudaStreamDestroy(first));
    assert_cuda(cudaStreamDestroy(second));
    assert_cuda(cudaFree(device));
}

/* An event recorded in a capture cannot be waited for; memory that was freed since shows when the graph is launched. */
static void test_what_graphs_keep(cudaStream_t stream)
{
    uint32_t *device = device_words(1);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaEvent_t event = nullptr;
    size_t node_count = 0;

    assert_cuda(cudaEventCreate(&event));
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, stream, device, 1);
    assert_cuda(cudaEventRecord(event, stream));
    assert_int_equal(cudaStreamQuery(stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaEventQuery(event), cudaErrorCapturedEvent);
    assert_int_equal(cudaEventSynchronize(event), cudaErrorCapturedEvent);
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, stream, device, 1);
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphGetNodes(graph, nullptr, &node_count));
    assert_int_equal(node_count, 1);
    assert_cuda(cudaGraphInstantiate(&exec, graph));
    assert_cuda(cudaGraphLaunch(exec, stream));
    assert_cuda(cudaStreamSynchronize(stream));
    assert_cuda(cudaFree(device));
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaErrorIllegalAddress);
    assert_non_null(strstr(weft_emulated_report(), "graph with add_one: an argument points to freed memory"));
    assert_int_equal(weft_emulated_count("cudaGraphLaunch") >= 2, 1);
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
    assert_cuda(cudaEventDestroy(event));
    (void)cudaGetLastError();
}

static void test_graph(void **)
{
    uint32_t *device = device_words(4);
    uint32_t found[4];
    cudaStream_t stream = open_stream();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    void *memory = nullptr;

    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    WEFT_CUDA_LAUNCH(add_one, 1, 4, 0, stream, device, 4);
    assert_cuda(cudaMemcpyAsync(device + 2, device, 8, cudaMemcpyDeviceToDevice, stream));
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph));
    read_words(found, device, 4);
    assert_int_equal(found[0], 0); /* only captured */
    for (int i = 0; i < 3; i++) {
        assert_cuda(cudaGraphLaunch(exec, stream));
    }
    assert_cuda(cudaStreamSynchronize(stream));
    read_words(found, device, 4);
    for (uint32_t value : found) {
        assert_int_equal(value, 3);
    }
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
    test_what_graphs_keep(stream);
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaMalloc(&memory, 4), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    (void)cudaGetLastError();
    assert_cuda(cudaStreamDestroy(stream));
    assert_cuda(cudaFree(device));
}

static __global__ void write_at(uint32_t *words, int index)
{
    words[index] = 1;
}

#if defined(__SANITIZE_ADDRESS__)
static const bool is_watched = true;
#else
static const bool is_watched = false;
#endif

/* Memory begins as NaN; what a kernel writes beside it is seen at once. */
static void test_memory(void **)
{
    static const int bad[] = {-1, 5, 20};
    uint32_t *device = nullptr;
    uint32_t found[5];
    uint32_t host = 0;
    size_t free_size = 0;
    size_t total_size = 0;

    assert_cuda(cudaMalloc(&device, 20));
    read_words(found, device, 5);
    assert_int_equal(found[4], 0xffffffffU);
    assert_cuda(cudaMemGetInfo(&free_size, &total_size));
    assert_int_equal(total_size, 1 << 30);
    assert_int_equal(free_size, (1 << 30) - 20);
    for (int i = 0; i < 3 && !is_watched; i++) {
        WEFT_CUDA_LAUNCH(write_at, 1, 1, 0, 0, device, bad[i]);
        assert_int_equal(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
        assert_non_null(strstr(weft_emulated_report(), i == 0 ? "kernel write_at wrote before the start of a block of "
                                                                "20 bytes of GPU 0"
                                                              : "kernel write_at wrote past the end"));
        configure_order(0);
        (void)cudaFree(device);
        assert_cuda(cudaMalloc(&device, 20));
    }
    assert_int_equal(cudaMemcpy(device, found, 24, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(&host, found, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_cuda(cudaFree(device));
    assert_int_equal(cudaMalloc(&device, 2ULL << 30), cudaErrorMemoryAllocation);
    configure_order(0);
    (void)cudaGetLastError();
}

static void test_launch_errors(void **)
{
    uint32_t host[2] = {0, 0};
    uint32_t *device = device_words(2);

    WEFT_CUDA_LAUNCH(add_one, 1, 1025, 0, 0, device, 1);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_cuda(cudaPeekAtLastError());
    WEFT_CUDA_LAUNCH(add_one, dim3(0), 1, 0, 0, device, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 90 << 10, 0, device, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_cuda(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 90 << 10));
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 90 << 10, 0, device, 1);
    assert_cuda(cudaGetLastError());
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, 0, host, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_non_null(strstr(weft_emulated_report(), "launch of add_one: argument 1 points to memory of the host"));
    assert_cuda(cudaFree(device));
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, 0, device, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

/* Each failure on demand, and that the next configuration ends it. */
static void test_failures(void **)
{
    weft_emulated_config config;
    void *memory = nullptr;
    int count = -1;
    uint32_t *device;
    cudaStream_t stream;

    weft_emulated_config_init(&config);
    config.fail_call = 2;
    config.fail_name = "cudaMalloc";
    config.fail_error = cudaErrorMemoryAllocation;
    weft_emulated_configure(&config);
    assert_cuda(cudaMalloc(&memory, 4));
    assert_cuda(cudaFree(memory));
    assert_int_equal(cudaMalloc(&memory, 4), cudaErrorMemoryAllocation);
    assert_cuda(cudaMalloc(&memory, 4));
    assert_cuda(cudaFree(memory));
    weft_emulated_config_init(&config);
    config.device_count = 0;
    weft_emulated_configure(&config);
    assert_int_equal(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    config.driver_version = 12080;
    weft_emulated_configure(&config);
    assert_int_equal(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
    weft_emulated_config_init(&config);
    config.device_count = 3;
    config.fault_launch = 2;
    weft_emulated_configure(&config);
    assert_cuda(cudaGetDeviceCount(&count));
    assert_int_equal(count, 3);
    assert_cuda(cudaSetDevice(2));
    device = device_words(1);
    stream = open_stream();
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, stream, device, 1);
    assert_cuda(cudaStreamSynchronize(stream));
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, stream, device, 1);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    assert_int_equal(cudaMalloc(&memory, 4), cudaErrorLaunchFailure);
    assert_cuda(cudaSetDevice(0)); /* the others live */
    assert_cuda(cudaMalloc(&memory, 4));
    assert_cuda(cudaFree(memory));
    config.fault_launch = 0;
    config.hang_operation = 1;
    weft_emulated_configure(&config);
    WEFT_CUDA_LAUNCH(add_one, 1, 1, 0, stream, device, 1);
    for (int i = 0; i < 20; i++) {
        struct timespec pause = {0, 1000000};

        assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
        nanosleep(&pause, nullptr);
    }
    weft_emulated_config_init(&config);
    weft_emulated_configure(&config); /* lets it go */
    assert_cuda(cudaStreamSynchronize(stream));
    assert_cuda(cudaStreamDestroy(stream));
    assert_cuda(cudaFree(device));
    (void)cudaGetLastError();
}

static int check_leaks(void **)
{
    return (int)weft_emulated_live_count();
}

static int begin(void **)
{
    weft_emulated_config config;

    weft_emulated_config_init(&config);
    weft_emulated_configure(&config);
    (void)cudaGetLastError();
    return 0;
}

int run_runtime_tests()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_asynchrony, begin),    cmocka_unit_test_setup(test_events, begin),
        cmocka_unit_test_setup(test_graph, begin),         cmocka_unit_test_setup(test_memory, begin),
        cmocka_unit_test_setup(test_launch_errors, begin), cmocka_unit_test_setup(test_failures, begin),
    };

    return cmocka_run_group_tests(tests, nullptr, check_leaks);
}
