/* Hello, Setup, Speed and Ready as protobuf-c messages. */
#include "engine/handshake.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/message.h"
#include "weft/log.h"
#include "wire.pb-c.h"

/* The largest is a Setup of 64 ranks, a Hello of 16 GPUs, or a reason. */
enum { MESSAGE_SIZE_MAX = 4096 };

static enum weft_status recv_message(struct weft_bootstrap *bootstrap, uint32_t rank,
                                     const ProtobufCMessageDescriptor *descriptor, uint32_t timeout_ms,
                                     ProtobufCMessage **message_out)
{
    return weft_message_recv(bootstrap, rank, descriptor, MESSAGE_SIZE_MAX, timeout_ms, message_out);
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from == NULL ? "" : from);
}

/* Bytes of exactly `size`; anything else leaves zeros, which match nothing. */
static void copy_bytes(uint8_t *to, size_t size, const ProtobufCBinaryData *from)
{
    memset(to, 0, size);
    if (from->len == size) {
        memcpy(to, from->data, size);
    }
}

/* Only our own error values; an unknown one is still an error. */
static enum weft_status take_status(int32_t status)
{
    return status > 0 || status < WEFT_ERR_LAST ? WEFT_ERR_FORMAT : (enum weft_status)status;
}

static void pack_gpus(struct weft_member *member, Weft__Wire__Gpu *gpus, Weft__Wire__Gpu **list)
{
    for (uint32_t i = 0; i < member->gpu_count; i++) {
        struct weft_member_gpu *gpu = &member->gpus[i];
        gpus[i] = (Weft__Wire__Gpu)WEFT__WIRE__GPU__INIT;
        gpus[i].name = gpu->name;
        gpus[i].uuid = (ProtobufCBinaryData){sizeof(gpu->uuid), gpu->uuid};
        gpus[i].memory_total = gpu->memory_total;
        gpus[i].memory_free = gpu->memory_free;
        list[i] = &gpus[i];
    }
}

/* A rank that tells of more than fits, or asks for a GPU that it has not told of, is taken to have none. */
static void take_gpus(const Weft__Wire__Hello *message, struct weft_member *member)
{
    member->device_kind =
        message->device_kind <= WEFT_DEVICE_CUDA_INDEX ? (enum weft_device_kind)message->device_kind : WEFT_DEVICE_AUTO;
    member->gpu_index = message->gpu_index;
    member->gpu_count = message->n_gpus <= WEFT_MEMBER_GPU_MAX ? (uint32_t)message->n_gpus : 0;
    if (member->device_kind == WEFT_DEVICE_CUDA_INDEX && member->gpu_index >= member->gpu_count) {
        member->gpu_count = 0;
    }
    for (uint32_t i = 0; i < member->gpu_count; i++) {
        const Weft__Wire__Gpu *gpu = message->gpus[i];
        copy_text(member->gpus[i].name, sizeof(member->gpus[i].name), gpu->name);
        copy_bytes(member->gpus[i].uuid, sizeof(member->gpus[i].uuid), &gpu->uuid);
        member->gpus[i].memory_total = gpu->memory_total;
        member->gpus[i].memory_free = gpu->memory_free;
    }
    copy_text(member->no_gpu_reason, sizeof(member->no_gpu_reason), message->no_gpu_text);
}

static enum weft_wait_policy take_wait(uint32_t wait)
{
    return wait == WEFT_WAIT_SPIN ? WEFT_WAIT_SPIN : WEFT_WAIT_YIELD;
}

enum weft_status weft_hello_send(struct weft_bootstrap *bootstrap, const struct weft_hello *hello, uint32_t timeout_ms)
{
    Weft__Wire__Hello message = WEFT__WIRE__HELLO__INIT;
    struct weft_hello copy = *hello; /* protobuf-c wants mutable pointers */
    const struct weft_machine *machine = &copy.member.machine;
    Weft__Wire__Gpu gpus[WEFT_MEMBER_GPU_MAX];
    Weft__Wire__Gpu *gpu_list[WEFT_MEMBER_GPU_MAX];

    message.protocol = copy.protocol;
    message.version = copy.version;
    message.model_fingerprint = (ProtobufCBinaryData){sizeof(copy.model), copy.model};
    message.options_digest = (ProtobufCBinaryData){sizeof(copy.options), copy.options};
    message.host_id = copy.member.host_id;
    message.host_name = copy.member.machine.host_name;
    message.cpu_mask = (ProtobufCBinaryData){sizeof(machine->cpu_mask), copy.member.machine.cpu_mask};
    message.cpu_quota = machine->cpu_quota;
    message.memory_available = machine->memory_available;
    message.memory_limit = copy.member.memory_limit;
    message.thread_count = copy.member.thread_count;
    message.status = copy.status;
    message.text = copy.reason;
    message.lacks_model = copy.lacks_model;
    message.quantise = (uint32_t)copy.quantise;
    message.device_kind = (uint32_t)copy.member.device_kind;
    message.gpu_index = copy.member.gpu_index;
    message.no_gpu_text = copy.member.no_gpu_reason;
    pack_gpus(&copy.member, gpus, gpu_list);
    message.n_gpus = copy.member.gpu_count;
    message.gpus = gpu_list;
    return weft_message_send(bootstrap, 0, &message.base, timeout_ms);
}

enum weft_status weft_hello_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                 struct weft_hello *hello_out)
{
    ProtobufCMessage *base;

    WEFT_TRY(recv_message(bootstrap, rank, &weft__wire__hello__descriptor, timeout_ms, &base));
    const Weft__Wire__Hello *message = (const Weft__Wire__Hello *)base;
    struct weft_machine *machine = &hello_out->member.machine;
    hello_out->protocol = message->protocol;
    copy_text(hello_out->version, sizeof(hello_out->version), message->version);
    copy_bytes(hello_out->model, sizeof(hello_out->model), &message->model_fingerprint);
    copy_bytes(hello_out->options, sizeof(hello_out->options), &message->options_digest);
    hello_out->member.host_id = message->host_id;
    copy_text(machine->host_name, sizeof(machine->host_name), message->host_name);
    copy_bytes(machine->cpu_mask, sizeof(machine->cpu_mask), &message->cpu_mask);
    machine->cpu_quota = message->cpu_quota;
    machine->memory_available = message->memory_available;
    hello_out->member.memory_limit = message->memory_limit;
    hello_out->member.thread_count = message->thread_count;
    take_gpus(message, &hello_out->member);
    hello_out->status = take_status(message->status);
    copy_text(hello_out->reason, sizeof(hello_out->reason), message->text);
    hello_out->lacks_model = message->lacks_model != 0;
    hello_out->quantise =
        (enum weft_quantise)message->quantise; /* any value: one that is ours only if it is the leader's */
    protobuf_c_message_free_unpacked(base, NULL);
    return WEFT_OK;
}

enum weft_status weft_speed_send(struct weft_bootstrap *bootstrap, const struct weft_speed *speed, uint32_t timeout_ms)
{
    Weft__Wire__Speed message = WEFT__WIRE__SPEED__INIT;
    char reason[WEFT_REASON_SIZE];

    copy_text(reason, sizeof(reason), speed->reason);
    message.bytes_per_second = speed->bytes_per_second;
    message.status = speed->status;
    message.text = reason;
    return weft_message_send(bootstrap, 0, &message.base, timeout_ms);
}

enum weft_status weft_speed_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                 struct weft_speed *speed_out)
{
    ProtobufCMessage *base;
    enum weft_status status = WEFT_OK;

    WEFT_TRY(recv_message(bootstrap, rank, &weft__wire__speed__descriptor, timeout_ms, &base));
    const Weft__Wire__Speed *message = (const Weft__Wire__Speed *)base;
    *speed_out =
        (struct weft_speed){.bytes_per_second = message->bytes_per_second, .status = take_status(message->status)};
    copy_text(speed_out->reason, sizeof(speed_out->reason), message->text);
    if (speed_out->status == WEFT_OK && !(isfinite(message->bytes_per_second) && message->bytes_per_second > 0)) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "rank %u says its speed is %g bytes/s", rank,
                 message->bytes_per_second);
        status = WEFT_ERR_FORMAT;
    }
    protobuf_c_message_free_unpacked(base, NULL);
    return status;
}

enum weft_status weft_setup_send(struct weft_bootstrap *bootstrap, uint32_t rank, const struct weft_setup *setup,
                                 uint32_t timeout_ms)
{
    Weft__Wire__Setup message = WEFT__WIRE__SETUP__INIT;
    uint32_t begins[WEFT_RANK_COUNT_MAX];
    uint32_t ends[WEFT_RANK_COUNT_MAX];
    char reason[WEFT_REASON_SIZE];
    uint32_t rank_count = weft_bootstrap_rank_count(bootstrap);

    copy_text(reason, sizeof(reason), setup->reason);
    message.generation = setup->generation;
    message.status = setup->status;
    message.text = reason;
    message.is_probe = setup->is_probe;
    message.probe_dtype = (uint32_t)setup->weights.dtype;
    message.probe_scale_cols = setup->weights.scale_cols;
    message.thread_count = setup->seat.thread_count;
    message.gpu = setup->seat.gpu == WEFT_NO_GPU ? 0 : (uint32_t)setup->seat.gpu + 1;
    message.wait_policy = setup->seat.wait;
    if (setup->status == WEFT_OK && !setup->is_probe) {
        for (uint32_t r = 0; r < rank_count; r++) {
            begins[r] = setup->leaves[r].begin;
            ends[r] = setup->leaves[r].end;
        }
        message.n_leaf_begins = rank_count;
        message.leaf_begins = begins;
        message.n_leaf_ends = rank_count;
        message.leaf_ends = ends;
        message.token_count_max = setup->limits.token_count_max;
        message.row_count_max = setup->limits.row_count_max;
        message.candidate_count_max = setup->limits.candidate_count_max;
        message.sequence_count_max = setup->limits.sequence_count_max;
        message.page_count = setup->limits.page_count;
        message.context_length = setup->limits.context_length;
    }
    return weft_message_send(bootstrap, rank, &message.base, timeout_ms);
}

static bool has_group(const Weft__Wire__Setup *message, uint32_t rank_count)
{
    return message->n_leaf_begins == rank_count && message->n_leaf_ends == rank_count &&
           rank_count <= WEFT_RANK_COUNT_MAX && message->token_count_max >= 1 && message->row_count_max >= 1 &&
           message->candidate_count_max >= 1 && message->sequence_count_max >= 1 && message->page_count >= 1 &&
           message->context_length >= 1;
}

/* Weights that can be measured; another Setup has none. */
static bool has_weights(const Weft__Wire__Setup *message)
{
    return message->probe_dtype <= WEFT_F8_E4M3 &&
           (message->probe_scale_cols == 0 || (message->is_probe && message->probe_dtype == WEFT_F8_E4M3));
}

static enum weft_status take_setup(const Weft__Wire__Setup *message, uint32_t rank_count, struct weft_setup *setup)
{
    *setup = (struct weft_setup){.generation = message->generation, .status = take_status(message->status)};
    copy_text(setup->reason, sizeof(setup->reason), message->text);
    if (setup->status != WEFT_OK) {
        return WEFT_OK;
    }
    setup->is_probe = message->is_probe != 0;
    if (message->thread_count < 1 || message->thread_count > WEFT_CPU_COUNT_MAX || message->gpu > WEFT_MEMBER_GPU_MAX ||
        !has_weights(message) || (!setup->is_probe && !has_group(message, rank_count))) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "the leader's Setup does not describe a group of %u ranks",
                 rank_count);
        return WEFT_ERR_FORMAT;
    }
    setup->seat = (struct weft_rank_seat){.thread_count = message->thread_count,
                                          .gpu = message->gpu == 0 ? WEFT_NO_GPU : (int32_t)message->gpu - 1,
                                          .wait = take_wait(message->wait_policy)};
    setup->weights = (struct weft_speed_weights){.dtype = (enum weft_dtype)message->probe_dtype,
                                                 .scale_cols = message->probe_scale_cols};
    for (uint32_t r = 0; r < rank_count && !setup->is_probe; r++) {
        setup->leaves[r] = (struct weft_range){message->leaf_begins[r], message->leaf_ends[r]};
    }
    setup->limits = (struct weft_plan_limits){.token_count_max = message->token_count_max,
                                              .sequence_count_max = message->sequence_count_max,
                                              .row_count_max = message->row_count_max,
                                              .candidate_count_max = message->candidate_count_max,
                                              .page_count = message->page_count,
                                              .context_length = message->context_length};
    return WEFT_OK;
}

enum weft_status weft_setup_recv(struct weft_bootstrap *bootstrap, uint32_t timeout_ms, struct weft_setup *setup_out)
{
    ProtobufCMessage *base;

    WEFT_TRY(recv_message(bootstrap, 0, &weft__wire__setup__descriptor, timeout_ms, &base));
    enum weft_status status =
        take_setup((const Weft__Wire__Setup *)base, weft_bootstrap_rank_count(bootstrap), setup_out);
    protobuf_c_message_free_unpacked(base, NULL);
    return status;
}

enum weft_status weft_ready_send(struct weft_bootstrap *bootstrap, const struct weft_ready *ready, uint32_t timeout_ms)
{
    Weft__Wire__Ready message = WEFT__WIRE__READY__INIT;
    char reason[WEFT_REASON_SIZE];

    copy_text(reason, sizeof(reason), ready->reason);
    message.generation = ready->generation;
    message.byte_count = ready->byte_count;
    message.byte_total = ready->byte_total;
    message.is_final = ready->is_final;
    message.status = ready->status;
    message.text = reason;
    return weft_message_send(bootstrap, 0, &message.base, timeout_ms);
}

enum weft_status weft_ready_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                 struct weft_ready *ready_out)
{
    ProtobufCMessage *base;

    WEFT_TRY(recv_message(bootstrap, rank, &weft__wire__ready__descriptor, timeout_ms, &base));
    const Weft__Wire__Ready *message = (const Weft__Wire__Ready *)base;
    *ready_out = (struct weft_ready){.generation = message->generation,
                                     .byte_count = message->byte_count,
                                     .byte_total = message->byte_total,
                                     .is_final = message->is_final != 0,
                                     .status = take_status(message->status)};
    copy_text(ready_out->reason, sizeof(ready_out->reason), message->text);
    protobuf_c_message_free_unpacked(base, NULL);
    return WEFT_OK;
}
