/* The harness. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "weft/log.h"

/* Tests run one after the other in one thread; the log's sink is called under the log's own mutex. */
static char model_folder[64];
static struct {
    pthread_mutex_t mutex;
    char lines[64 * 1024];
    int error_count;
} captured = {.mutex = PTHREAD_MUTEX_INITIALIZER};

const char *golden_model(const char *name)
{
    static char path[512];

    snprintf(path, sizeof(path), "%s/%s", WEFT_GOLDEN_MODELS, name);
    return path;
}

static void copy_file(const char *from_folder, const char *name)
{
    char path[600];
    char *data = malloc(1 << 20);

    assert_non_null(data);
    snprintf(path, sizeof(path), "%s/%s", from_folder, name);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    snprintf(path, sizeof(path), "%s/%s", model_folder, name);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    size_t size = fread(data, 1, 1 << 20, in);
    assert_int_equal(fwrite(data, 1, size, out), size);
    fclose(in);
    fclose(out);
    free(data);
}

/* GPT-2's printable stand-in for a byte, as a JSON escape. */
static void write_byte_token(FILE *file, unsigned byte)
{
    bool is_plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    unsigned shifted = 256;

    for (unsigned b = 0; b < byte; b++) {
        shifted += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    }
    fprintf(file, "%s\"\\u%04x\": %u", byte == 0 ? "" : ", ", is_plain ? byte : shifted, byte);
}

const char *model_with_tokenizer(void)
{
    char path[128];

    snprintf(model_folder, sizeof(model_folder), "/tmp/weft-test-XXXXXX");
    assert_non_null(mkdtemp(model_folder));
    copy_file(golden_model("llama2"), "config.json");
    copy_file(golden_model("llama2"), "model.safetensors");
    snprintf(path, sizeof(path), "%s/tokenizer.json", model_folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [],"
                  " \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false,"
                  " \"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null,"
                  " \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true,"
                  " \"use_regex\": true}, \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,"
                  " \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false,"
                  " \"byte_fallback\": false, \"merges\": [], \"vocab\": {");
    for (unsigned byte = 0; byte < 256; byte++) {
        write_byte_token(file, byte);
    }
    fprintf(file, "}}}\n");
    fclose(file);
    return model_folder;
}

void model_with_tokenizer_remove(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json"};
    char path[128];

    for (size_t i = 0; i < TEST_COUNT(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", model_folder, names[i]);
        unlink(path);
    }
    rmdir(model_folder);
}

void test_options(struct weft_engine_options *options, const char *model, uint32_t rank_count)
{
    weft_engine_options_init(options);
    options->model = model;
    options->launch = WEFT_LAUNCH_THREADS;
    options->rank_count = rank_count;
    options->thread_count = 1;
    options->sequence_count_max = 4;
    options->kv_token_count = 512;
    options->timeout_ms = 60000;
}

struct weft_engine *open_engine(const struct weft_engine_options *options)
{
    struct weft_engine *engine = NULL;
    enum weft_status status = weft_engine_open(options, &engine);

    if (status != WEFT_OK) {
        fail_msg("open: %s", weft_engine_error());
    }
    return engine;
}

static struct answer *answer_of(struct answer *answers, uint32_t count, uint64_t id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (answers[i].id == id) {
            return &answers[i];
        }
    }
    fail_msg("event of unknown request %d", (int)id);
    return NULL;
}

static bool take_event(struct answer *answer, const struct weft_event *event)
{
    assert_int_equal(answer->finish, WEFT_FINISH_NONE); /* nothing after the last event */
    assert_true(answer->token_count + event->token_count <= ANSWER_TOKENS_MAX);
    assert_true(answer->text_size + event->text_size < ANSWER_TEXT_MAX);
    assert_int_equal(event->text[event->text_size], '\0');
    memcpy(answer->token_ids + answer->token_count, event->token_ids, event->token_count * sizeof(int32_t));
    memcpy(answer->text + answer->text_size, event->text, event->text_size + 1);
    answer->token_count += event->token_count;
    answer->text_size += event->text_size;
    if (event->finish == WEFT_FINISH_NONE) {
        return false;
    }
    assert_int_equal(event->output_token_count, answer->token_count);
    answer->finish = event->finish;
    answer->status = event->status;
    answer->prompt_token_count = event->prompt_token_count;
    answer->timings = event->timings;
    memcpy(answer->logits_sha256, event->logits_sha256, sizeof(answer->logits_sha256));
    return true;
}

void collect(struct weft_engine *engine, struct answer *answers, uint32_t count)
{
    uint32_t ended = 0;
    time_t begin = time(NULL);

    while (ended < count) {
        struct weft_event events[3];
        uint32_t event_count;
        enum weft_status status = weft_engine_poll(engine, 1000, events, TEST_COUNT(events), &event_count);
        if (status != WEFT_OK) {
            fail_msg("poll: %s", weft_engine_error());
        }
        for (uint32_t i = 0; i < event_count; i++) {
            ended += take_event(answer_of(answers, count, events[i].id), &events[i]);
        }
        if (time(NULL) - begin > 60) {
            fail_msg("only %d of %d requests ended within a minute", (int)ended, (int)count);
        }
    }
}

void run_requests(struct weft_engine *engine, const struct weft_request *requests, uint32_t count,
                  struct answer *answers)
{
    for (uint32_t i = 0; i < count; i++) {
        answers[i] = (struct answer){0};
        if (weft_engine_submit(engine, &requests[i], &answers[i].id) != WEFT_OK) {
            fail_msg("submit: %s", weft_engine_error());
        }
    }
    collect(engine, answers, count);
}

void assert_same_answer(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->token_count, b->token_count);
    assert_memory_equal(a->token_ids, b->token_ids, a->token_count * sizeof(int32_t));
    assert_string_equal(a->logits_sha256, b->logits_sha256);
    assert_int_equal(a->text_size, b->text_size);
    assert_memory_equal(a->text, b->text, a->text_size);
}

static void capture_line(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    pthread_mutex_lock(&captured.mutex);
    captured.error_count += level == WEFT_LOG_ERROR;
    size_t used = strlen(captured.lines);
    snprintf(captured.lines + used, sizeof(captured.lines) - used, "%s\n", line);
    pthread_mutex_unlock(&captured.mutex);
}

void log_capture(void)
{
    log_clear();
    weft_log_configure(WEFT_LOG_INFO, capture_line, NULL);
}

void log_clear(void)
{
    pthread_mutex_lock(&captured.mutex);
    captured.lines[0] = '\0';
    captured.error_count = 0;
    pthread_mutex_unlock(&captured.mutex);
}

bool log_has(const char *text)
{
    pthread_mutex_lock(&captured.mutex);
    bool is_there = strstr(captured.lines, text) != NULL;
    pthread_mutex_unlock(&captured.mutex);
    return is_there;
}

int log_error_count(void)
{
    pthread_mutex_lock(&captured.mutex);
    int count = captured.error_count;
    pthread_mutex_unlock(&captured.mutex);
    return count;
}
