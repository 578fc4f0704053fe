/* The shortest program on libweft: opens a model folder, submits one prompt, prints the answer as it comes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <weft/weft.h>

static int answer(struct weft_engine *engine, const char *prompt, uint32_t max_tokens)
{
    struct weft_request request;
    uint64_t id;

    weft_request_init(&request);
    request.prompt = prompt;
    request.prompt_size = strlen(prompt);
    request.max_tokens = max_tokens;
    if (weft_engine_submit(engine, &request, &id) != WEFT_OK) {
        fprintf(stderr, "submit: %s\n", weft_engine_error());
        return 1;
    }
    for (;;) {
        struct weft_event event;
        uint32_t count;
        if (weft_engine_poll(engine, 1000, &event, 1, &count) != WEFT_OK) {
            fprintf(stderr, "poll: %s\n", weft_engine_error());
            return 1;
        }
        if (count == 0) {
            continue;
        }
        fwrite(event.text, 1, event.text_size, stdout);
        fflush(stdout);
        if (event.finish != WEFT_FINISH_NONE) {
            printf("\n[%s, %u tokens]\n", weft_finish_name(event.finish), event.output_token_count);
            return event.finish == WEFT_FINISH_ERROR;
        }
    }
}

int main(int argc, char **argv)
{
    struct weft_engine_options options;
    struct weft_engine *engine;

    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL-FOLDER PROMPT [RANKS]\n", argv[0]);
        return 2;
    }
    weft_engine_options_init(&options);
    options.model = argv[1];
    options.launch = WEFT_LAUNCH_LOCAL;
    options.rank_count = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 1;
    if (weft_engine_open(&options, &engine) != WEFT_OK) {
        fprintf(stderr, "open: %s\n", weft_engine_error());
        return 1;
    }
    int result = answer(engine, argv[2], 16);
    weft_engine_close(&engine);
    return result;
}
