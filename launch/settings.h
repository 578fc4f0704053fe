/* What the command line and the environment ask for: one flat structure, filled by options.c, read by the commands. */
#ifndef WEFT_LAUNCH_SETTINGS_H
#define WEFT_LAUNCH_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WEFT_OPTION_MAX = 80, WEFT_SETTINGS_STOP_MAX = 16, WEFT_SETTINGS_SHARE_MAX = 64 };

struct weft_text_list {
    const char *items[WEFT_SETTINGS_STOP_MAX];
    uint32_t count;
};

struct weft_number_list {
    uint32_t items[WEFT_SETTINGS_SHARE_MAX];
    uint32_t count;
    bool is_auto; /* the word "auto" instead of numbers */
};

struct weft_settings {
    /* model and memory */
    const char *model;
    const char *weights;
    uint32_t context;
    uint64_t memory;
    const char *kv_dtype;
    const char *quantize;
    uint32_t kv_tokens;
    uint32_t sequences;
    uint32_t queue;
    /* ranks */
    uint32_t ranks;
    uint32_t threads;
    struct weft_number_list shares;
    uint32_t leaves;
    uint32_t prefill_chunk;
    const char *cpu_level;
    const char *device;
    const char *numerics;
    bool is_eager;
    const char *cuda_module;
    const char *comm;
    const char *interface;
    uint32_t timeout_ms;
    uint32_t rendezvous_timeout_ms;
    uint32_t heartbeat_ms; /* UINT32_MAX unless given, 0: off */
    /* ranks started by hand */
    const char *leader;
    uint32_t leader_port;
    uint32_t rank;
    uint32_t local_ranks;
    const char *secret_file;
    /* ranks over ssh */
    const char *hosts;
    const char *hostfile; /* becomes hosts, see weft_hostfile_read() */
    const char *ssh;
    const char *remote_path;
    /* prompt and sampling */
    const char *prompt;
    const char *prompt_file;
    bool is_raw;
    uint32_t max_tokens;
    float temperature;
    uint32_t top_k;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint64_t seed;
    struct weft_text_list stop;
    bool is_eos_ignored;
    /* bench */
    struct weft_number_list batch;
    uint32_t prompt_tokens;
    uint32_t bench_tokens;
    uint32_t rounds;
    /* server */
    const char *grpc;
    const char *http; /* NULL: no HTTP */
    uint32_t drain_ms;
    const char *pid_file;
    /* output */
    const char *output;
    bool is_quiet;
    bool is_verbose;
    bool is_help;
    bool is_joined; /* started by another host's --hosts */
    /* as called: the command and the words after it */
    const char *command;
    char **arguments;
    int argument_count;
    /* by position in weft_options[]: what set it: "argument", or the variable's name; NULL when nothing did */
    const char *origins[WEFT_OPTION_MAX];
};

#endif
