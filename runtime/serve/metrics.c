/* Values to lines of Prometheus' text format, version 0.0.4. */
#include "metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "process.h"

static void head(FILE *file, const char *name, const char *type, const char *help)
{
    fprintf(file, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(FILE *file, const char *name, const char *help, double value)
{
    head(file, name, "gauge", help);
    fprintf(file, "%s %.17g\n", name, value);
}

static void counter(FILE *file, const char *name, const char *help, uint64_t value)
{
    head(file, name, "counter", help);
    fprintf(file, "%s %" PRIu64 "\n", name, value);
}

static void histogram(FILE *file, const char *name, const char *help, const struct weft_histogram *values)
{
    uint64_t count = 0;

    head(file, name, "histogram", help);
    for (uint32_t i = 0; i < WEFT_HISTOGRAM_BOUND_COUNT; i++) {
        count += values->buckets[i];
        fprintf(file, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, weft_histogram_bound_ms(i) / 1e3, count);
    }
    count += values->buckets[WEFT_HISTOGRAM_BOUND_COUNT];
    fprintf(file, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, count);
    fprintf(file, "%s_sum %.9f\n%s_count %" PRIu64 "\n", name, values->sum_ms / 1e3, name, count);
}

/* name="value", with what the format wants escaped. */
static void label(FILE *file, const char *separator, const char *name, const char *value)
{
    fprintf(file, "%s%s=\"", separator, name);
    for (; *value != '\0'; value++) {
        switch (*value) {
        case '\\': fputs("\\\\", file); break;
        case '"': fputs("\\\"", file); break;
        case '\n': fputs("\\n", file); break;
        default: fputc(*value, file); break;
        }
    }
    fputc('"', file);
}

static void identity(FILE *file, const struct weft_engine_info *info)
{
    head(file, "weft_build_info", "gauge", "1; which weft this is.");
    fputs("weft_build_info{", file);
    label(file, "", "version", weft_version());
    fputs("} 1\n", file);
    if (info == NULL) {
        return;
    }
    head(file, "weft_model_info", "gauge", "1; the model and how it runs.");
    fputs("weft_model_info{", file);
    label(file, "", "model", info->model);
    label(file, ",", "architecture", info->architecture);
    label(file, ",", "weight_dtype", info->weight_dtype);
    label(file, ",", "kv_dtype", info->kv_dtype);
    label(file, ",", "device", info->device);
    label(file, ",", "comm", info->comm);
    fputs("} 1\n", file);
    gauge(file, "weft_model_load_seconds", "From start to serving.", info->load_ms / 1e3);
}

static void load(FILE *file, const struct weft_engine_stats *stats)
{
    gauge(file, "weft_ranks", "Ranks of the group.", stats->rank_count);
    gauge(file, "weft_requests_waiting", "Requests that wait for a place.", stats->waiting_count);
    gauge(file, "weft_requests_waiting_limit", "Requests that may wait; more are refused.", stats->waiting_max);
    gauge(file, "weft_requests_running", "Requests that are being answered.", stats->running_count);
    gauge(file, "weft_requests_running_limit", "Requests that can be answered at once.", stats->running_max);
    gauge(file, "weft_kv_pages", "Pages of the KV cache.", stats->kv_page_count);
    gauge(file, "weft_kv_pages_used", "Of them, held by running requests.", stats->kv_page_used_count);
    gauge(file, "weft_kv_page_positions", "Token positions of one page.", stats->kv_page_positions);
}

static void work(FILE *file, const struct weft_engine_stats *stats)
{
    head(file, "weft_requests_total", "counter",
         "Requests that have ended: stop, length (max_tokens or context), cancelled, error, refused (queue full).");
    for (int how = WEFT_FINISH_STOP; how < WEFT_FINISH_COUNT; how++) {
        fprintf(file, "weft_requests_total{result=\"%s\"} %" PRIu64 "\n", weft_finish_name((enum weft_finish)how),
                stats->finish_counts[how]);
    }
    fprintf(file, "weft_requests_total{result=\"refused\"} %" PRIu64 "\n", stats->refused_count);
    counter(file, "weft_prompt_tokens_total", "Prompt tokens of requests that have got their first token.",
            stats->prompt_token_count);
    counter(file, "weft_output_tokens_total", "Tokens made.", stats->output_token_count);
    counter(file, "weft_steps_total", "Steps of the group.", stats->step_count);
    histogram(file, "weft_request_queue_time_seconds", "Arrival to first step.", &stats->queue);
    histogram(file, "weft_time_to_first_token_seconds", "Arrival to first token.", &stats->ttft);
    histogram(file, "weft_inter_token_latency_seconds", "From each token of a request to its next.",
              &stats->inter_token);
    histogram(file, "weft_e2e_request_latency_seconds", "Arrival to last token, of requests that ended by themselves.",
              &stats->request);
}

/* Under the names that every Prometheus client library uses. */
static void process(FILE *file)
{
    struct weft_process self;

    weft_process_read(&self);
    head(file, "process_cpu_seconds_total", "counter", "User and system time of the leader's process.");
    fprintf(file, "process_cpu_seconds_total %.2f\n", self.cpu_seconds);
    gauge(file, "process_resident_memory_bytes", "Resident memory of the leader's process.", self.resident_size);
    gauge(file, "process_virtual_memory_bytes", "Virtual memory of the leader's process.", self.virtual_size);
    gauge(file, "process_start_time_seconds", "When the leader's process began, since 1970.", self.start_seconds);
    gauge(file, "process_open_fds", "Open descriptors of the leader's process.", self.fd_count);
    gauge(file, "process_max_fds", "Descriptors it may open.", self.fd_max);
}

enum weft_status weft_metrics_render(const struct weft_metrics *metrics, char **text_out, size_t *size_out)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);

    if (file == NULL) {
        return WEFT_ERR_MEMORY;
    }
    identity(file, metrics->info);
    gauge(file, "weft_serving", "1 while new requests are taken, 0 while loading, draining or after a failure.",
          metrics->is_serving);
    if (metrics->stats != NULL) {
        load(file, metrics->stats);
        work(file, metrics->stats);
    }
    process(file);
    bool is_whole = ferror(file) == 0;
    if (fclose(file) != 0 || !is_whole) {
        free(text);
        return WEFT_ERR_MEMORY;
    }
    *text_out = text;
    *size_out = size;
    return WEFT_OK;
}
