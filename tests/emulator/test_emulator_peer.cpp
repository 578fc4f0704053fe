/*
 * What kernels that store into each other's memory need: threads that poll take turns, blocks run in an order that ends
 * their waiting, and device memory can be opened by other processes. The other process is this program with arguments.
 */
#include "test_emulator.h"

#include <initializer_list>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/ptx.h"

/* ---- polling ---- */

/* Every thread writes for the one `step` before it and waits for its own word. */
static __global__ void pass_on(uint32_t *words, uint32_t step)
{
    const uint32_t count = gridDim.x * blockDim.x;
    const uint32_t own = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t target = blockIdx.x * blockDim.x + (threadIdx.x + blockDim.x - step) % blockDim.x;
    uint32_t word = 0;

    weft_ptx_store_shared_word(words + target, own + 1);
    while (word == 0) {
        weft_ptx_load_shared_word(words + own, &word);
        weft_ptx_poll_pause();
    }
    weft_ptx_store_shared_word(words + count + own, word);
}

static void test_polling_threads_take_turns(void **)
{
    enum { BLOCKS = 2, THREADS = 96 };

    for (uint32_t order = 0; order < 5; order++) {
        for (uint32_t step : {1U, 31U, 40U, 95U}) {
            uint32_t found[2 * BLOCKS * THREADS];
            configure_order(order);
            uint32_t *words = device_words(2 * BLOCKS * THREADS);
            WEFT_CUDA_LAUNCH(pass_on, dim3(BLOCKS), dim3(THREADS), 0, nullptr, words, step);
            assert_cuda(cudaDeviceSynchronize());
            read_words(found, words, 2 * BLOCKS * THREADS);
            for (uint32_t i = 0; i < BLOCKS * THREADS; i++) {
                uint32_t block = i / THREADS * THREADS;
                assert_int_equal(found[BLOCKS * THREADS + i], block + (i % THREADS + step) % THREADS + 1);
            }
            assert_cuda(cudaFree(words));
        }
    }
}

/* Block i of each of two kernels waits for block i of the other. */
static __global__ void meet(uint32_t *own, uint32_t *other)
{
    uint32_t word = 0;

    weft_ptx_store_shared_word(other + blockIdx.x, 7);
    while (word == 0) {
        weft_ptx_load_shared_word(own + blockIdx.x, &word);
        weft_ptx_poll_pause();
    }
}

static void test_blocks_of_two_grids_meet(void **)
{
    for (uint32_t order = 0; order < 6; order++) {
        cudaStream_t streams[2];

        configure_order(order);
        uint32_t *words = device_words(32);
        for (int i = 0; i < 2; i++) {
            assert_cuda(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking));
        }
        for (int turn = 0; turn < 4; turn++) {
            assert_cuda(cudaMemset(words, 0, 32 * sizeof(uint32_t)));
            for (int i = 0; i < 2; i++) {
                WEFT_CUDA_LAUNCH_RESIDENT(false, meet, dim3(16), dim3(1), 0, streams[i], words + 16 * i,
                                          words + 16 * (1 - i));
            }
            assert_cuda(cudaDeviceSynchronize());
        }
        for (cudaStream_t stream : streams) {
            assert_cuda(cudaStreamDestroy(stream));
        }
        assert_cuda(cudaFree(words));
    }
}

/* ---- memory of another process ---- */

static const size_t SIZE = 3 << 20;

/* The visitor's exit status: what went wrong, 0 when all went as CUDA has it. */
int visit(char **arguments)
{
    cudaIpcMemHandle_t handle;
    void *memory = nullptr;
    uint32_t word = 0;
    const bool is_refusal_expected = strcmp(arguments[2], "refused") == 0;
    const bool is_left_open = strcmp(arguments[2], "left") == 0;

    for (size_t i = 0; i < sizeof(handle); i++) {
        unsigned int byte = 0;
        (void)sscanf(arguments[1] + 2 * i, "%2x", &byte);
        handle.reserved[i] = (char)byte;
    }
    cudaError_t error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
    if (is_refusal_expected) {
        return error == cudaErrorMapBufferObjectFailed ? 0 : 1;
    }
    if (error != cudaSuccess || cudaMemcpy(&word, memory, 4, cudaMemcpyDeviceToHost) != cudaSuccess || word != 11) {
        return 2;
    }
    word = 12;
    if (cudaMemcpy(static_cast<char *>(memory) + SIZE - 4, &word, 4, cudaMemcpyHostToDevice) != cudaSuccess ||
        cudaFree(memory) == cudaSuccess) { /* it is not the visitor's to free */
        return 3;
    }
    if (is_left_open) {
        fclose(stdout); /* says that it is open; the owner's end of our standard input ends the waiting */
        return getchar() == EOF ? 0 : 4;
    }
    return cudaIpcCloseMemHandle(memory) == cudaSuccess && cudaIpcCloseMemHandle(memory) != cudaSuccess ? 0 : 5;
}

static void hex(const cudaIpcMemHandle_t &handle, char text[2 * sizeof(cudaIpcMemHandle_t) + 1])
{
    for (size_t i = 0; i < sizeof(handle); i++) {
        snprintf(text + 2 * i, 3, "%02x", (unsigned char)handle.reserved[i]);
    }
}

struct visitor {
    pid_t pid;
    int to;   /* its standard input */
    int from; /* its standard output */
};

static visitor send_visitor(const cudaIpcMemHandle_t &handle, const char *how)
{
    char text[2 * sizeof(handle) + 1];
    int in[2];
    int out[2];

    hex(handle, text);
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) { /* the driver would not survive: a new program */
        (void)dup2(in[0], 0);
        (void)dup2(out[1], 1);
        for (int fd : {in[0], in[1], out[0], out[1]}) {
            (void)close(fd);
        }
        (void)execl("/proc/self/exe", "visitor", text, how, static_cast<char *>(nullptr));
        _exit(9);
    }
    (void)close(in[0]);
    (void)close(out[1]);
    return {pid, in[1], out[0]};
}

static int say_goodbye(const visitor &visitor)
{
    int status = -1;

    (void)close(visitor.to);
    (void)close(visitor.from);
    (void)waitpid(visitor.pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_memory_of_another_process(void **)
{
    cudaIpcMemHandle_t handle;
    char *memory = nullptr;
    void *opened = nullptr;
    uint32_t word = 11;
    char byte;

    configure_order(0);
    assert_cuda(cudaMalloc(reinterpret_cast<void **>(&memory), SIZE));
    assert_cuda(cudaMemcpy(memory, &word, 4, cudaMemcpyHostToDevice));
    assert_int_equal(cudaIpcGetMemHandle(&handle, memory + 256), cudaErrorInvalidValue); /* not its beginning */
    assert_cuda(cudaIpcGetMemHandle(&handle, memory));
    assert_int_equal(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
                     cudaErrorDeviceUninitialized); /* its own */
    assert_int_equal(say_goodbye(send_visitor(handle, "closed")), 0);
    assert_cuda(cudaMemcpy(&word, memory + SIZE - 4, 4, cudaMemcpyDeviceToHost));
    assert_int_equal(word, 12);

    visitor visitor = send_visitor(handle, "left");
    assert_int_equal(read(visitor.from, &byte, 1), 0); /* it has it open */
    assert_string_equal(weft_emulated_report(), "");
    assert_cuda(cudaFree(memory));
    assert_non_null(strstr(weft_emulated_report(), "that another process has open"));
    assert_int_equal(say_goodbye(visitor), 0);
    assert_int_equal(say_goodbye(send_visitor(handle, "refused")), 0); /* freed */
    (void)cudaGetLastError();
}

/* One that ends without closing is not waited for. */
static void test_visitor_that_has_ended(void **)
{
    cudaIpcMemHandle_t handle;
    void *memory = nullptr;
    const uint32_t word = 11;
    char byte;

    configure_order(0);
    assert_cuda(cudaMalloc(&memory, SIZE));
    assert_cuda(cudaMemcpy(memory, &word, 4, cudaMemcpyHostToDevice));
    assert_cuda(cudaIpcGetMemHandle(&handle, memory));
    visitor visitor = send_visitor(handle, "left");
    assert_int_equal(read(visitor.from, &byte, 1), 0);
    assert_int_equal(say_goodbye(visitor), 0);
    assert_cuda(cudaFree(memory));
    assert_string_equal(weft_emulated_report(), "");
}

int run_peer_tests()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_polling_threads_take_turns),
        cmocka_unit_test(test_blocks_of_two_grids_meet),
        cmocka_unit_test(test_memory_of_another_process),
        cmocka_unit_test(test_visitor_that_has_ended),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
