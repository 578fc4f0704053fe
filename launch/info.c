/* weft info: a model folder, what each rank would hold, and the GPUs of this host. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/size_text.h"
#include "command.h"
#include "gpus.h"

enum { RANK_COUNT_MAX = 64 };

static const char *count_text(uint64_t count, char text[16])
{
    if (count >= 1000000000) {
        (void)snprintf(text, 16, "%.2f billion", (double)count / 1e9);
    } else if (count >= 1000000) {
        (void)snprintf(text, 16, "%.1f million", (double)count / 1e6);
    } else {
        (void)snprintf(text, 16, "%llu", (unsigned long long)count);
    }
    return text;
}

static void summary_print(const char *folder, const struct weft_model_summary *model,
                          const struct weft_rank_summary *ranks)
{
    char text[4][WEFT_SIZE_TEXT_SIZE];

    printf("model         %s\n", folder);
    printf("architecture  %s\n", model->architecture);
    printf("parameters    %s, %s\n", count_text(model->parameter_count, text[0]), model->weight_text);
    printf("layers        %u, width %u, FFN %u\n", model->layer_count, model->width, model->ffn_width);
    printf("heads         %u of %u, %u KV heads\n", model->head_count, model->head_size, model->kv_head_count);
    printf("vocabulary    %u tokens\n", model->vocab_size);
    printf("context       %u positions\n", model->context_length);
    printf("leaves        %u, so at most %u ranks\n\n", model->leaf_count, model->leaf_count);
    printf("%4s %8s %8s %12s %12s %12s %12s %14s\n", "rank", "leaves", "heads", "weights", "KV cache", "activations",
           "total", "KV/position");
    for (uint32_t i = 0; i < model->rank_count; i++) {
        const struct weft_rank_summary *rank = &ranks[i];
        char leaves[24];
        char heads[24];

        (void)snprintf(leaves, sizeof(leaves), "%u-%u", rank->leaf_begin, rank->leaf_end - 1);
        if (rank->head_end > rank->head_begin) {
            (void)snprintf(heads, sizeof(heads), "%u-%u", rank->head_begin, rank->head_end - 1);
        } else {
            (void)snprintf(heads, sizeof(heads), "-");
        }
        printf("%4u %8s %8s %12s %12s %12s", i, leaves, heads, weft_size_text(rank->weight_size, text[0]),
               weft_size_text(rank->kv_size, text[1]), weft_size_text(rank->activation_size, text[2]));
        printf(" %12s", weft_size_text(rank->weight_size + rank->kv_size + rank->activation_size, text[0]));
        printf(" %14s\n", weft_size_text(rank->kv_token_size, text[1]));
    }
}

static bool summary_print_json(const char *folder, const struct weft_model_summary *model,
                               const struct weft_rank_summary *ranks, const struct weft_settings *settings)
{
    json_t *list = json_array();
    json_t *object;
    char *line;

    for (uint32_t i = 0; i < model->rank_count; i++) {
        const struct weft_rank_summary *rank = &ranks[i];

        json_array_append_new(list, json_pack("{s:[ii], s:[ii], s:I, s:I, s:I, s:I}", "leaves", (int)rank->leaf_begin,
                                              (int)rank->leaf_end, "heads", (int)rank->head_begin, (int)rank->head_end,
                                              "weight_bytes", (json_int_t)rank->weight_size, "kv_bytes",
                                              (json_int_t)rank->kv_size, "activation_bytes",
                                              (json_int_t)rank->activation_size, "kv_bytes_per_position",
                                              (json_int_t)rank->kv_token_size));
    }
    object = json_pack(
        "{s:s, s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o}", "model", folder, "architecture",
        model->architecture, "weight_dtype", model->weight_dtype, "parameter_count", (json_int_t)model->parameter_count,
        "layer_count", (int)model->layer_count, "width", (int)model->width, "head_count", (int)model->head_count,
        "kv_head_count", (int)model->kv_head_count, "head_size", (int)model->head_size, "ffn_width",
        (int)model->ffn_width, "vocab_size", (int)model->vocab_size, "context_length", (int)model->context_length,
        "leaf_count", (int)model->leaf_count, "ranks", list, "gpus", weft_gpus_json(settings));
    line = object != NULL ? json_dumps(object, 0) : NULL;
    json_decref(object);
    if (line == NULL) {
        fputs("weft info: out of memory, or a name that is not UTF-8\n", stderr);
        return false;
    }
    puts(line);
    free(line);
    return true;
}

int weft_command_info(struct weft_settings *settings)
{
    struct weft_rank_summary ranks[RANK_COUNT_MAX];
    struct weft_model_summary model;
    struct weft_terminal terminal;
    struct weft_setup setup;
    enum weft_status status;

    if (settings->shares.is_auto) {
        fprintf(stderr, "weft info: --shares auto: measured when ranks meet, and info starts none; give numbers\n");
        return WEFT_EXIT_USAGE;
    }
    if (!weft_setup_inspect_init(&setup, settings, "info")) {
        return WEFT_EXIT_CONFIG;
    }
    weft_terminal_init(&terminal, true, settings->is_verbose);
    status = weft_engine_inspect(&setup.options, &model, ranks, RANK_COUNT_MAX);
    if (status != WEFT_OK) {
        return weft_exit_code(status); /* logged */
    }
    if (strcmp(settings->output, "json") == 0) {
        return summary_print_json(setup.options.model, &model, ranks, settings) ? WEFT_EXIT_OK : WEFT_EXIT_FAILURE;
    }
    summary_print(setup.options.model, &model, ranks);
    weft_gpus_print(settings);
    return fflush(stdout) == 0 ? WEFT_EXIT_OK : WEFT_EXIT_FAILURE;
}
