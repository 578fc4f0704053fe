/* weft run: one prompt, one answer. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/size_text.h"
#include "command.h"
#include "signals.h"
#include "weft/log.h"

enum {
    PROMPT_SIZE_MAX = 64 << 20,
    POLL_MS = 50,
    CANCEL_GRACE_MS = 300,
    STOP_LIMIT_MS = 800, /* one second is promised from signal to end */
    EVENT_COUNT = 16,
    COLLECTIVE_COUNT = 16,
};

struct text {
    char *data;
    size_t size;
    size_t capacity;
};

/* What came out, collected for json. */
struct answer {
    struct text text;
    struct text token_ids; /* int32_t */
    struct weft_event last;
    bool is_finished;
    bool is_output_lost; /* nobody reads standard output any more */
};

static bool text_add(struct text *text, const void *data, size_t size)
{
    if (text->size + size > text->capacity) {
        size_t capacity = text->capacity > 0 ? text->capacity * 2 : 4096;
        char *larger;

        while (capacity < text->size + size) {
            capacity *= 2;
        }
        larger = realloc(text->data, capacity);
        if (larger == NULL) {
            fputs("weft run: out of memory\n", stderr);
            return false;
        }
        text->data = larger;
        text->capacity = capacity;
    }
    if (size > 0) {
        memcpy(text->data + text->size, data, size);
    }
    text->size += size;
    return true;
}

static bool prompt_file_read(const char *path, struct text *prompt)
{
    bool is_stdin = strcmp(path, "-") == 0;
    int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    char buffer[65536];
    ssize_t got = -1;

    if (is_stdin && isatty(fd) == 1) {
        fputs("weft run: type the prompt, end it with Ctrl-D\n", stderr);
    }
    if (fd >= 0) {
        do {
            got = read(fd, buffer, sizeof(buffer));
        } while (got > 0 && prompt->size <= PROMPT_SIZE_MAX && text_add(prompt, buffer, (size_t)got));
    }
    if (got < 0) {
        fprintf(stderr, "weft run: prompt: %s: %s\n", is_stdin ? "standard input" : path, strerror(errno));
    } else if (got > 0) {
        fprintf(stderr, "weft run: prompt: %s: larger than %d MiB\n", path, PROMPT_SIZE_MAX >> 20);
    }
    if (fd >= 0 && !is_stdin) {
        close(fd);
    }
    if (got != 0) {
        return false;
    }
    if (prompt->size > 0 && prompt->data[prompt->size - 1] == '\n') {
        prompt->size--;
    }
    return true;
}

static bool prompt_read(const struct weft_settings *settings, struct text *prompt)
{
    if (settings->prompt != NULL && settings->prompt_file != NULL) {
        fputs("weft run: --prompt and --prompt-file: only one of them\n", stderr);
        return false;
    }
    if (settings->prompt != NULL) {
        return text_add(prompt, settings->prompt, strlen(settings->prompt));
    }
    return prompt_file_read(settings->prompt_file != NULL ? settings->prompt_file : "-", prompt);
}

static void request_fill(struct weft_request *request, const struct weft_settings *settings, const struct text *prompt)
{
    weft_request_init(request);
    request->prompt = prompt->data != NULL ? prompt->data : "";
    request->prompt_size = prompt->size;
    request->is_raw = settings->is_raw;
    request->max_tokens = settings->max_tokens;
    request->temperature = settings->temperature;
    request->top_k = settings->top_k;
    request->top_p = settings->top_p;
    request->min_p = settings->min_p;
    request->repetition_penalty = settings->repetition_penalty;
    request->presence_penalty = settings->presence_penalty;
    request->frequency_penalty = settings->frequency_penalty;
    request->seed = settings->seed;
    request->stop = settings->stop.items;
    request->stop_count = settings->stop.count;
    request->is_eos_ignored = settings->is_eos_ignored;
    request->has_logits_digest = strcmp(settings->output, "json") == 0;
}

/* Standard output, until a signal or a closed pipe. */
static bool stdout_write(const char *data, size_t size)
{
    while (size > 0) {
        ssize_t done = write(STDOUT_FILENO, data, size);

        if (done < 0) {
            if (errno == EINTR && weft_signals_caught() == 0) {
                continue;
            }
            return false;
        }
        data += done;
        size -= (size_t)done;
    }
    return true;
}

static void event_take(struct answer *answer, const struct weft_event *event, bool is_streamed)
{
    if (is_streamed && !answer->is_output_lost && !stdout_write(event->text, event->text_size)) {
        answer->is_output_lost = true;
    }
    if (!text_add(&answer->text, event->text, event->text_size) ||
        !text_add(&answer->token_ids, event->token_ids, event->token_count * sizeof(int32_t))) {
        answer->is_output_lost = true;
    }
    if (event->finish != WEFT_FINISH_NONE) {
        answer->last = *event;
        answer->is_finished = true;
    }
}

/* Until the last event; a signal or lost output cancels the request first. */
static enum weft_status events_follow(struct weft_engine *engine, uint64_t id, bool is_streamed, struct answer *answer)
{
    struct weft_event events[EVENT_COUNT];
    int64_t give_up_ms = 0;

    while (!answer->is_finished) {
        uint32_t count = 0;
        enum weft_status status = weft_engine_poll(engine, POLL_MS, events, EVENT_COUNT, &count);

        if (status != WEFT_OK) {
            return status;
        }
        for (uint32_t i = 0; i < count; i++) {
            event_take(answer, &events[i], is_streamed);
        }
        if (give_up_ms == 0 && (weft_signals_caught() != 0 || answer->is_output_lost)) {
            weft_engine_cancel(engine, id);
            give_up_ms = weft_clock_ns() / 1000000 + CANCEL_GRACE_MS;
        }
        if (give_up_ms != 0 && weft_clock_ns() / 1000000 > give_up_ms) {
            return WEFT_ERR_CANCELLED;
        }
    }
    return answer->last.finish == WEFT_FINISH_ERROR ? answer->last.status : WEFT_OK;
}

static json_t *collectives_json(struct weft_engine *engine)
{
    struct weft_collective_stats stats[COLLECTIVE_COUNT];
    uint32_t count = weft_engine_collectives(engine, stats, COLLECTIVE_COUNT);
    json_t *list = json_object();

    for (uint32_t i = 0; i < count && i < COLLECTIVE_COUNT; i++) {
        json_object_set_new(list, stats[i].name,
                            json_pack("{s:I, s:I, s:f}", "calls", (json_int_t)stats[i].call_count, "bytes",
                                      (json_int_t)stats[i].byte_count, "time_ms", stats[i].time_ms));
    }
    return list;
}

static bool answer_print_json(struct weft_engine *engine, const struct answer *answer)
{
    const struct weft_timings *timings = &answer->last.timings;
    const int32_t *ids = (const int32_t *)(const void *)answer->token_ids.data;
    size_t count = answer->token_ids.size / sizeof(int32_t);
    json_t *list = json_array();
    struct weft_engine_info info;
    json_t *object;
    char *line;
    bool is_done;

    weft_engine_info(engine, &info);
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(list, json_integer(ids[i]));
    }
    object = json_pack("{s:o, s:o, s:s, s:i, s:s, s:o}", "token_ids", list, "text",
                       json_stringn_nocheck(answer->text.data != NULL ? answer->text.data : "", answer->text.size),
                       "finish_reason", weft_finish_name(answer->last.finish), "prompt_token_count",
                       (int)answer->last.prompt_token_count, "logits_sha256", answer->last.logits_sha256, "timings",
                       json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "load_ms", info.load_ms, "queue_ms",
                                 timings->queue_ms, "prefill_ms", timings->prefill_ms, "ttft_ms", timings->ttft_ms,
                                 "decode_ms", timings->decode_ms, "tokens_per_second", timings->tokens_per_second,
                                 "collectives", collectives_json(engine)));
    line = object != NULL ? json_dumps(object, JSON_REAL_PRECISION(6)) : NULL;
    is_done = line != NULL && stdout_write(line, strlen(line)) && stdout_write("\n", 1);
    free(line);
    json_decref(object);
    if (!is_done) {
        fputs("weft run: cannot write the answer to standard output\n", stderr);
    }
    return is_done;
}

static void timings_print(struct weft_engine *engine, const struct answer *answer)
{
    const struct weft_event *last = &answer->last;
    const struct weft_timings *timings = &last->timings;
    struct weft_collective_stats stats[COLLECTIVE_COUNT];
    uint32_t count = weft_engine_collectives(engine, stats, COLLECTIVE_COUNT);

    fprintf(stderr, "\nprompt      %u tokens, first token after %.1f ms", last->prompt_token_count, timings->ttft_ms);
    if (timings->prefill_ms > 0) {
        fprintf(stderr, " (%.1f tokens/s)", last->prompt_token_count * 1000.0 / timings->prefill_ms);
    }
    fprintf(stderr, "\nanswer      %u tokens, %.1f tokens/s, finished: %s\n", last->output_token_count,
            timings->tokens_per_second, weft_finish_name(last->finish));
    for (uint32_t i = 0; i < count && i < COLLECTIVE_COUNT; i++) {
        char size[WEFT_SIZE_TEXT_SIZE];

        if (stats[i].call_count > 0) {
            fprintf(stderr, "%-11s %.1f ms in %llu calls, %.1f us each, %s received\n", stats[i].name, stats[i].time_ms,
                    (unsigned long long)stats[i].call_count, stats[i].time_ms * 1000 / (double)stats[i].call_count,
                    weft_size_text(stats[i].byte_count, size));
        }
    }
}

static int answer_finish(struct weft_engine *engine, const struct weft_settings *settings, enum weft_status status,
                         const struct answer *answer)
{
    bool is_json = strcmp(settings->output, "json") == 0;

    if (!is_json && !answer->is_output_lost && answer->text.size > 0 &&
        answer->text.data[answer->text.size - 1] != '\n') {
        (void)stdout_write("\n", 1);
    }
    if (weft_signals_caught() != 0) {
        fputs("weft run: interrupted\n", stderr);
        return 128 + weft_signals_caught();
    }
    if (answer->is_output_lost) {
        fputs("weft run: standard output was closed\n", stderr);
        return WEFT_EXIT_FAILURE;
    }
    if (status != WEFT_OK) {
        int rank = weft_engine_failed_rank(engine);

        if (rank >= 0) {
            fprintf(stderr, "weft run: rank %d has failed, the answer is incomplete\n", rank);
        } else {
            fprintf(stderr, "weft run: the answer is incomplete: %s\n", weft_status_name(status));
        }
        return WEFT_EXIT_FAILURE;
    }
    if (is_json) {
        return answer_print_json(engine, answer) ? WEFT_EXIT_OK : WEFT_EXIT_FAILURE;
    }
    if (!settings->is_quiet) {
        timings_print(engine, answer);
    }
    return WEFT_EXIT_OK;
}

/* What the leader answers. */
struct question {
    const struct weft_settings *settings;
    struct text prompt;
};

static int answer_make(struct weft_engine *engine, void *context)
{
    const struct question *question = context;
    struct weft_request request;
    struct answer answer = {.is_finished = false};
    enum weft_status status;
    uint64_t id = 0;
    int code;

    request_fill(&request, question->settings, &question->prompt);
    if (weft_engine_submit(engine, &request, &id) != WEFT_OK) {
        fprintf(stderr, "weft run: %s\n", weft_engine_error());
        return WEFT_EXIT_FAILURE;
    }
    status = events_follow(engine, id, strcmp(question->settings->output, "text") == 0, &answer);
    code = answer_finish(engine, question->settings, status, &answer);
    free(answer.text.data);
    free(answer.token_ids.data);
    return code;
}

int weft_command_run(struct weft_settings *settings)
{
    struct question question = {.settings = settings};
    struct weft_terminal terminal;
    struct weft_setup setup;
    int code = WEFT_EXIT_FAILURE;

    if (!weft_setup_init(&setup, settings, "run", &code)) {
        return code;
    }
    if (!weft_setup_is_worker(&setup) && !prompt_read(settings, &question.prompt)) {
        weft_setup_close(&setup);
        free(question.prompt.data);
        return WEFT_EXIT_FAILURE;
    }
    weft_terminal_init(&terminal, settings->is_quiet || weft_setup_is_worker(&setup), settings->is_verbose);
    setup.options.is_traced = true;
    if (settings->sequences == 0) {
        setup.options.sequence_count_max = 1;
    }
    code = weft_command_lead(&setup, &terminal, STOP_LIMIT_MS, answer_make, &question);
    free(question.prompt.data);
    return code;
}
