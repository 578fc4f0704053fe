/* libFuzzer: the header of a safetensors file. What is accepted must tile the file exactly. */
#include <stddef.h>
#include <stdint.h>

#include "fuzz.h"

#include "base/arena.h"
#include "model/safetensors.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_silence();
    return 0;
}

static void parse(const uint8_t *data, size_t size, uint64_t file_size)
{
    struct weft_arena arena = {0};
    struct weft_tensor *tensors;
    size_t count;
    char shape[64];

    if (weft_safetensors_parse("fuzz", data, size, file_size, &arena, &tensors, &count) == WEFT_OK) {
        uint64_t end = count == 0 ? file_size : tensors[0].offset;
        for (size_t i = 0; i < count; i++) {
            fuzz_require(tensors[i].offset == end && tensors[i].dim_count <= WEFT_TENSOR_DIM_MAX);
            (void)weft_tensor_shape(&tensors[i], shape, sizeof(shape));
            end += tensors[i].size;
        }
        fuzz_require(end == file_size);
    }
    weft_arena_fini(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size, size);
    parse(data, size, (uint64_t)size + 100000); /* only the start of the file is in memory */
    return 0;
}
